"""What a preview warns about: models that are not served, will not work, or end; limits that are not exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pulumi
import yaml

from infra import client_limits, gateway, litellm_connections, litellm_environment, providers
from infra.settings import Deployment

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from infra.model_list import LeftOut, ModelList
    from infra.retirements import Ending
    from infra.settings import Settings


def of(settings: Settings, models: ModelList, built_here: Container[str]) -> Iterator[str]:
    """Yield each warning; `built_here` are the images that one built on this machine replaces."""
    yield from map(_left_out, models.left_out)
    if settings.litellm_image in built_here:
        for name, package in providers.missing_packages(
            settings.litellm_image, yaml.safe_load(models.config)
        ).items():
            yield (
                f"{name} will not work: it needs the Python package {package}, which the official image of LiteLLM "
                "has and the one built on this machine does not."
            )
    if settings.client_rpm and settings.placement == "swarm":
        yield (
            "clientRpm: each edge of a Swarm counts by itself, so a client whose requests are spread over N edges "
            "gets up to N times as many through. Divide the numbers by N."
        )
    yield from client_limits.doubts(settings)
    of_database = litellm_connections.replica_mb(dict(settings))
    if settings.max_body_mb > (room := gateway.large_bodies_mb(settings.litellm_memory_mb - of_database)):
        wanted = gateway.memory_mb(settings.max_body_mb) + of_database
        yield (
            f"maxBodyMb is {settings.max_body_mb}, but a replica has memory for {room} MB of large requests at once: "
            f"set litellmMemoryMb to {wanted} or more, or maxBodyMb to {room}."
        )
    for ending in models.ending:
        yield ending.warning(_names_a_model(settings, ending))


def _left_out(model: LeftOut) -> str:
    """What the preview says about a model that is not served."""
    missing = " and ".join(model.variables)
    commands = " && ".join(
        f"./pulumiw config set --stack {pulumi.get_stack()} {litellm_environment.set_arguments(each)}"
        for each in model.variables
    )
    return f"{model.name} is left out: {missing} {'is' if len(model.variables) == 1 else 'are'} not set ({commands})"


def _names_a_model(settings: Settings, ending: Ending) -> str:
    """The command that makes another model answer for a name, up to the model."""
    set_ = f"./pulumiw config set --stack {pulumi.get_stack()} --path"
    for index, own in enumerate(settings.models):
        if (own.name, own.model) == (ending.name, ending.model):
            return f"{set_} 'models[{index}].{'litellm_params.' if isinstance(own, Deployment) else ''}model'"
    index = len(settings.models)
    return f"{set_} 'models[{index}].name' {ending.name} && {set_} 'models[{index}].model'"
