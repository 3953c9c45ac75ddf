"""Timeouts that are in several places fit each other: a caller waits longer than what it calls."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from app._types import DEFAULT_TIMEOUT_SECONDS
from infra import edge, model_list
from tests.stack_config import PROJECT, raw_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.settings import Settings


@pytest.fixture
def litellm(settings: Callable[..., Settings]) -> int:
    """How long LiteLLM waits for a provider."""
    config = (PROJECT / "litellm/config.yaml").read_text()
    return model_list.render(config, settings(), demo_url="http://demo:8080").request_timeout


def of_edge(name: str, *, litellm: int) -> int:
    """A time of the rendered HAProxy config, wherever it is."""
    config = edge.render(
        (PROJECT / "edge/haproxy.cfg").read_text(),
        generation=1,
        host_name=str,
        request_timeout=litellm,
        max_body_mb=1,
        tls=False,
        metrics=False,
        virtual_keys=False,
    )
    (seconds,) = re.findall(rf"^\s*{name} (\d+)s$", config, re.MULTILINE)
    return int(seconds)


def test_the_edge_waits_longer_than_litellm_and_the_app(litellm: int) -> None:
    """So that LiteLLM's own answer arrives, and no waiting caller is cut off."""
    assert litellm <= DEFAULT_TIMEOUT_SECONDS < of_edge("timeout server", litellm=litellm)


def test_an_edge_that_reloads_waits_as_long(litellm: int) -> None:
    """Its old worker is not stopped before the last answer that it may wait for."""
    assert of_edge("hard-stop-after", litellm=litellm) >= of_edge("timeout server", litellm=litellm)


def test_a_connection_is_kept_longer_than_by_load_balancers(litellm: int) -> None:
    """Google's keep one for 600 seconds, the longest of the supported ones."""
    assert of_edge("timeout http-keep-alive", litellm=litellm) > 600


def test_a_request_leaves_the_queue_while_its_caller_waits(litellm: int) -> None:
    assert of_edge("timeout queue", litellm=litellm) < DEFAULT_TIMEOUT_SECONDS


def test_in_production_a_replica_is_not_stopped_before_its_last_answer(litellm: int) -> None:
    assert int(raw_config("prod")["drainSeconds"]) >= litellm
