"""What clients say that the gateway must not do: tables and random requests, against the edge and LiteLLM."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import httpx2

from tests.boundary import fuzz, listener, wrong_answers

if TYPE_CHECKING:
    from tests.stacks import Deployment

FUZZED = int(os.environ.get("FUZZED_BODIES", "1500"))
"""100,000 before a release: docs/checks-and-drills.md."""


def test_a_client_can_only_ask_and_the_boundary_holds(deployment: Deployment) -> None:
    """No setting of LiteLLM's own gets through, nothing is fetched, and what is merely wrong is never a 500."""
    url, key = deployment.outputs["litellmUrl"], deployment.outputs["litellmApiKey"]
    with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        assert wrong_answers(client) == []
    seed = random.randrange(2**32)
    with listener() as (port, arrived):
        done = fuzz(url, key, count=FUZZED, seed=seed, port=port)
    print(f"\n{FUZZED} random bodies, seed {seed}: {dict(sorted(done.statuses.items()))}, {len(arrived)} arrived")
    assert done.failures[:5] == [], seed
    assert arrived == []
    assert done.statuses[200], "none of them was right: nothing was tried"
