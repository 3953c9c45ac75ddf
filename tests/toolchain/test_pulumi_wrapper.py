"""`./pulumiw`: the environment that Pulumi gets, what stays of a run in the project's files, and how a run ends."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.stack_config import PROJECT
from toolchain import operating_system, pulumi, tools
from toolchain.progress import SetupError, Steps

SECRET = "the secret of the stack"
CONFIG = """# A comment that must survive.
config:
  trivial:plain: true
  trivial:port: 4000
"""
PROGRAM = f"""
import time
from pathlib import Path
import pulumi

config = pulumi.Config()
pulumi.export("secret", pulumi.Output.secret({SECRET!r}))
pulumi.export("key", config.get_secret("key"))
if not pulumi.runtime.is_dry_run() and (seconds := config.get_float("sleep")):
    Path("started").touch()
    time.sleep(seconds)
"""


class User:
    """A user with a home of their own and clones of a trivial project that has the project's wrapper."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.own = home / ".local/state/llm-infrastructure"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PULUMI_", "XDG_"))}
        self.environment = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(operating_system.CACHE.parent)}
        (home / ".pulumi").mkdir(parents=True)
        plugins = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi") / "plugins"
        if plugins.exists():
            (home / ".pulumi/plugins").symlink_to(plugins)

    def clone(self, name: str = "clone") -> Clone:
        folder = self.home / name
        for package in ("engine", "toolchain"):
            shutil.copytree(PROJECT / package, folder / package)
        (folder / ".venv").symlink_to(pulumi.VIRTUAL_ENVIRONMENT)
        (folder / "Pulumi.yaml").write_text("name: trivial\nruntime: {name: python, options: {virtualenv: .venv}}\n")
        (folder / "Pulumi.dev.yaml").write_text(CONFIG)
        (folder / "__main__.py").write_text(PROGRAM)
        return Clone(folder, self.environment)


class Clone:
    """A clone, in which Pulumi is run by the wrapper."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {**environment, "PULUMI_STACK": "dev"}
        self.config = folder / "Pulumi.dev.yaml"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "toolchain.pulumi", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def pulumi(self, *arguments: str, typed: str = "") -> str:
        """Return what Pulumi printed, after it ended well."""
        with self.start(*arguments, "--non-interactive") as process:
            printed, _ = process.communicate(typed)
        assert process.returncode == 0, printed
        return printed.strip()

    def up(self) -> str:
        return self.pulumi("up", "--yes", "--skip-preview")

    def wait_until_started(self) -> None:
        """Wait until the program that `up` runs has begun to sleep."""
        deadline = time.monotonic() + 60
        while not (self.folder / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (self.folder / "started").unlink()


class Terminal:
    """A terminal in which a command runs, with a person before it."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            # Not xterm: Pulumi would ask it for its background, and wait for the answer.
            os.execve(command[0], command, {**environment, "TERM": "screen"})  # noqa: S606
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def wait_for(self, text: str) -> None:
        while text not in self.shown:
            assert self._read(), self.shown

    def end(self) -> int:
        """Wait for the command's end, and return its exit code."""
        while self._read():
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        ready, _, _ = select.select([self.descriptor], [], [], 60)
        assert ready, self.shown
        try:
            read = os.read(self.descriptor, 4096)
        except OSError:  # all who could write are gone
            return False
        self.shown += read.decode(errors="replace")
        return bool(read)


@pytest.fixture
def user(tmp_path: Path) -> User:
    with Steps() as steps:
        tools.ensure(steps)
    return User(tmp_path / "home with a space")


def terminal(clone: Clone, *arguments: str) -> Terminal:
    return Terminal([sys.executable, "-m", "toolchain.pulumi", *arguments], clone.folder, clone.environment)


def test_clone_stays_clean(user: User) -> None:
    """A stack without config secrets leaves the files of a clone alone, and every other clone can read its state."""
    first, second = user.clone("first"), user.clone("second")

    first.pulumi("stack", "init", "dev")
    first.up()
    first.pulumi("preview")
    first.up()
    assert second.pulumi("stack", "output", "secret", "--show-secrets") == SECRET
    second.up()
    second.pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes")
    assert second.pulumi("config", "get", "port") == "4000"

    for clone in (first, second):
        assert clone.config.read_text() == CONFIG
        assert sorted(path.name for path in clone.folder.glob("Pulumi*")) == ["Pulumi.dev.yaml", "Pulumi.yaml"]
    assert all(SECRET not in path.read_text() for path in user.own.rglob("*.json*"))


