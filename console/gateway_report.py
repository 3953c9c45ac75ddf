"""What the gateway tells any client about itself, without a request to a model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import httpx2

from app import _http
from app._deadline import until
from app._errors import GatewayRefusedKeyError, GatewayUnreachableError
from app._unreachable import GATEWAY_FIX, KEY_FIX, why
from console import tables

if TYPE_CHECKING:
    from app._settings import Settings

SECONDS = 10.0
READINESS = "/health/readiness"
MODELS_FIX = "./pulumiw config set --secret openaiApiKey …"
ENDING_FIX = "./pulumiw preview, which names the command for another model"


class GatewayError(Exception):
    """What is wrong with the gateway as a whole. The message is one line."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix
        """The command or step that fixes it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """When the provider's model behind a name ends, according to the stack's table of retirements."""

    shutdown_date: date | None
    successor: str | None
    """What answers from then on, if that is known and the stack config does not say `keep`."""
    replaces: str | None
    """The model that used to answer and has ended: another one answers instead."""

    @property
    def noticed(self) -> bool:
        """Whether callers notice, or will: the model has ended, or nothing replaces it."""
        return self.shutdown_date is not None and (self.shutdown_date <= _today() or not self.successor)

    def __str__(self) -> str:
        said = [f"another model answers in place of {self.replaces}, which has ended"] if self.replaces else []
        if self.shutdown_date is not None:
            ended = self.shutdown_date <= _today()
            then = f"{self.successor} will take its place" if self.successor else "no successor is known"
            said.append(f"{'ended' if ended else 'ends'} on {self.shutdown_date}, {then}")
        return "; ".join(said)


@dataclass(frozen=True, slots=True)
class Model:
    """What the gateway says about a model that it serves."""

    owner: str
    """LiteLLM's prefix for the provider; `demo` if the demo provider answers."""
    price: dict[str, float]
    """US dollars for a million tokens, `input` and `output`; unknown prices are left out."""
    refuses: dict[str, str]
    """Parameters that its provider refuses: `drop`, `error`, or the name under which they are sent."""
    shutdown_date: str | None


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that answers."""

    version: str
    """LiteLLM's version; empty if it does not report one. Newer releases do not."""
    models: tuple[str, ...]
    """The names of the served models; empty if the key is refused."""
    endings: dict[str, Ending]
    """The models whose provider's model ends or has ended, by name."""
    told: dict[str, Model]
    """What is known about each model, by name."""
    refused: int | None
    """The status with which the key is refused; None if it is accepted."""


def ask(settings: Settings) -> Gateway:
    """Ask for the version and the models. Raises GatewayError, and NotConfiguredError without a key."""
    root = str(settings.litellm_url).rstrip("/")
    client = _http.shared.get()
    try:
        with until(time.monotonic() + SECONDS):
            ready = client.get(root + READINESS)
            if ready.status_code != httpx2.codes.OK:
                raise GatewayError(f"it answers with status {ready.status_code}", GATEWAY_FIX)
            headers = {"Authorization": f"Bearer {settings.required_api_key()}"}
            listed = client.get(f"{settings.base_url}/models", headers=headers)
    except httpx2.HTTPError as error:
        raise GatewayError(*why(error, root)) from None
    accepted = listed.status_code == httpx2.codes.OK
    try:
        models: list[dict[str, Any]] = sorted(listed.json()["data"], key=lambda it: it["id"]) if accepted else []
        endings = {model["id"]: _ending(model) for model in models}
        return Gateway(
            version=str(ready.json().get("litellm_version", "")),
            models=tuple(model["id"] for model in models),
            endings={name: ending for name, ending in endings.items() if str(ending)},
            told={model["id"]: _told(model) for model in models},
            refused=None if accepted else listed.status_code,
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        raise GatewayError(f"the server at {root} is not a gateway", "check LITELLM_URL") from None


def accepted(settings: Settings) -> Gateway:
    """Ask with a key that must be accepted. Raises LLMError if it is not, or if nothing answers."""
    try:
        gateway = ask(settings)
    except GatewayError as error:
        raise GatewayUnreachableError(f"{error}: {error.fix}") from None
    if gateway.refused is not None:
        raise GatewayRefusedKeyError(f"the gateway refused LITELLM_API_KEY: {KEY_FIX}")
    return gateway


def _today() -> date:
    return datetime.now(UTC).date()


def _told(model: dict[str, Any]) -> Model:
    price = model.get("price") or {}
    return Model(
        owner=str(model.get("owned_by", "")),
        price={way: float(price[way]) for way in tables.WAYS if way in price},
        refuses=dict(model.get("refuses") or {}),
        shutdown_date=model.get("shutdown_date"),
    )


def _ending(model: dict[str, Any]) -> Ending:
    end = model.get("shutdown_date")
    return Ending(
        shutdown_date=date.fromisoformat(end) if end else None,
        successor=model.get("successor"),
        replaces=model.get("replaces"),
    )
