"""Secrets are only in the container that needs them, and only for its own processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import docker
import pytest

from infra.workload import LIVE, SECRETS
from tests.deploy.leaks import leaked
from tests.deploy.test_containers import processes
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from docker.models.containers import Container
    from testinfra.host import Host

    from tests.deploy.stack import DeployedStack, Instance, Part


def expect_no_secret(stack: DeployedStack, place: str, text: str, *, clear: str) -> None:
    """Fail for each real value of the stack's secrets that is in a text; `clear` says how to clear the place."""
    assert stack.secrets, "the state has no secret at all: nothing was looked for"
    found = {secret.name: secret.renew for secret in leaked(stack.secrets, text)}
    advice = "".join(f"\n  {name}: {renew}" for name, renew in found.items())
    assert not found, f"{place} shows {', '.join(found)}: treat each as known, and rotate it.{advice}\nThen {clear}"


def test_docker_inspect_shows_no_secret(stack: DeployedStack, instance: Instance, container: Container) -> None:
    expect_no_secret(
        stack,
        f"docker inspect {instance.container}",
        json.dumps(container.attrs),
        clear=f"recreate it: {stack.recreate(instance.part)}",
    )


def test_its_image_shows_no_secret(stack: DeployedStack, instance: Instance, container: Container) -> None:
    """Neither in its build history nor in what it sets."""
    image = stack.engine_of(instance).images.get(container.attrs["Image"])
    text = json.dumps([image.attrs, image.history()])
    expect_no_secret(stack, f"the image of {instance}", text, clear="build the image without it")


def test_its_process_arguments_show_no_secret(stack: DeployedStack, instance: Instance, running: Container) -> None:
    text = json.dumps(running.top(ps_args="-ww -eo pid,args"))
    expect_no_secret(stack, f"docker top {instance.container}", text, clear="pass it as a file (Workload.secrets)")


def test_its_log_shows_no_secret(stack: DeployedStack, part: Part) -> None:
    try:
        text, missing = stack.log(part)
    except docker.errors.NotFound:
        pytest.skip(f"{part.runs_as} is not there: see {stack.IS_THERE}")
    expect_no_secret(stack, f"the log of {part.runs_as}", text, clear=stack.end_log(part))
    if missing:
        pytest.skip(f"the log of {part.runs_as} on {missing} cannot be read now; elsewhere no secret is in it")


def test_outputs_state_and_config_show_no_secret(stack: DeployedStack) -> None:
    """As Pulumi shows them and keeps them: outputs as [secret], state and config file as ciphertext."""
    config = PROJECT / f"Pulumi.{stack.name}.yaml"
    for place, text in (
        ("pulumi stack output", stack.masked_outputs),
        ("the state", stack.masked_state),
        (config.name, config.read_text(encoding="utf-8") if config.exists() else ""),
    ):
        expect_no_secret(stack, place, text, clear="mark it as a secret where it comes from")


def test_it_has_the_secrets_that_it_needs_and_no_other(
    stack: DeployedStack, instance: Instance, inside: Host
) -> None:
    for folder in (SECRETS, f"{LIVE}/current"):
        paths = instance.part.files
        wanted = {path.removeprefix(f"{folder}/") for path in paths if path.startswith(f"{folder}/")}
        files = inside.run("find %s ! -type d", folder).stdout.splitlines()
        found = {file.removeprefix(f"{folder}/") for file in files}
        assert found == wanted, (
            f"{folder} in {instance} has other files. Recreate it: {stack.recreate(instance.part)}"
        )


def test_its_secrets_are_for_its_own_processes(
    stack: DeployedStack, instance: Instance, running: Container, inside: Host
) -> None:
    """A container's processes can read its secrets but not change them, and nothing else can read them.

    On one host the Docker provider uploads files as root's, for all in the container to read: the guarantee is that
    there only the part itself runs. Live files, and all on a Swarm, are its user's alone.
    """
    again = f"Recreate it: {stack.recreate(instance.part)}"
    uid = int(inside.check_output("id -u"))
    mounts = running.attrs["Mounts"]
    shared = [it["Destination"] for it in mounts if f"{it['Destination']}/".startswith(("/run/", SECRETS, LIVE))]
    assert shared == [], f"{shared} in {instance} is a volume, which others can mount. {again}"
    users = {int(process["Uid"].split()[0]) for process in processes(inside)}
    assert users == {uid}, f"users {sorted(users)} have processes in {instance}. {again}"
    unchangeable, own = stack.modes(instance.part)
    for path, mode, owner in _modes(inside, *unchangeable):
        assert owner == 0, f"{path} in {instance} is not root's, and user {owner} can change it. {again}"
        assert mode & 0o022 == 0, f"{path} in {instance} can be changed in it: its mode is {mode:o}. {again}"
    for pattern, wanted in own.items():
        for path, mode, owner in _modes(inside, pattern):
            assert (mode, owner) == (wanted, uid), (
                f"{path} in {instance} has mode {mode:o} and belongs to {owner}; it should have {wanted:o} and "
                f"belong to {uid}. {again}"
            )


def _modes(inside: Host, *patterns: str) -> list[tuple[str, int, int]]:
    """Path, mode and owner of what is there of some paths."""
    printed = inside.run(f"stat -c '%a %u %n' {' '.join(patterns)} 2>/dev/null").stdout
    fields = (line.split(" ", 2) for line in printed.splitlines())
    return [(path, int(mode, 8), int(owner)) for mode, owner, path in fields]