def test_config_secret_keeps_its_salt(user: User) -> None:
    """A secret that is set in the config stays readable there, for this clone and for one that gets its file."""
    clone, other = user.clone(), user.clone("other")
    clone.pulumi("stack", "init", "dev")
    clone.up()

    clone.pulumi("config", "set", "--secret", "key", typed="sk-typed")

    text = clone.config.read_text()
    assert "encryptionsalt: " in text
    assert "sk-typed" not in text
    assert text.startswith("# A comment that must survive.")
    shutil.copy(clone.config, other.config)
    assert other.pulumi("config", "get", "key") == "sk-typed"
    other.up()
    assert other.pulumi("stack", "output", "key", "--show-secrets") == "sk-typed"
    assert other.config.read_text() == text


def test_file_that_a_run_makes_for_the_salt_alone_goes(user: User) -> None:
    """A stack without a config file of its own gets none."""
    clone = user.clone()
    clone.config.unlink()
    clone.pulumi("stack", "init", "dev")
    clone.up()
    assert not clone.config.exists()


def test_other_changes_stay(user: User) -> None:
    """What a command is told to write is written."""
    clone = user.clone()
    clone.pulumi("stack", "init", "dev")
    clone.pulumi("config", "set", "port", "4001")
    assert clone.pulumi("config", "get", "port") == "4001"


def test_without_a_stack_it_is_said_how_to_get_one(user: User) -> None:
    """Until one is selected; after that, Pulumi itself reports failures."""
    clone = user.clone()
    del clone.environment["PULUMI_STACK"]
    advice = "./pulumiw stack select --create dev"
    with clone.start("preview", "--non-interactive") as process:
        assert advice in process.communicate()[0]
    clone.pulumi("stack", "select", "--create", "dev")
    with clone.start("config", "get", "nothing") as process:
        assert advice not in process.communicate()[0]
    assert process.returncode != 0


def test_a_stack_that_is_removed_leaves_the_projects_file(user: User) -> None:
    """Without the salt. The file of a stack that git does not track is removed."""
    clone = user.clone()
    for command in (["init", "--quiet"], ["add", "Pulumi.dev.yaml"]):
        subprocess.run(["git", *command], cwd=clone.folder, check=True)
    own = clone.folder / "Pulumi.own.yaml"
    own.write_text(CONFIG)
    for stack in ("dev", "own"):
        clone.pulumi("stack", "init", stack)
        assert f"Stack '{stack}' has been removed!" in clone.pulumi("stack", "rm", "--yes", stack)
    assert clone.config.read_text() == CONFIG
    assert not own.exists()


def test_own_state_and_passphrase(user: User) -> None:
    """Only the user can read state and passphrase; of several concurrent first runs, one creates the passphrase."""
    clone = user.clone()
    runs = [clone.start("whoami", "--non-interactive") for _ in range(4)]
    printed = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0, 0], printed

    assert stat.S_IMODE(user.own.stat().st_mode) == 0o700
    assert stat.S_IMODE((user.own / "state").stat().st_mode) == 0o700
    passphrase = user.own / "passphrase"
    assert stat.S_IMODE(passphrase.stat().st_mode) == 0o600
    assert len(passphrase.read_text()) >= 32
    assert sorted(path.name for path in user.own.iterdir()) == ["passphrase", "state"]


def test_lost_passphrase_is_not_replaced(user: User) -> None:
    """A new passphrase beside a state that was made with another would only hide the loss."""
    clone = user.clone()
    clone.pulumi("stack", "init", "dev")
    (user.own / "passphrase").unlink()

    with clone.start("preview") as process:
        printed, _ = process.communicate()

    assert process.returncode == 1
    assert "restore it from a backup" in printed
    assert not (user.own / "passphrase").exists()


def test_your_own_settings_win(user: User, tmp_path: Path) -> None:
    """A state and a passphrase that the environment names are used, and none are made."""
    clone = user.clone()
    (tmp_path / "state").mkdir()
    clone.environment |= {
        "PULUMI_BACKEND_URL": (tmp_path / "state").as_uri(),
        "PULUMI_CONFIG_PASSPHRASE": "my own",
    }
    clone.pulumi("stack", "init", "dev")
    assert list((tmp_path / "state").rglob("dev.json"))
    assert list(user.own.iterdir()) == []


