"""Run Pulumi for this project: `./pulumiw ARGS…`.

Without any setting it keeps the state and the passphrase of its secrets in the user's own state folder,
`${XDG_STATE_HOME:-~/.local/state}/llm-infrastructure`. `PULUMI_BACKEND_URL` puts the state elsewhere, and
`PULUMI_CONFIG_PASSPHRASE` or `PULUMI_CONFIG_PASSPHRASE_FILE` set your own passphrase. Anyone with the state and
the passphrase can read every secret of the stack. If you lose either, the generated secrets cannot be recovered.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

from engine.own_folder import own_folder
from toolchain import PROJECT, environment_file, tools
from toolchain.progress import SetupError, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

VIRTUAL_ENVIRONMENT = PROJECT / ".venv"
CHANGING = {"up", "update", "destroy", "down"}
NO_STACK_SELECTED = "no stack selected"
ATTRIBUTES = ".attrs"
"""The ending of the file that Pulumi keeps beside each file of a state folder (gocloud.dev, blob/fileblob)."""


def state_folder(backend: str) -> Path | None:
    """The folder where Pulumi keeps the state, from the URL of its backend; None if that is not a folder."""
    url = urlsplit(backend)
    return Path(unquote(url.path)) / ".pulumi" if url.scheme == "file" else None


def environment(tools: Path) -> dict[str, str]:
    """Return the whole environment for Pulumi; `tools` is the folder that `tools.ensure` returned."""
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONHOME", "PYTHONPATH"}}
    programs = VIRTUAL_ENVIRONMENT / "bin"
    env |= {
        "PATH": f"{tools}:{programs}:{env.get('PATH', os.defpath)}",
        "VIRTUAL_ENV": str(VIRTUAL_ENVIRONMENT),
        "PULUMI_PYTHON_CMD": str(programs / "python"),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER": "true",
    }
    own = own_folder()
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not env.get("PULUMI_BACKEND_URL"):
        (own / "state").mkdir(mode=0o700, exist_ok=True)
        env["PULUMI_BACKEND_URL"] = (own / "state").as_uri()
        if not {"PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"} & env.keys():
            # Not for a state elsewhere: people who share that share its passphrase too.
            env["PULUMI_CONFIG_PASSPHRASE_FILE"] = str(_passphrase_file(own))
    return env


def _passphrase_file(folder: Path) -> Path:
    """Return the file with the user's passphrase, created once. Raises SetupError rather than replace a lost one."""
    path = folder / "passphrase"
    if path.exists():
        return path
    if any((folder / "state/.pulumi/stacks").rglob("*.json")):
        raise SetupError(
            f"{path} is missing, and the secrets of the stacks in {folder / 'state'} can only be read with it",
            fix=f"restore it from a backup, or set PULUMI_CONFIG_PASSPHRASE if you chose the passphrase yourself; "
            f"if it is lost for good, destroy what the stacks run and move {folder / 'state'} away",
        )
    with tempfile.NamedTemporaryFile("w", dir=folder) as file:
        file.write(secrets.token_urlsafe(32))
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):  # another run was first
            os.link(file.name, path)
    return path


def run(arguments: Sequence[str], *, tools: Path) -> int:
    """Run Pulumi on this terminal, in the project's folder; return its exit code, or 128 + n for signal n."""
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: FrameType | None) -> None:
        if process is None:
            raise SystemExit(128 + number)
        process.send_signal(number)

    def leave_to_pulumi(*_: object) -> None:
        """Ctrl-C reaches Pulumi from the terminal and cancels the run; a second one would make it abort at once."""

    variables = environment(tools)
    killed = _remove_leftovers_of_the_dead(variables["PULUMI_BACKEND_URL"])
    if killed and _changes_unrefreshed(arguments):
        arguments = [*arguments, "--refresh"]  # the state still has what had just been removed
    with (
        _config_files_kept(PROJECT),
        _handled({signal.SIGINT: leave_to_pulumi, signal.SIGTERM: forward, signal.SIGHUP: forward}),
    ):
        process = subprocess.Popen([tools / "pulumi", *arguments], cwd=PROJECT, env=variables)
        code = process.wait()
    if code == 0 and _is_command(arguments, {"up", "update"}):
        _write_environment_file(tools, variables, arguments)
        if killed:
            _remove_from_the_swarm(tools, variables, arguments)
    if code > 0 and not any(word == "-s" or word.startswith("--stack") for word in arguments):
        _say_how_to_select(tools, variables)
    return code if code >= 0 else 128 - code


def _changes_unrefreshed(arguments: Sequence[str]) -> bool:
    """Whether these arguments change a stack and do not mention a refresh."""
    if any(word == "-r" or word.startswith("--refresh") for word in arguments):
        return False
    return _is_command(arguments, CHANGING)


def _is_command(arguments: Sequence[str], names: set[str]) -> bool:
    options_first = any(word.startswith("-") for word in arguments[:1])  # `-s dev up`
    return not names.isdisjoint(arguments if options_first else arguments[:1])


