"""Secrets and configs of a Swarm that a killed `up` has left: neither the state nor a service knows them.

They get a new name each time, so unlike a service they do not block a new one. They have the stack's labels.
"""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import docker

from engine.connection import UNREACHABLE, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping


def label_config(host: str, config: str, labels: Mapping[str, str]) -> None:
    """Give a config labels, which the Docker provider that is built here cannot do."""
    with closing(connect(host)) as engine:
        api: Any = engine.api
        found = api.inspect_config(config)
        version = found["Version"]["Index"]
        url = api._url("/configs/{0}/update?version={1}", config, str(version))  # noqa: SLF001 -- no method
        api._raise_for_status(api.post(url, json={**found["Spec"], "Labels": dict(labels)}))  # noqa: SLF001


def remove_leftovers(host: str, label: str, known: Collection[str] = ()) -> list[str]:
    """Remove the secrets and configs with a label, given as `name=value`, and return their names.

    Those whose ids are `known` stay, and those that a service uses. If the engine manages no Swarm or does not
    answer, nothing is removed.
    """
    with suppress(*UNREACHABLE), closing(connect(host)) as engine:
        api: Any = engine.api
        if engine.info()["Swarm"].get("ControlAvailable"):
            secrets = _removed(api.secrets(filters={"label": label}), api.remove_secret, known)
            return [*secrets, *_removed(api.configs(filters={"label": label}), api.remove_config, known)]
    return []


def _removed(
    found: Iterable[Mapping[str, Any]], remove: Callable[[str], object], known: Collection[str]
) -> list[str]:
    names = []
    for each in found:
        if each["ID"] not in known:
            with suppress(docker.errors.APIError):  # a service uses it
                remove(each["ID"])
                names.append(str(each["Spec"]["Name"]))
    return names