def test_lock_of_a_killed_run_goes(user: User) -> None:
    """Only the lock of a dead process of this machine; those of live runs and other machines stay."""
    clone = user.clone()
    clone.pulumi("stack", "init", "dev")
    with subprocess.Popen(["true"]) as ended:
        pass
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    locks = user.own / "state/.pulumi/locks/organization/any/dev"
    locks.mkdir(parents=True)
    kinds = {
        "dead": (ended.pid, socket.gethostname()),
        "zombie": (zombie.pid, socket.gethostname()),
        "alive": (os.getpid(), socket.gethostname()),
        "elsewhere": (ended.pid, "another-machine"),
    }
    for name, (pid, host) in kinds.items():
        lock = {"pid": pid, "username": "u", "hostname": host, "timestamp": "2026-01-01T00:00:00Z"}
        (locks / f"{name}.json").write_text(json.dumps(lock))
    (locks / "dead.json.attrs").write_text("{}")
    (locks / "unreadable.json").write_text("{")

    with clone.start("whoami") as process:
        printed, _ = process.communicate()
    zombie.wait()

    assert f"A run of Pulumi was killed here (stack dev, process {ended.pid}," in printed
    assert sorted(lock.stem for lock in locks.iterdir()) == ["alive", "elsewhere", "unreadable"]


def test_a_state_is_read_though_pulumi_was_killed_while_it_wrote_it(user: User) -> None:
    clone = user.clone()
    clone.pulumi("stack", "init", "dev")
    next(user.own.rglob("dev.json.attrs")).write_text("")
    clone.pulumi("stack", "export")


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's programs come first, and nothing of the user's Python gets in between."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    monkeypatch.setenv("PATH", "/usr/bin")

    environment = pulumi.environment(tmp_path / "tools")

    assert environment["PATH"] == f"{tmp_path}/tools:{PROJECT}/.venv/bin:/usr/bin"
    assert environment["VIRTUAL_ENV"] == f"{PROJECT}/.venv"
    assert not {"PYTHONPATH", "PYTHONHOME"} & environment.keys()


def test_exit_code(user: User) -> None:
    """The exit code is Pulumi's, which has a separate one for a missing stack."""
    clone = user.clone()
    with clone.start("stack", "select", "nowhere", "--non-interactive") as process:
        process.communicate()
    assert process.returncode == 6


def test_prompt(user: User) -> None:
    """`up` on a terminal asks, and takes the answer."""
    clone = user.clone()
    clone.pulumi("stack", "init", "dev")

    screen = terminal(clone, "up")
    screen.wait_for("Do you want to perform this update?")
    screen.type("yes\r")

    assert screen.end() == 0, screen.shown
    assert clone.pulumi("stack", "output", "secret", "--show-secrets") == SECRET


def test_ctrl_c_cancels_once(user: User) -> None:
    """Ctrl-C makes Pulumi cancel cleanly: the lock is released, the config is clean, and the next `up` continues."""
    clone = user.clone()
    clone.pulumi("stack", "init", "dev")
    screen = terminal(clone, "up", "--yes", "--skip-preview", "--config", "sleep=60")
    clone.wait_until_started()

    screen.type("\x03")

    assert screen.end() == 1
    assert "cancelling" in screen.shown
    assert "^C received; terminating" not in screen.shown
    clone.config.write_text(CONFIG)
    clone.up()
    assert clone.config.read_text() == CONFIG


def test_sigterm_is_forwarded(user: User) -> None:
    """SIGTERM to the wrapper makes Pulumi cancel cleanly, and the wrapper waits for it."""
    clone = user.clone()
    clone.config.write_text(f"{CONFIG}  trivial:sleep: 60\n")
    before = clone.config.read_text()
    clone.pulumi("stack", "init", "dev")
    with clone.start("up", "--yes", "--skip-preview", "--non-interactive") as process:
        clone.wait_until_started()
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate()

    assert process.returncode == 1
    assert "SIGTERM received; cancelling" in printed
    assert "SIGTERM received; terminating" not in printed
    assert clone.config.read_text() == before
    clone.config.write_text(CONFIG)
    clone.up()


def test_pulumiw_runs_from_anywhere(tmp_path: Path) -> None:
    """The script finds its project from any folder and through a link."""
    link = tmp_path / "pulumiw"
    link.symlink_to(PROJECT / "pulumiw")
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    printed = subprocess.check_output([link, "stack", "ls", "--json"], cwd="/", env=environment, text=True)
    assert printed.strip() == "[]"


def test_lost_passphrase_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "state/.pulumi/stacks/project").mkdir(parents=True)
    (tmp_path / "state/.pulumi/stacks/project/dev.json").touch()
    with pytest.raises(SetupError, match="passphrase is missing"):
        pulumi._passphrase_file(tmp_path)