def _write_environment_file(tools: Path, variables: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Update `.env` from the stack: its address or its keys may have changed."""
    if (outputs := _asked(tools, variables, arguments, "output", "--json", "--show-secrets")) is not None:
        environment_file.write(PROJECT / ".env", outputs)


def _remove_from_the_swarm(tools: Path, variables: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Remove secrets and configs of a Swarm that are not in the state: the run was killed before it recorded them."""
    from infra.placement import leftovers  # noqa: PLC0415 -- it takes long to load, and is seldom needed

    state = _asked(tools, variables, arguments, "export") or {}
    resources = state.get("deployment", {}).get("resources") or []
    guard = next((each for each in resources if each["type"].endswith(":EngineGuard")), None)
    if guard:
        of_stack, known = guard["outputs"], {each["id"] for each in resources if "id" in each}
        label = f"{of_stack['label']}={of_stack['identity']}"
        if removed := leftovers.remove_leftovers(of_stack["host"], label, known):
            print(f"Removed what the killed run had left on the Swarm: {', '.join(removed)}.", file=sys.stderr)


def _asked(tools: Path, variables: Mapping[str, str], arguments: Sequence[str], *question: str) -> Any:  # noqa: ANN401 -- any JSON
    """What `pulumi stack` says about the stack that the arguments name; None if it says nothing."""
    selecting = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    selecting.add_argument("-s", "--stack")
    stack = selecting.parse_known_args(arguments)[0].stack
    asked = subprocess.run(
        [tools / "pulumi", "stack", *question, *(["--stack", stack] if stack else [])],
        cwd=PROJECT,
        env=dict(variables),
        check=False,
        capture_output=True,
        text=True,
    )
    return json.loads(asked.stdout) if asked.returncode == 0 else None


def _say_how_to_select(tools: Path, variables: Mapping[str, str]) -> None:
    """If no stack is selected, say how to create one: Pulumi names commands that do not work in a clone."""
    asked = subprocess.run(
        [tools / "pulumi", "stack", "--show-name", "--non-interactive"],
        cwd=PROJECT,
        env=dict(variables),
        check=False,
        capture_output=True,
        text=True,
    )
    if NO_STACK_SELECTED in asked.stderr:
        print(
            "No stack is selected.\n"
            "  what you can do: make up, which brings stack dev up and selects it\n"
            "    or, to set its config first: ./pulumiw stack select --create dev",
            file=sys.stderr,
        )


def _remove_leftovers_of_the_dead(backend: str) -> bool:
    """Remove what killed runs left in a state folder, and return whether one of their locks was there.

    Pulumi itself cannot distinguish these locks from those of live runs, and asks for `pulumi cancel`. Beside each
    file it keeps a second one with the file's attributes, which is not essential. It empties that before it writes
    it. If it is killed in between, it can no longer read the stack: "failed to load checkpoint: EOF".
    """
    state = state_folder(backend)
    if state is None:
        return False
    found = False
    for path in (state / "locks").rglob("*.json"):
        with suppress(OSError, ValueError, KeyError):
            lock = json.loads(path.read_text())
            if lock["hostname"] == socket.gethostname() and not _runs(int(lock["pid"])):
                path.unlink()
                path.with_name(f"{path.name}{ATTRIBUTES}").unlink(missing_ok=True)
                found = True
                print(
                    f"A run of Pulumi was killed here (stack {path.parent.name}, process {lock['pid']}, started "
                    f"{lock['timestamp']}): its lock is removed. ./pulumiw up --refresh --stack {path.parent.name} "
                    "finishes what it had begun: run it before a `destroy` too.",
                    file=sys.stderr,
                )
    # The history grows with each `up`, so it is only searched after a killed one.
    places = [state.rglob] if found else [state.glob, (state / "stacks").rglob]
    for path in chain.from_iterable(place(f"*{ATTRIBUTES}") for place in places):
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
    return found


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # In a container whose first process does not reap children, a killed process stays as a zombie.
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:  # not Linux
        return True
    return state not in {"Z", "X"}


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _config_files_kept(folder: Path) -> Iterator[None]:
    """Undo what Pulumi does to the config files of stacks beyond what the command asks for.

    It adds a salt as soon as it needs one. The same salt is in the state, and
    PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER makes Pulumi read it there. So a clone stays clean after `up`. If a
    config file has its own secrets, the salt stays. When Pulumi removes a stack, it also removes the config file,
    which may belong to the project.
    """

    def config_files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.glob("Pulumi.*.yaml")}

    before = config_files()
    try:
        yield
    finally:
        after = config_files()
        for path, content in after.items():
            if not _only_salt_is_new(before.get(path, b""), content):
                continue
            if path in before:
                restored = path.with_name(f".{path.name}.{os.getpid()}")
                restored.write_bytes(before[path])
                shutil.copymode(path, restored)
                restored.replace(path)
            else:
                path.unlink()
        renamed = after.keys() - before.keys()  # together with its stack
        for path in before.keys() - after.keys():
            if not renamed and _is_the_projects(path):
                path.write_bytes(before[path])
                print(
                    f"{path.name} stays: it is the project's, and the next stack of that name starts with it.",
                    file=sys.stderr,
                )


def _is_the_projects(path: Path) -> bool:
    """Whether git may track a file: yes if git cannot tell."""
    try:
        asked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", path.name], cwd=path.parent, check=False, capture_output=True
        )
    except FileNotFoundError:
        return True
    return asked.returncode != 1


def _only_salt_is_new(before: bytes, after: bytes) -> bool:
    if before == after or b"secure:" in after:
        return False
    # Scalars as they were written: Pulumi adds quotes to unquoted ones.
    old, new = (yaml.load(content, yaml.BaseLoader) or {} for content in (before, after))  # noqa: S506 -- no objects
    return "encryptionsalt" not in old and {**old, "encryptionsalt": new.get("encryptionsalt")} == new


def main() -> int:
    """Make Pulumi's tools available, and run Pulumi with the arguments of this process."""
    try:
        folder = tools.ready()
        if folder is None:
            with Steps() as steps:
                folder = tools.ensure(steps)
        return run(sys.argv[1:], tools=folder)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
