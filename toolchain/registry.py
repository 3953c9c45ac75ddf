"""Your own registry, for a Swarm whose nodes cannot fetch images from their original registries.

It is filled from the stack's engine, under the names that the program will run. The nodes have no login, because it
would be in the state. So everything except the push itself asks the registry as the nodes do, without a login.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import docker

from engine.image_names import in_registry
from toolchain import image_record, images
from toolchain.progress import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from toolchain.progress import Step, Steps

WANTS_A_LOGIN = re.compile("unauthorized|denied|no basic auth|authentication required", re.IGNORECASE)
"""The answers of registries that require a login; some also answer so for an image that they do not have."""
IS_PLAIN = re.compile("HTTP response to HTTPS client|does not look like a TLS handshake")
FAILURES = (*images.ENGINE_FAILURES, TimeoutError)


def push(
    steps: Steps,
    engine: docker.DockerClient,
    wanted: Mapping[str, str],
    registry: str,
    *,
    have: Callable[[Mapping[str, str]], Mapping[str, str]],
) -> list[str]:
    """Put each part's image from the engine into a registry; return what nodes pull, NAME@DIGEST.

    `have` makes the images `wanted` available, by part, and returns what to run for each, like `images.ensure`.
    Raises SetupError.
    """
    pushed = []
    for image in sorted(set(have(wanted).values())):
        name = in_registry(image, registry)
        with steps.step(f"Push {name}") as step:
            try:
                _push(step, engine, image, name)
                digest = _digest(engine, name)
            except FAILURES as error:
                raise _refusal(name, error) from error
        if digest is None:
            raise SetupError(
                f"{name} was pushed, but its registry requires a login to pull it. The nodes have none, because it "
                "would be in the state",
                fix="configure the registry so that the cluster's network can pull without a login",
            )
        pushed.append(f"{name}@{digest}")
    return pushed


def fill(
    steps: Steps,
    engine: docker.DockerClient,
    wanted: Mapping[str, str],
    registry: str,
    *,
    have: Callable[[Mapping[str, str]], Mapping[str, str]],
) -> None:
    """Push the parts' images that the registry does not have; the engine needs only those. Raises SetupError."""
    stand_ins = image_record.read()
    missing = {}
    with steps.step(f"Ask {registry} for the images"):
        for part, reference in wanted.items():
            name = in_registry(stand_ins.get(reference, reference), registry)
            try:
                if _digest(engine, name) is None:
                    missing[part] = reference
            except FAILURES as error:
                raise _refusal(name, error) from error
    if missing:
        push(steps, engine, missing, registry, have=have)


def _digest(engine: docker.DockerClient, name: str) -> str | None:
    """The digest of an image in its registry; None if the registry does not provide it."""
    try:
        return str(images.answer(lambda: engine.images.get_registry_data(name, auth_config={})).id)
    except docker.errors.NotFound:
        return None
    except docker.errors.APIError as error:
        if WANTS_A_LOGIN.search(str(error.explanation)):
            return None
        raise


def _push(step: Step, engine: docker.DockerClient, image: str, name: str) -> None:
    repository, _, tag = name.rpartition(":")
    engine.images.get(image).tag(repository, tag)
    error = None
    for event in engine.images.push(repository, tag=tag, stream=True, decode=True):
        error = event.get("error", error)
        step.note(" ".join(event[key] for key in ("id", "status", "progress") if key in event))
    if error:
        raise docker.errors.DockerException(error)


def _refusal(name: str, error: Exception) -> SetupError:
    why = str(getattr(error, "explanation", None) or error)
    host = name.partition("/")[0]
    authority = f"put the certificate of its CA on each node, as /etc/docker/certs.d/{host}/ca.crt"
    if IS_PLAIN.search(why):
        fix = (
            f"give the registry a certificate, and {authority}\n"
            f'    or, on a network that nobody else uses, set "insecure-registries": ["{host}"] in '
            "/etc/docker/daemon.json of each node, then: systemctl reload docker"
        )
    elif "x509" in why:
        fix = authority
    elif WANTS_A_LOGIN.search(why):
        fix = f"docker login {host} (to push; the nodes pull without a login, and the registry must allow that)"
    else:
        fix = f"check that {host}, which imageRegistry names, answers the Docker Engine: curl https://{host}/v2/"
    return SetupError(f"The registry of {name} cannot be used: {why}", fix=fix)
