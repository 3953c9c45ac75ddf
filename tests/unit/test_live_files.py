"""Live files are checked before they replace those in use, which come back if the new ones cannot be loaded."""

from __future__ import annotations

import io
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any, NamedTuple

import docker
import pytest

from infra.placement import live_files
from infra.workload import LIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CHECK = ["haproxy", "-c", "-f", "."]
RELOAD = ["reload.sh"]
PROPS = {
    "host": "unix:///var/run/docker.sock",
    "container": "id-of-edge",
    "files": {"haproxy.cfg": "global\n", "clients.map": "sk-1 app\n"},
    "check": CHECK,
    "reload": RELOAD,
    "start_seconds": 60,
}


class Result(NamedTuple):
    exit_code: int
    output: bytes


class Container:
    """One with files in the folder `current`, which notes what it is told to do.

    `refuses` are commands that fail; `user` is what it prints each time that it is asked for its user.
    """

    name = "llm-infrastructure-dev-edge"

    def __init__(
        self, *, current: str | None, refuses: Sequence[Sequence[str]] = (), user: Sequence[bytes] = (b"99 98\n",)
    ) -> None:
        self.folders = {"current": current} if current else {}
        self.archive: dict[str, tarfile.TarInfo] = {}
        self._refuses = refuses
        self._user = iter(user)

    def exec_run(self, command: list[str], workdir: str | None = None) -> Result:
        if command == ["test", "-d", f"{LIVE}/current"]:
            return Result(0 if "current" in self.folders else 1, b"")
        if command[-1] == live_files.USER:
            return Result(0, next(self._user))
        if command == CHECK:
            assert workdir == f"{LIVE}/next"
        if command in self._refuses:
            return Result(1, b"line 1: unknown keyword\n")
        folders = self.folders
        match command[-1]:
            case live_files.CLEAR:
                folders.pop("next", None)
            case live_files.SWITCH:
                self.folders = {
                    "current": folders["next"],
                    **({"old": folders["current"]} if "current" in folders else {}),
                }
            case live_files.SWITCH_BACK:
                self.folders = {"current": folders["old"], "next": folders["current"]}
        return Result(0, b"")

    def put_archive(self, path: str, content: bytes) -> None:
        assert path == "/"
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            self.archive = {f"/{entry.name}": entry for entry in archive}
        self.folders["next"] = "new"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Load the files into a container that is healthy with them, or into none."""

    def load(container: Container | None) -> dict[str, Any]:
        class Engine:
            def __init__(self) -> None:
                self.containers = self

            def get(self, name: str) -> Container:
                if container is None:
                    raise docker.errors.NotFound("404", explanation=f"no such container: {name}")
                return container

            def close(self) -> None:
                pass

        monkeypatch.setattr(live_files, "connect", lambda _: Engine())
        monkeypatch.setattr(live_files, "await_health", lambda *_: None)
        monkeypatch.setattr(live_files, "POLL_SECONDS", 0)
        outs = live_files._Provider().update("live-files", PROPS, PROPS).outs
        assert outs is not None
        return outs

    return load


def test_files_take_the_place_of_those_in_use(loaded: Callable[..., dict[str, Any]]) -> None:
    container = Container(current="first")
    assert loaded(container) == PROPS
    assert container.folders == {"current": "new", "old": "first"}


def test_files_that_are_there_already_are_not_put_there_again(tmp_path: Path) -> None:
    """An `up` was killed before the reload: `old` stays what the process runs with, as Redis' reload needs it."""

    def folders(command: str, **texts: str) -> dict[str, str]:
        for name, text in texts.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "file").write_text(text)
        done = subprocess.run(["sh", "-c", command.replace(LIVE, str(tmp_path))], check=True, capture_output=True)
        assert done.stdout == done.stderr == b""
        return {folder.name: (folder / "file").read_text() for folder in tmp_path.iterdir()}

    assert folders(live_files.SWITCH, next="1") == {"current": "1"}
    assert folders(live_files.SWITCH, next="1") == {"current": "1"}
    assert folders(live_files.SWITCH_BACK) == {"current": "1"}
    assert folders(live_files.SWITCH, next="2") == {"current": "2", "old": "1"}
    assert folders(live_files.SWITCH, next="2") == {"current": "2", "old": "1"}
    assert folders(live_files.SWITCH_BACK) == {"current": "1", "next": "2"}


def test_only_their_owner_may_read_them(loaded: Callable[..., dict[str, Any]]) -> None:
    """Some are keys; the owner is the user that the container runs as."""
    container = Container(current=None)
    loaded(container)
    modes = {name.removeprefix(LIVE): (entry.mode, entry.uid, entry.gid) for name, entry in container.archive.items()}
    assert modes == {
        "": (0o700, 99, 98),
        "/next": (0o700, 99, 98),
        "/next/clients.map": (0o400, 99, 98),
        "/next/haproxy.cfg": (0o400, 99, 98),
    }


def test_a_user_that_an_engine_did_not_pass_on_is_asked_for_again(loaded: Callable[..., dict[str, Any]]) -> None:
    container = Container(current="first", user=[b"", b"99 98\n"])
    assert loaded(container) == PROPS
    assert container.archive[f"{LIVE}/next"].uid == 99


@pytest.mark.parametrize("printed", [b"", b"99", b" 98"])
def test_without_its_user_a_container_keeps_its_files(loaded: Callable[..., dict[str, Any]], printed: bytes) -> None:
    container = Container(current="first", user=[printed] * live_files.TRIES)
    with pytest.raises(RuntimeError, match=r"dev-edge did not say which user it runs as.* Run `up` again"):
        loaded(container)
    assert container.folders == {"current": "first"}


def test_files_that_are_refused_change_nothing(loaded: Callable[..., dict[str, Any]]) -> None:
    container = Container(current="first", refuses=[CHECK])
    with pytest.raises(
        RuntimeError, match=r"dev-edge refused its new files and still runs with the old ones: line 1: unknown"
    ):
        loaded(container)
    assert container.folders["current"] == "first"


def test_files_that_cannot_be_loaded_are_replaced_by_the_old_ones(loaded: Callable[..., dict[str, Any]]) -> None:
    """Otherwise a restart of the container would try them again."""
    container = Container(current="first", refuses=[RELOAD])
    with pytest.raises(RuntimeError, match="refused its new files"):
        loaded(container)
    assert container.folders["current"] == "first"


def test_a_container_that_only_starts_is_not_told_to_reload(loaded: Callable[..., dict[str, Any]]) -> None:
    container = Container(current=None, refuses=[RELOAD])
    loaded(container)
    assert container.folders == {"current": "new"}


def test_an_engine_that_refuses_says_why(loaded: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError, match="refused: no such container: id-of-edge"):
        loaded(None)


@pytest.mark.parametrize("name", ["container", "files", "check", "reload"])
def test_what_is_loaded_again(name: str) -> None:
    """Whatever has changed; another time limit for the start is no reason."""
    provider = live_files._Provider()
    assert provider.diff("live-files", PROPS, {**PROPS, name: "other"}).changes is True
    assert provider.diff("live-files", PROPS, {**PROPS, "start_seconds": 1}).changes is False
