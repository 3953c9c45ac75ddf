"""What the gateway says of itself to whoever asks, without a model being asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from app._settings import Settings

SECONDS = 10.0
READINESS = "/health/readiness"
# Not `make up`, which is for stack dev, and this may be the gateway of another one.
GATEWAY_MEND = "./pulumiw up --refresh"
KEY_MEND = "take LITELLM_API_KEY from .env, or: ./pulumiw stack output litellmApiKey --show-secrets"
MODELS_MEND = "./pulumiw config set --secret openaiApiKey …"


class GatewayError(Exception):
    """What is wrong with the gateway as a whole. The message is one line."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.mend = mend
        """The command or step that mends it."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that answers."""

    version: str
    """LiteLLM's; empty where it does not tell, as newer ones do not."""
    models: tuple[str, ...]
    """The names of those that are served; empty where the key is refused."""
    refused: int | None
    """The status with which the key is refused; None where it is accepted."""


def ask(settings: Settings) -> Gateway:
    """Ask for the version and the models. Raises GatewayError, and NotConfiguredError without a key."""
    root = str(settings.litellm_url).rstrip("/")
    headers = {"Authorization": f"Bearer {settings.required_api_key()}"}
    try:
        with httpx2.Client(timeout=SECONDS, trust_env=False) as client:
            ready = client.get(root + READINESS)
            if ready.status_code != httpx2.codes.OK:
                raise GatewayError(f"it answers with status {ready.status_code}", GATEWAY_MEND)
            listed = client.get(f"{settings.base_url}/models", headers=headers)
    except httpx2.HTTPError as error:
        raise GatewayError(f"nothing answers at {root} ({type(error).__name__})", GATEWAY_MEND) from None
    accepted = listed.status_code == httpx2.codes.OK
    try:
        return Gateway(
            version=str(ready.json().get("litellm_version", "")),
            models=tuple(sorted(model["id"] for model in listed.json()["data"])) if accepted else (),
            refused=None if accepted else listed.status_code,
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        raise GatewayError(f"what answers at {root} is no gateway", "check LITELLM_URL") from None
