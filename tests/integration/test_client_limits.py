"""Limits of a client of the stack config, in a real stack: applied, found by a refresh, taken away again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.integration.test_virtual_keys import HELLO, REPLICAS, admin, holder
from tests.swarm.cluster import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stacks import Deployment

CLIENT = "limited"
RESOURCE = f"client-limits-{CLIENT}"


@pytest.fixture
def limited(with_database: Deployment) -> Iterator[Deployment]:
    """The stack with one more client, which has not asked yet; then as it was before."""
    with_database.set_path(f"clientKeys.{CLIENT}", "", secret=True)
    with_database.set_path(f"clientLimits.{CLIENT}.models[0]", "gpt-4o")
    with_database.set_path(f"clientLimits.{CLIENT}.budget", 5)
    with_database.set_path(f"clientLimits.{CLIENT}.budgetDuration", "30d")
    yield with_database
    for key in ("clientLimits", "clientKeys"):
        with_database.forget(key)
    with_database.up()


def in_litellm(deployment: Deployment) -> dict[str, Any]:
    """The row of the client's key."""
    (row,) = (key for key in admin(deployment, "/spend/keys") if key["key_alias"] == CLIENT)
    assert isinstance(row, dict)
    return row


def refused(deployment: Deployment, model: str) -> str | None:
    """The code with which any of several requests for a model is refused; None if all are answered."""
    client = holder(deployment, deployment.outputs["clientKeys"][CLIENT]).with_options(max_retries=0)
    for _ in REPLICAS * 2:
        try:
            client.chat.completions.create(**{**HELLO, "model": model})
        except openai.APIStatusError as refusal:
            return str(refusal.code)
    return None


def test_limits_are_applied_found_changed_and_taken_away(limited: Deployment) -> None:
    """Each replica knows them after some seconds. No secret is on a command line or in clear in the state."""
    limited.up()
    row = in_litellm(limited)
    assert (row["max_budget"], row["budget_duration"], row["models"]) == (5, "30d", ["gpt-4o"])
    reset = row["budget_reset_at"]
    assert refused(limited, "gpt-4o") is None
    until(lambda: refused(limited, "claude-3-5-sonnet") == "model_not_found", "the other model is refused")
    limited.up(expect_no_changes=True)

    admin(limited, "/key/update", {"key": row["token"], "max_budget": 99, "models": []})
    limited.refresh()
    limited.set_path(f"clientLimits.{CLIENT}.rpm", 600)
    preview = limited.pulumi("preview", "--diff").stdout
    for change in (RESOURCE, "99 => 5", "rpm", "600"):
        assert change in preview
    limited.up()
    row = in_litellm(limited)
    assert (row["max_budget"], row["rpm_limit"], row["models"]) == (5, 600, ["gpt-4o"])
    assert row["budget_reset_at"] == reset  # a budget that was not changed has not started over
    limited.refresh(expect_no_changes=True)

    state = limited.pulumi("stack", "export").stdout
    (resource,) = (
        each for each in json.loads(state)["deployment"]["resources"] if each["urn"].endswith(f"::{RESOURCE}")
    )
    for secret in (limited.secret("master-key"), limited.secret("salt-key")):
        assert secret not in json.dumps(resource)

    limited.forget("clientLimits")
    limited.up()
    after = in_litellm(limited)
    assert (after["max_budget"], after["rpm_limit"], after["models"]) == (None, None, [])
    assert after["spend"] >= row["spend"] > 0
    until(lambda: refused(limited, "claude-3-5-sonnet") is None, "each model is answered")
