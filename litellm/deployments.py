"""A model with several deployments is served as long as the provider accepts the key of one of them.

LiteLLM's own cooldowns are off (litellm/config.yaml), because with them one caller's mistake makes a model
unavailable to everybody. A refused key is not a caller's mistake.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from answers import current

LOG = logging.getLogger("litellm.deployments")
UNAUTHORIZED = 401
SECONDS = 60.0
"""How long a deployment is left alone after its key was refused. The next request to try it is repeated elsewhere."""


def install() -> None:
    """Make LiteLLM repeat a request whose key was refused at another deployment; if there is none, not at all.

    Nothing is repeated for a caller that has left.

    LiteLLM repeats as often as `AuthenticationErrorRetries` says. It notes each repeat by `Router.log_retry`, which
    1.55.0 and 1.108.14 both call before they choose again.
    """
    router = importlib.import_module("litellm.router").Router
    cooldowns = importlib.import_module("litellm.router_utils.cooldown_handlers")
    note = router.log_retry

    def log_retry(self: Any, kwargs: dict[str, Any], e: Exception) -> Any:
        exchange = current.get()
        if exchange is not None and exchange.given_up:
            raise e
        if getattr(e, "status_code", None) == UNAUTHORIZED:
            metadata = kwargs.get("litellm_metadata") or kwargs.get("metadata") or {}
            refused = (metadata.get("model_info") or {}).get("id")
            names = {it["model_info"]["id"]: it["model_name"] for it in self.model_list}
            cooled = cooldowns._get_cooldown_deployments(litellm_router_instance=self, parent_otel_span=None)  # noqa: SLF001
            left = {each for each, name in names.items() if name == names.get(refused)} - {refused, *cooled}
            if not left:
                raise e
            self.cooldown_cache.add_deployment_to_cooldown(refused, e, UNAUTHORIZED, SECONDS)
            LOG.warning("The provider refuses the key of a deployment of %s: asking the others", names[refused])
        return note(self, kwargs=kwargs, e=e)

    router.log_retry = log_retry
