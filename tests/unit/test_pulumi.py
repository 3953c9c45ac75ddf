"""`./pulumiw`: what it says and keeps beside what Pulumi does, with a program in Pulumi's place."""

from __future__ import annotations

import json
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from infra.placement import leftovers
from toolchain import pulumi

if TYPE_CHECKING:
    from pathlib import Path

PULUMI = """#!/bin/sh
case "$*" in
    "stack --show-name --non-interactive") test -e selected || { echo "error: no stack selected; …" >&2; exit 1; } ;;
    "stack rm "*) rm "Pulumi.$3.yaml" ;;
    "stack rename "*) mv Pulumi.dev.yaml "Pulumi.$3.yaml" ;;
    *) exit 255 ;;
esac
"""
CONFIG = "# A comment that must survive.\nconfig:\n  any:port: 4000\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that ships the config file of stack dev, with that of a stack of the user's own beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    for stack in ("dev", "own"):
        (folder / f"Pulumi.{stack}.yaml").write_text(CONFIG)
    for command in (["init", "--quiet"], ["add", "Pulumi.dev.yaml"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (tmp_path / "pulumi").write_text(PULUMI)
    (tmp_path / "pulumi").chmod(0o755)
    monkeypatch.setattr(pulumi, "PROJECT", folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return folder


def run(project: Path, *arguments: str) -> int:
    return pulumi.run(arguments, tools=project.parent)


def test_a_user_without_a_stack_is_told_how_to_get_one(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With the command's own exit code, even before any `make up`."""
    assert run(project, "preview") == 255
    said = capfd.readouterr().err
    assert said.startswith("No stack is selected.")
    assert "make up" in said
    assert "./pulumiw stack select --create dev" in said


@pytest.mark.parametrize("named", [["--stack", "dev"], ["--stack=dev"], ["-s", "dev"]])
def test_who_names_a_stack_needs_none_selected(
    project: Path, capfd: pytest.CaptureFixture[str], named: list[str]
) -> None:
    assert run(project, "preview", *named) == 255
    assert capfd.readouterr().err == ""


def test_what_fails_with_a_stack_is_pulumis_to_say(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "selected").touch()
    assert run(project, "preview") == 255
    assert capfd.readouterr().err == ""


def test_the_projects_file_outlives_its_stack(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As it is, with everything set in it since. The file of the user's own stack goes, as Pulumi says."""
    changed = f"{CONFIG}  any:key: 1\n"
    (project / "Pulumi.dev.yaml").write_text(changed)
    assert run(project, "stack", "rm", "dev") == run(project, "stack", "rm", "own") == 0
    assert [path.name for path in project.glob("Pulumi.*")] == ["Pulumi.dev.yaml"]
    assert (project / "Pulumi.dev.yaml").read_text() == changed
    assert capfd.readouterr().err == (
        "Pulumi.dev.yaml stays: it is the project's, and the next stack of that name starts with it.\n"
    )


@pytest.mark.parametrize("git", ["", "#!/bin/sh\nexit 128\n"], ids=["there is none", "it has no repository"])
def test_a_file_that_git_cannot_tell_of_stays(project: Path, monkeypatch: pytest.MonkeyPatch, git: str) -> None:
    """For example in a copy of the project without its history."""
    programs = project.parent / "programs"
    programs.mkdir()
    (programs / "rm").symlink_to("/bin/rm")
    if git:
        (programs / "git").write_text(git)
        (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    run(project, "stack", "rm", "dev")
    assert (project / "Pulumi.dev.yaml").read_text() == CONFIG


def test_a_file_goes_with_its_stack_to_another_name(project: Path) -> None:
    run(project, "stack", "rename", "other")
    assert sorted(path.name for path in project.glob("Pulumi.*")) == ["Pulumi.other.yaml", "Pulumi.own.yaml"]


@pytest.mark.parametrize(
    ("command", "added"),
    [
        ("up --yes", ["--refresh"]),
        ("destroy", ["--refresh"]),
        ("-s dev up", ["--refresh"]),
        ("up --refresh=false", []),
        ("up -r", []),
        ("preview", []),
        ("config set up now", []),
        ("", []),
    ],
)
def test_what_changes_the_stack_after_a_kill_looks_at_what_is_there_first(
    project: Path, capfd: pytest.CaptureFixture[str], command: str, added: list[str]
) -> None:
    """Once: a container may have ended before the state knew that."""
    (project.parent / "pulumi").write_text('#!/bin/sh\n[ "$1" = stack ] && exit 1\necho "asked: $*"\n')
    leave_lock(project)
    for options in (added, []):
        assert run(project, *command.split()) == 0
        assert capfd.readouterr().out == f"asked: {' '.join([command, *options])}\n"


def leave_lock(project: Path) -> None:
    """Leave the lock of a run that was killed."""
    with subprocess.Popen(["true"]) as ended:
        pass
    locks = project.parent / "state/llm-infrastructure/state/.pulumi/locks"
    locks.mkdir(parents=True)
    lock = {"pid": ended.pid, "hostname": socket.gethostname(), "timestamp": "2026-01-01T00:00:00Z"}
    (locks / "dead.json").write_text(json.dumps(lock))


def test_an_up_after_a_kill_removes_what_the_state_does_not_know(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A Swarm's secrets and configs, by the stack's label. What Pulumi still has to delete is known to the state."""
    outputs = {"host": "unix:///engine", "label": "identity", "identity": "me"}
    resources = [
        {"type": "pulumi:pulumi:Stack"},
        {"type": "pulumi-python:dynamic/engine:EngineGuard", "id": "guard", "outputs": outputs},
        {"type": "docker:index/secret:Secret", "id": "one"},
        {"type": "docker:index/secret:Secret", "id": "two", "delete": True},
    ]
    (project.parent / "state.json").write_text(json.dumps({"deployment": {"resources": resources}}))
    export = f'[ "$*" = "stack export --stack dev" ] && exec cat {project.parent}/state.json'
    (project.parent / "pulumi").write_text(f'#!/bin/sh\n{export}\n[ "$1" != stack ]\n')
    asked: list[tuple[str, str, set[str]]] = []

    def remove(host: str, label: str, known: set[str]) -> list[str]:
        asked.append((host, label, known))
        return ["edge-clients.map-0123abc"]

    monkeypatch.setattr(leftovers, "remove_leftovers", remove)
    leave_lock(project)
    for _ in range(2):  # of which the second follows no kill
        assert run(project, "up", "-s", "dev") == 0
    assert asked == [("unix:///engine", "identity=me", {"guard", "one", "two"})]
    assert "edge-clients.map-0123abc" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "stack"),
    [
        ("up --yes", "selected"),
        ("update", "selected"),
        ("up -s dev", "dev"),
        ("-s dev up", "dev"),
        ("up --stack=dev -y", "dev"),
        ("preview", None),
        ("config set up now", None),
        ("destroy", None),
    ],
)
def test_the_environment_file_follows_every_up(project: Path, command: str, stack: str | None) -> None:
    """It is that of the stack that was brought up, which need not be the selected one."""
    outputs = '{"litellmUrl": "https://%s:4000", "litellmApiKey": "sk-1"}'
    (project.parent / "pulumi").write_text(
        "#!/bin/sh\n"
        '[ "$1 $2" = "stack output" ] || exit 0\n'
        f"""printf '{outputs}' "$(case "$*" in *"--stack dev"*) echo dev;; *) echo selected;; esac)"\n"""
    )
    assert run(project, *command.split()) == 0
    found = project / ".env"
    assert found.exists() is (stack is not None)
    if stack is not None:
        assert found.read_text() == f"LITELLM_URL=https://{stack}:4000\nLITELLM_API_KEY=sk-1\n"


def test_an_up_that_failed_leaves_the_environment_file(project: Path) -> None:
    (project.parent / "pulumi").write_text('#!/bin/sh\n[ "$1 $2" = "stack output" ] && echo {} || exit 3\n')
    (project / ".env").write_text("LITELLM_URL=http://localhost:4000\n")
    assert run(project, "up", "-s", "dev") == 3
    assert (project / ".env").read_text() == "LITELLM_URL=http://localhost:4000\n"
