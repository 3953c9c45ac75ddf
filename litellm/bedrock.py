"""Calls every Claude model on Amazon Bedrock through Converse, Bedrock's one API for all chat models.

LiteLLM 1.55.0 knows by a list which models take it, and asks others by an older API, for one prompt without tools.
"""

from __future__ import annotations

import importlib
import re

CONVERSES = re.compile(r"anthropic\.claude-(?!v|instant)|amazon\.nova-")
"""Those since Claude 3, and Amazon's own since Nova."""
EVERYWHERE = ("global", "us-gov", "jp", "au", "ca")
"""Prefixes of an inference profile that are younger than that release."""


class Conversing(list[str]):
    """LiteLLM's list of models, and those that are younger."""

    def __contains__(self, model: object) -> bool:
        return super().__contains__(model) or CONVERSES.match(str(model)) is not None


def install() -> None:
    """Have LiteLLM find them in its list. Newer releases, where it is a set, need no help."""
    litellm = importlib.import_module("litellm")
    if not isinstance(litellm.bedrock_converse_models, list):
        return
    litellm.bedrock_converse_models = Conversing(litellm.bedrock_converse_models)
    config = litellm.AmazonConverseConfig
    prefixes = config._supported_cross_region_inference_region  # noqa: SLF001
    config._supported_cross_region_inference_region = lambda self: [*prefixes(self), *EVERYWHERE]  # noqa: SLF001
