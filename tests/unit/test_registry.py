"""Which images your own registry gets, and the message if it cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import docker
import pytest

from toolchain import image_record, registry
from toolchain.progress import SetupError, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

REGISTRY = "registry.example:5000"
OFFICIAL = "ghcr.io/berriai/litellm:main-v1.55.0"
STAND_IN = "llm-infrastructure/litellm-stand-in:1.55.0-0123"
WANTED = {"litellm": OFFICIAL, "postgres": "postgres:17"}


class Engine:
    """An engine with every image, and its registry."""

    def __init__(self, has: set[str], *, push_says: str = "", pull_says: str = "") -> None:
        self.images = self
        self.has = has
        self.pushed: list[str] = []
        self.push_says = push_says
        self.pull_says = pull_says
        self._tags: dict[str, str] = {}
        self._got = ""

    def get(self, image: str) -> Engine:
        self._got = image
        return self

    def tag(self, repository: str, tag: str) -> None:
        self._tags[f"{repository}:{tag}"] = self._got

    def push(self, repository: str, *, tag: str, stream: bool, decode: bool) -> list[Mapping[str, Any]]:
        assert (stream, decode) == (True, True)
        name = f"{repository}:{tag}"
        assert name in self._tags
        if self.push_says:
            return [{"status": "Preparing"}, {"error": self.push_says}, {"status": "the last word"}]
        self.pushed.append(name)
        self.has.add(name)
        return [{"id": "layer", "status": "Pushed"}, {"aux": {"Digest": "sha256:1"}}]

    def get_registry_data(self, name: str, *, auth_config: object) -> Any:
        assert auth_config == {}, "nodes have no login"
        if self.pull_says:
            raise docker.errors.APIError("500", explanation=self.pull_says)
        if name not in self.has:
            raise docker.errors.NotFound("404", explanation="manifest unknown")
        return type("Data", (), {"id": "sha256:1"})


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM's image has a stand-in, and the engine has that."""
    monkeypatch.setattr(image_record, "read", lambda: {OFFICIAL: STAND_IN})


def have(wanted: Mapping[str, str]) -> dict[str, str]:
    return {part: image_record.read().get(image, image) for part, image in wanted.items()}


def push(engine: Any, wanted: Mapping[str, str] = WANTED) -> list[str]:
    return registry.push(Steps(), engine, wanted, REGISTRY, have=have)


def fill(engine: Any) -> None:
    registry.fill(Steps(), engine, WANTED, REGISTRY, have=have)


def test_what_runs_is_pushed_under_the_name_that_the_program_will_use() -> None:
    """The stand-in, if there is one."""
    engine = Engine(set())
    names = [f"{REGISTRY}/{STAND_IN}", f"{REGISTRY}/postgres:17"]
    assert push(engine) == [f"{name}@sha256:1" for name in names]
    assert engine.pushed == names


def test_a_registry_gets_what_is_missing() -> None:
    """What it already has may come from elsewhere: the engine does not need it."""
    engine = Engine({f"{REGISTRY}/{STAND_IN}"})
    fill(engine)
    assert engine.pushed == [f"{REGISTRY}/postgres:17"]
    fill(engine)
    assert engine.pushed == [f"{REGISTRY}/postgres:17"]


@pytest.mark.parametrize(
    ("says", "fix"),
    [
        ("no basic auth credentials", f"docker login {REGISTRY}"),
        ("denied: requested access to the resource is denied", f"docker login {REGISTRY}"),
        (f'Get "https://{REGISTRY}/v2/": http: server gave HTTP response to HTTPS client', "insecure-registries"),
        ("x509: certificate signed by unknown authority", f"/etc/docker/certs.d/{REGISTRY}/ca.crt"),
        (f"dial tcp: lookup {REGISTRY}: no such host", f"curl https://{REGISTRY}/v2/"),
    ],
)
def test_a_push_that_fails(says: str, fix: str) -> None:
    """The error has the engine's reason, and what fixes it."""
    with pytest.raises(SetupError) as caught:
        push(Engine(set(), push_says=says))
    assert says in caught.value.why
    assert fix in caught.value.fix


def test_a_registry_that_wants_a_login_to_pull() -> None:
    """A push works, but the nodes cannot use it: the error comes once the image is there."""
    engine = Engine(set(), pull_says="unauthorized: authentication required")
    with pytest.raises(SetupError, match="requires a login to pull it"):
        fill(engine)
    assert engine.pushed


def test_a_registry_that_cannot_be_asked() -> None:
    engine = Engine(set(), pull_says="connection refused")
    with pytest.raises(SetupError, match="cannot be used: connection refused"):
        fill(engine)
    assert not engine.pushed
