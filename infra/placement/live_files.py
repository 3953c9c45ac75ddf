"""Files that a running container loads without being replaced, on one Docker host."""

from __future__ import annotations

import io
import re
import tarfile
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import docker
from pulumi.dynamic import Resource

from engine.connection import connect
from infra.deploy_step import DeployStep
from infra.placement.health import POLL_SECONDS, await_health
from infra.workload import LIVE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pulumi
    from docker.models.containers import Container

    from infra.workload import LiveFilesArgs

CLEAR = f"rm -rf {LIVE}/next"
SWITCH = (  # not again after an `up` that was killed before the reload: `old` is what the process still runs with
    f"cd {LIVE} && if [ -d current ] && diff -rq next current >/dev/null 2>&1; then rm -rf next; "
    "else rm -rf old && if [ -d current ]; then mv current old; fi && mv next current; fi"
)
USER = 'echo "$(id -u) $(id -g)"'
TRIES = 3
SWITCH_BACK = f"cd {LIVE} && rm -rf next && if [ -d old ]; then mv current next && mv old current; fi"


class _Provider(DeployStep):
    id = "live-files"
    inputs = ("container", "files", "check", "reload")

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        with closing(connect(props["host"])) as engine:
            try:
                container = engine.containers.get(props["container"])
                _load(container, props["files"], check=props["check"], reload=props["reload"])
                await_health(container, props["start_seconds"])
            except docker.errors.APIError as error:
                raise RuntimeError(f"the engine at {props['host']} refused: {error.explanation}") from error
        return props


def _load(container: Container, files: Mapping[str, str], *, check: Sequence[str], reload: Sequence[str]) -> None:
    """Put files beside those in use, check them, put them in place, and make the container load them."""
    started = _succeeds(container, ["test", "-d", f"{LIVE}/current"])
    _run(container, ["sh", "-c", CLEAR])
    container.put_archive("/", _archive(files, _user(container)))
    _run(container, check, folder=f"{LIVE}/next")
    _run(container, ["sh", "-c", SWITCH])
    if started:
        try:
            _run(container, reload)
        except RuntimeError:
            _run(container, ["sh", "-c", SWITCH_BACK])
            raise


def _user(container: Container) -> tuple[int, int]:
    """The ids of the user and the group that a container runs as.

    Under load, an engine once reported exit code 0 for a command but dropped its output.
    """
    for _ in range(TRIES):
        printed = _run(container, ["sh", "-c", USER])
        if re.fullmatch(r"\d+ \d+", printed):
            user, group = map(int, printed.split())
            return user, group
        time.sleep(POLL_SECONDS)
    raise RuntimeError(
        f"{container.name} did not say which user it runs as, and still runs with the old files: `{USER}` in it "
        f"printed {printed!r}, {TRIES} times. Run `up` again; if that does not help, look at the engine's own log."
    )


def _archive(files: Mapping[str, str], owner: tuple[int, ...]) -> bytes:
    """The files in the folder `next`, readable by their owner only, as a tar archive for the root folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in (LIVE, f"{LIVE}/next"):
            archive.addfile(_entry(folder, owner, kind=tarfile.DIRTYPE, mode=0o700))
        for name, text in sorted(files.items()):
            content = text.encode()
            entry = _entry(f"{LIVE}/next/{name}", owner, kind=tarfile.REGTYPE, mode=0o400)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _entry(path: str, owner: tuple[int, ...], *, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path.removeprefix("/"))
    entry.type, entry.mode, entry.mtime = kind, mode, int(time.time())
    entry.uid, entry.gid = owner
    return entry


def _run(container: Container, command: Sequence[str], *, folder: str | None = None) -> str:
    """Run a command in a container and return its output. Raises RuntimeError with the output if it fails."""
    code, printed = container.exec_run(list(command), workdir=folder)
    assert isinstance(printed, bytes)  # noqa: S101 -- it is a stream only where one is asked for
    text = printed.decode(errors="replace").strip()
    if code != 0:
        raise RuntimeError(
            f"{container.name} refused its new files and still runs with the old ones: {text or command}"
        )
    return text


def _succeeds(container: Container, command: Sequence[str]) -> bool:
    return bool(container.exec_run(list(command)).exit_code == 0)


class LiveFiles(Resource, module="live_files", name="LiveFiles"):
    """The live files of a container: copied, checked, loaded by its reload, and the container is healthy with them.

    Type token: `pulumi-python:dynamic/live_files:LiveFiles`.
    """

    def __init__(  # noqa: PLR0913 -- all are needed, all by name
        self,
        name: str,
        *,
        host: str,
        container: pulumi.Output[str],
        live: LiveFilesArgs,
        start_seconds: int,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`container` is the container's id: a new container gets the files again."""
        props = {
            "host": host,
            "container": container,
            "files": {**live.files, **live.secrets},
            "check": list(live.check),
            "reload": list(live.reload),
            "start_seconds": start_seconds,
        }
        super().__init__(_Provider(), name, props, opts)
