"""Secrets: nowhere but in the one container that needs them, and there for its own processes only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from infra.workload import LIVE, SECRETS
from tests.deploy.leaks import leaked
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from docker.models.containers import Container
    from testinfra.host import Host

    from tests.deploy.stack import DeployedStack, Part


def expect_no_secret(stack: DeployedStack, place: str, text: str, *, clear: str) -> None:
    """Fail for each real value of the stack's secrets that stands in a text; `clear` says how to clear the place."""
    assert stack.secrets, "the state has no secret at all: nothing was looked for"
    found = {secret.name: secret.renew for secret in leaked(stack.secrets, text)}
    advice = "".join(f"\n  {name}: {renew}" for name, renew in found.items())
    assert not found, f"{place} shows {', '.join(found)}: take each for known, and rotate it.{advice}\nThen {clear}"


def test_docker_inspect_shows_no_secret(stack: DeployedStack, part: Part, container: Container) -> None:
    text = json.dumps(container.attrs)
    expect_no_secret(
        stack, f"docker inspect {part.container}", text, clear=f"make it again: {stack.make_again(part.container)}"
    )


def test_its_image_shows_no_secret(stack: DeployedStack, part: Part, container: Container) -> None:
    """Neither what the image was built by nor what it sets."""
    image = stack.engine.images.get(container.attrs["Image"])
    text = json.dumps([image.attrs, image.history()])
    expect_no_secret(stack, f"the image of {part.container}", text, clear="build the image without it")


def test_its_process_arguments_show_no_secret(stack: DeployedStack, part: Part, container: Container) -> None:
    if container.status != "running":
        pytest.skip(f"{part.container} does not run: see test_it_runs_and_is_healthy")
    text = json.dumps(container.top(ps_args="-ww -eo pid,args"))
    expect_no_secret(stack, f"docker top {part.container}", text, clear="pass it as a file (Workload.secrets)")


def test_its_log_shows_no_secret(stack: DeployedStack, part: Part, container: Container) -> None:
    text = container.logs().decode(errors="replace")
    again = stack.make_again(part.container)
    expect_no_secret(stack, f"the log of {part.container}", text, clear=f"end the log with its container: {again}")


def test_outputs_state_and_config_show_no_secret(stack: DeployedStack) -> None:
    """As Pulumi shows them and keeps them: outputs as [secret], state and config file as ciphertext."""
    config = PROJECT / f"Pulumi.{stack.name}.yaml"
    for place, text in (
        ("pulumi stack output", stack.masked_outputs),
        ("the state", stack.masked_state),
        (config.name, config.read_text(encoding="utf-8") if config.exists() else ""),
    ):
        expect_no_secret(stack, place, text, clear="mark it as a secret where it comes from")


def test_it_has_the_secrets_that_it_needs_and_no_other(stack: DeployedStack, part: Part, inside: Host) -> None:
    for folder in (SECRETS, f"{LIVE}/current"):
        wanted = {path.removeprefix(f"{folder}/") for path in part.files if path.startswith(f"{folder}/")}
        found = set(inside.run("ls -1A -- %s", folder).stdout.splitlines())
        assert found == wanted, (
            f"{folder} in {part.container} has other files. Make it again: {stack.make_again(part.container)}"
        )


def test_its_secrets_are_for_its_own_processes(stack: DeployedStack, part: Part, inside: Host) -> None:
    """What runs in a container may read its secrets and not change them, and nothing else has them.

    The Docker provider uploads files as root's, for all in the container to read: the guarantee is that there only
    the part itself runs. Live files are its user's alone.
    """
    again = f"Make it again: {stack.make_again(part.container)}"
    uid = int(inside.check_output("id -u"))
    mounts = stack.engine.containers.get(part.container).attrs["Mounts"]
    shared = [it["Destination"] for it in mounts if f"{it['Destination']}/".startswith(("/run/", SECRETS, LIVE))]
    assert shared == [], f"{shared} in {part.container} is a volume, which others can mount. {again}"
    processes = inside.run("cat /proc/[0-9]*/status 2>/dev/null").stdout.splitlines()
    users = {int(line.split()[1]) for line in processes if line.startswith("Uid:")}
    assert users == {uid}, f"users {sorted(users)} have processes in {part.container}. {again}"
    for path, mode, owner in _modes(inside, SECRETS, f"{SECRETS}/*"):
        assert owner == 0, f"{path} in {part.container} is not root's, and user {owner} can change it. {again}"
        assert mode & 0o022 == 0, f"{path} in {part.container} can be changed in it: its mode is {mode:o}. {again}"
    folders = (LIVE, f"{LIVE}/current", f"{LIVE}/old")
    for patterns, wanted in ((folders, 0o700), ([f"{folder}/*" for folder in folders[1:]], 0o400)):
        for path, mode, owner in _modes(inside, *patterns):
            assert (mode, owner) == (wanted, uid), (
                f"{path} in {part.container} has mode {mode:o} and belongs to {owner}; it should have {wanted:o} and "
                f"belong to {uid}. {again}"
            )


def _modes(inside: Host, *patterns: str) -> list[tuple[str, int, int]]:
    """Path, mode and owner of what is there of some paths."""
    printed = inside.run(f"stat -c '%a %u %n' {' '.join(patterns)} 2>/dev/null").stdout
    fields = (line.split(" ", 2) for line in printed.splitlines())
    return [(path, int(mode, 8), int(owner)) for mode, owner, path in fields]
