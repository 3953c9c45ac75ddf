"""The project's virtual environment, without making one."""

from __future__ import annotations

import ast
import fcntl
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from toolchain import environment

PROJECT = environment.PROJECT


def test_an_active_environment_can_be_recreated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python3` is then its own interpreter, which must still be there to run the set-up."""
    interpreter = tmp_path / ".venv/bin/python"
    interpreter.parent.mkdir(parents=True)
    interpreter.touch()
    commands: list[tuple[object, ...]] = []

    def run(*command: object) -> None:
        assert Path(str(command[0])).exists()
        commands.append(command)

    monkeypatch.setattr(environment, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(environment, "run", run)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    environment.main()
    assert commands[0] == (str(interpreter), "-m", "venv", "--clear", tmp_path / ".venv")
    assert (tmp_path / ".venv/made-from").read_text() == environment.fingerprint()


def test_an_environment_that_lost_a_package_is_recreated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example after `uv sync`, which removes packages that only extras need. Additional packages are fine."""
    packages = tmp_path / ".venv/lib/python3.11/site-packages"
    made: list[tuple[object, ...]] = []

    def run(*command: object) -> None:
        made.append(command)
        for name in ("pulumi-3.272.0", "openai-3.57.0"):
            (packages / f"{name}.dist-info").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(environment, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(environment, "run", run)
    environment.main()
    commands = len(made)
    (packages / "ipython-9.0.0.dist-info").mkdir()
    environment.main()
    assert len(made) == commands
    (packages / "pulumi-3.272.0.dist-info").rmdir()
    environment.main()
    assert len(made) == 2 * commands


@pytest.mark.parametrize(("there", "chosen"), [(True, ".venv/bin/python"), (False, "python3")])
def test_the_interpreter_of_an_environment_is_kept(tmp_path: Path, there: bool, chosen: str) -> None:  # noqa: FBT001
    """`make up PYTHON=python3.13` once is enough: ./pulumiw and make go on with the environment's own interpreter."""
    for name in ("pulumiw", "Makefile"):
        shutil.copy(environment.PROJECT / name, tmp_path / name)
    stand_in = '#!/bin/sh\necho "$0 $1"\nexit 1\n'  # tells its name, and that nothing is to go on
    for name in ("python3", *([".venv/bin/python"] if there else [])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(stand_in)
        (tmp_path / name).chmod(0o755)
    for command in ([str(tmp_path / "pulumiw"), "preview"], ["make", "environment"]):
        ran = subprocess.run(
            command,
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            check=False,
            capture_output=True,
            text=True,
        )
        assert ran.stdout.split()[:2] == [
            chosen if there else str(tmp_path / chosen),
            "toolchain/environment.py",
        ], ran.stderr


def test_an_older_python_can_read_it() -> None:
    """Users of the oldest Python still around get its message, which names the Python that is needed."""
    source = Path(environment.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 6))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]


@pytest.mark.parametrize(
    ("printed", "named"),
    [
        ("Retrying (Retry(total=0)) after connection broken by 'ProxyError'\nNo matching distribution", "be reached"),
        ("ERROR: No matching distribution found for annotated-doc", "does not have a locked package"),
        ("The virtual environment was not created, as ensurepip is not available", "apt-get install python3-venv"),
    ],
)
def test_a_failure_shows_its_end_and_the_next_step(printed: str, named: str) -> None:
    """If an index cannot be reached, no package is said to be missing from it."""
    program = f"import sys; print('\\n'.join(map(str, range(50)))); print({printed!r}); sys.exit(1)"
    with pytest.raises(SystemExit) as ended:
        environment.run(sys.executable, "-c", program)
    message = str(ended.value)
    assert printed in message
    assert named in message
    assert "\n49\n" in message
    assert "\n1\n" not in message


def test_a_step_is_asked_nothing() -> None:
    """Nobody would see a question, such as for an index's password: there is no input to read an answer from."""
    environment.run(sys.executable, "-c", "import sys; sys.exit(sys.stdin.read() != '')")


def test_an_interrupt_is_not_an_error(tmp_path: Path) -> None:
    """After Ctrl-C the user gets one line, and no traceback."""
    for name in ("toolchain/environment.py", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(environment.PROJECT / name, tmp_path / name)
    lock = (tmp_path / "pyproject.toml").open()
    fcntl.flock(lock, fcntl.LOCK_EX)
    with (
        lock,
        subprocess.Popen(
            [sys.executable, tmp_path / "toolchain/environment.py"], stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stderr is not None
        assert "waiting for another run" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert "Interrupted" in (said := process.stderr.read())
        assert "Traceback" not in said
    assert process.returncode == 130


def test_a_second_run_says_that_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two concurrent runs make one environment, and the second one says why it waits."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "any"\n')
    (tmp_path / "requirements.lock").touch()
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    monkeypatch.setattr(environment, "ENVIRONMENT", tmp_path / ".venv")
    (tmp_path / ".venv/made-from").write_text(environment.fingerprint())
    second = threading.Thread(target=environment.main)
    with (tmp_path / "pyproject.toml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second.start()
        said = ""
        while "waiting for another run" not in said:
            assert second.is_alive()
            second.join(0.01)
            said += capsys.readouterr().err
    second.join()


def test_an_installed_package_has_its_migrations(tmp_path: Path) -> None:
    """As it is built for an index, without a clone beside it."""
    source = tmp_path / "source"
    for name in ("app", "console", "migrations"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    shutil.rmtree(source)
    installed = tmp_path / "site-packages"
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, installed, "zip")
    look = (
        "from app import migrations; from console import cli; "
        "print(cli.__file__, *(each.file for each in migrations.read(cli.FOLDER)), sep='\\n')"
    )
    asked = subprocess.run(
        [sys.executable, "-c", look], cwd=installed, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert asked[0] == str(installed / "console/cli.py")
    assert asked[1:] == sorted(file.name for file in (PROJECT / "migrations").glob("*.sql"))
