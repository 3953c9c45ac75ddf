"""`make purge`: removes a stack with its data, and with the last one what the set-up left on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING, Any

import docker

from engine.connection import UNREACHABLE, connect
from engine.own_folder import litellm_backups, own_folder
from toolchain import PROJECT, environment_file, image_record, operating_system
from toolchain.progress import SetupError
from toolchain.pulumi import state_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from toolchain.progress import Step, Steps

ENVIRONMENT_FILE = PROJECT / ".env"
MIGRATIONS, ROLES = "Migrations", "DatabaseRoles"
"""Resources that tell where the app's database is: in every stack, and if it is in the stack's own Postgres."""
SCHEMA, LOGIN = "LiteLLMSchema", "LiteLLMLogin"
"""The same of LiteLLM's."""
STAYS = "{database} is on a server of your own: it stays as it is, with all that is in it."
NOTICE = """\
This removes stack {stack}, with its database and secrets, from {host}.
This cannot be undone: `.venv/bin/llmctl backup FILE` saves the app's database.
docs/litellm-database.md says how to save LiteLLM's, if the stack has it. Its earlier backups are removed too.
Purging the last stack also removes the tools and images that were made here, and the passphrase."""


def purge(steps: Steps, *, project: str, stack: str, host: str, pulumi: Callable[..., str]) -> None:
    """Ask for the stack's name, then remove everything that belongs to it. Other stacks keep what they use.

    `host` is the stack's engine; `pulumi` runs Pulumi in a step, with arguments. Raises SetupError.
    """
    state = _exported(stack)
    steps.console.print(NOTICE.format(stack=stack, host=host), markup=False)
    for database in _elsewhere(state) if state else ():
        steps.console.print(STAYS.format(database=database), markup=False)
    if steps.read("Type the stack's name to continue: ") != stack:
        raise SetupError(
            f"that is not the name of stack {stack}: nothing was changed", fix="type the name exactly as shown"
        )
    if state is not None:
        with steps.step(f"pulumi destroy, stack {stack}") as step:
            pulumi(step, "state", "unprotect", "--all", "--yes", "--stack", stack)
            pulumi(step, "destroy", "--refresh", "--yes", "--skip-preview", "--stack", stack)
        with steps.step(f"What is left on {host}") as step:
            _clear_engine(step, host, state)
        with steps.step(f"The state of stack {stack}") as step:
            pulumi(step, "stack", "rm", "--yes", "--stack", stack)
            _forget_outputs(state)
    _remove_history(project, stack)
    shutil.rmtree(litellm_backups(stack), ignore_errors=True)
    if others := _stacks():
        steps.console.print(f"Tools, images and passphrase are kept for {', '.join(others)}.", markup=False)
        return
    with steps.step("Images, tools and passphrase") as step:
        _clear_images(step, host)
        shutil.rmtree(operating_system.CACHE, ignore_errors=True)
        shutil.rmtree(own_folder(), ignore_errors=True)
    steps.console.print(f"Nothing is left but the project itself: rm -r {PROJECT}", markup=False)


def _asked(*arguments: str) -> Any:  # noqa: ANN401 -- what Pulumi answers
    """What Pulumi prints as JSON; None if it fails, after it has printed why."""
    command = [str(PROJECT / "pulumiw"), *arguments, "--non-interactive"]
    asked = subprocess.run(command, check=False, capture_output=True, text=True)
    if asked.returncode == 0:
        return json.loads(asked.stdout)
    if "no stack named" in asked.stderr:
        return None
    raise SetupError(
        f"Pulumi does not answer: {asked.stderr.strip()}", fix="fix that, then run the same command again"
    )


def _exported(stack: str) -> dict[str, Any] | None:
    """A stack's state; None if there is no such stack."""
    exported: dict[str, Any] | None = _asked("stack", "export", "--stack", stack)
    return exported


def _stacks() -> list[str]:
    """The names of the remaining stacks, in Pulumi's present backend and in the user's own folder."""
    own = (own_folder() / "state/.pulumi/stacks").rglob("*.json")
    return sorted({each["name"] for each in _asked("stack", "ls", "--json")} | {path.stem for path in own})


def _outputs(state: dict[str, Any], kind: str) -> dict[str, Any]:
    """The outputs of a state's only resource of a kind; empty if there is none."""
    resources = state["deployment"].get("resources") or []
    return next((each.get("outputs", {}) for each in resources if each["type"].endswith(kind)), {})


def _elsewhere(state: dict[str, Any]) -> Iterator[str]:
    """The stack's databases that are not in its own Postgres."""
    kinds = {str(each["type"]).rpartition(":")[2] for each in state["deployment"].get("resources") or ()}
    if {MIGRATIONS, ROLES} & kinds == {MIGRATIONS}:
        yield "The app's database, that of databaseUrl,"
    if {SCHEMA, LOGIN} & kinds == {SCHEMA}:  # which has the server and the database's name, without user and password
        yield f"LiteLLM's database {_outputs(state, f':{SCHEMA}')['database']}"


def _clear_engine(step: Step, host: str, state: dict[str, Any]) -> None:
    """Remove what has the stack's identity: volumes that were kept, and what a killed `up` left."""
    guard = _outputs(state, ":EngineGuard")
    if not guard.get("identity"):
        return
    label = f"{guard['label']}={guard['identity']}"
    try:
        with closing(connect(host)) as client:
            _remove_labelled(step, client, {"label": label})
    except UNREACHABLE as error:
        raise SetupError(
            f"some things could not be removed from {host}: {error}", fix="run the same command again"
        ) from error


def _remove_labelled(step: Step, client: docker.DockerClient, label: dict[str, Any]) -> None:
    if client.info()["Swarm"].get("ControlAvailable"):
        for service in client.services.list(filters=label):
            step.note(str(service.name))
            service.remove()  # type: ignore[no-untyped-call]
        for secret in client.secrets.list(filters=label):
            step.note(str(secret.name))
            secret.remove()
    for container in client.containers.list(all=True, filters=label):
        step.note(str(container.name))
        container.remove(force=True)
    for network in client.networks.list(filters=label):
        step.note(str(network.name))
        network.remove()
    for volume in client.volumes.list(filters=label):
        step.note(str(volume.name))
        volume.remove()


def _forget_outputs(state: dict[str, Any]) -> None:
    """Take the stack's address and keys out of `.env`, if they are in it."""
    url = _outputs(state, "pulumi:pulumi:Stack").get("litellmUrl")
    if url and ENVIRONMENT_FILE.exists() and url in ENVIRONMENT_FILE.read_text(encoding="utf-8"):
        environment_file.forget(ENVIRONMENT_FILE)


def _remove_history(project: str, stack: str) -> None:
    """Remove what Pulumi keeps in a folder about a removed stack: its former states."""
    folder = state_folder(os.environ.get("PULUMI_BACKEND_URL") or (own_folder() / "state").as_uri())
    if folder is None:
        return
    for kept in ("backups", "history", "locks/organization"):
        shutil.rmtree(folder / kept / project / stack, ignore_errors=True)
    for file in (folder / "stacks" / project).glob(f"{stack}.json*"):
        file.unlink()


def _clear_images(step: Step, host: str) -> None:
    """Remove the images that were built here, except those that something else runs."""
    record = image_record.read()
    if not record:
        return
    with closing(connect(host)) as client:
        for name in record.values():
            try:
                client.images.remove(name)
            except docker.errors.ImageNotFound:
                continue
            except docker.errors.APIError as error:
                step.say(f"{name} stays: {error.explanation}")
    image_record.RECORD.unlink()
