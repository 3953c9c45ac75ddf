"""Which models of Bedrock's are asked by Converse with LiteLLM 1.55.0."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """What of LiteLLM 1.55.0 is worked on, with litellm/bedrock.py put into it."""

    class Config:
        def _supported_cross_region_inference_region(self) -> list[str]:
            return ["us", "eu", "apac"]

    made = SimpleNamespace(
        bedrock_converse_models=["anthropic.claude-3-haiku-20240307-v1:0"], AmazonConverseConfig=Config
    )
    monkeypatch.setitem(sys.modules, "litellm", made)
    monkeypatch.syspath_prepend(PROJECT / "litellm")
    import bedrock  # type: ignore[import-not-found]  # noqa: PLC0415 -- where a replica has it

    bedrock.install()
    yield made
    sys.modules.pop("bedrock")


@pytest.mark.parametrize(
    ("model", "converses"),
    [
        ("anthropic.claude-3-haiku-20240307-v1:0", True),
        ("anthropic.claude-haiku-5-5", True),
        ("amazon.nova-2-lite-v1:0", True),
        ("anthropic.claude-v2:1", False),
        ("anthropic.claude-instant-v1", False),
        ("amazon.titan-text-express-v1", False),
    ],
)
def test_models_since_claude_3_and_nova_are_asked_by_converse(
    litellm: SimpleNamespace, model: str, *, converses: bool
) -> None:
    """Those in LiteLLM's list, and newer ones."""
    assert (model in litellm.bedrock_converse_models) == converses
    assert list(litellm.bedrock_converse_models) == ["anthropic.claude-3-haiku-20240307-v1:0"]


def test_an_inference_profile_may_be_for_the_whole_world(litellm: SimpleNamespace) -> None:
    prefixes = litellm.AmazonConverseConfig()._supported_cross_region_inference_region()
    assert {"us", "eu", "apac", "global", "jp"} <= {*prefixes}
