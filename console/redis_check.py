"""Whether Redis, in which all replicas count, can be reached and has room. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app._errors import LLMError
from console.finding import Finding
from console.programs import ProgramError, output

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from app._settings import Settings
    from console.containers import Part

KIND = "redis"
FOLDER = "/run/live/current"
PASSWORD = "password"  # noqa: S105 -- the name of a file
CLIENT = '"$(command -v valkey-cli || command -v redis-cli)"'
SECONDS = 10.0
CHECK = "Redis"


def command(folder: str, words: str) -> str:
    """The shell command that makes Redis do something; the password comes from a file, not from the command line."""
    return f'REDISCLI_AUTH="$(cat {folder}/{PASSWORD})" exec {CLIENT} -e {words}'


def told(container: str) -> Mapping[str, str]:
    """What Redis reports about its memory and its clients, by name. Raises ProgramError."""
    said = output(["docker", "exec", container, "sh", "-c", command(FOLDER, "info")], seconds=SECONDS)
    return dict(line.strip().split(":", 1) for line in said.splitlines() if ":" in line)


def examine(settings: Settings) -> Iterator[Finding]:
    """Findings about the Redis of the stack at LITELLM_URL; none if it has no Redis, or none can be seen."""
    from console.status import found  # noqa: PLC0415 -- it loads much that only this needs

    try:
        stack, _ = found(settings, [])
    except (LLMError, ProgramError):
        return  # which is another check's failure
    for part in stack.parts if stack else ():
        if part.kind == KIND:
            yield _of(part)


def _of(part: Part) -> Finding:
    away = "so each replica counts requests and tokens by itself, and requests go on"
    if not part.up:
        return Finding(CHECK, "failure", f"it is {part.state}, {away}", part.look)
    if part.container is None:
        detail = (
            f"{part.name} is {part.state}, on another node: only that node's engine (DOCKER_HOST) can look inside"
        )
        return Finding(CHECK, "ok", detail)
    try:
        info = told(part.container)
        used, most = int(info["used_memory"]), int(info["maxmemory"])
    except (ProgramError, KeyError, ValueError) as error:
        return Finding(CHECK, "failure", f"it does not answer ({error}), {away}", part.look)
    if dropped := int(info.get("evicted_keys", 0)):
        detail = f"it was full and has dropped {dropped} counters, which began again from 0"
        # Half of its memory is for them (infra/redis.py).
        fix = f"./pulumiw config set redisMemoryMb {4 * most >> 20} && ./pulumiw up"
        return Finding(CHECK, "warning", detail, fix)
    clients = int(info.get("connected_clients", 0))
    return Finding(CHECK, "ok", f"it answers; {used >> 20} of {most >> 20} MB, {clients} connections")
