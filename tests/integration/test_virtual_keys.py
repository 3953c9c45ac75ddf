"""Keys in a real stack whose LiteLLM has its database: virtual keys, and those of the stack config's clients."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import OpenAI

from tests.edge_log import edge_log
from tests.swarm.cluster import until

if TYPE_CHECKING:
    from tests.stacks import Deployment

ADMIN = """
import json, pathlib, sys, urllib.request
method, path, body = sys.argv[1:]
key = pathlib.Path("/run/secrets/LITELLM_MASTER_KEY").read_text().strip()
headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
asked = urllib.request.Request(f"http://127.0.0.1:4000{path}", body.encode() or None, headers, method=method)
print(urllib.request.urlopen(asked, timeout=30).read().decode())
"""
HELLO: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}
REPLICAS = ("litellm-1", "litellm-2")
UNAUTHORIZED = 401
UNKNOWN = "sk-0000000000000000000000"
SMALL = 1e-7
"""US dollars: less than one answer costs."""


def admin(deployment: Deployment, path: str, body: dict[str, Any] | None = None, *, part: str = "litellm-1") -> Any:
    """What LiteLLM's administration answers, asked within a replica."""
    command = ["python3", "-c", ADMIN, "POST" if body else "GET", path, json.dumps(body) if body else ""]
    return json.loads(deployment.read(part, *command))


def key_of(deployment: Deployment, **terms: Any) -> tuple[str, str]:
    """A new virtual key, and its alias."""
    alias = f"test-{uuid.uuid4()}"
    made: str = admin(deployment, "/key/generate", {"key_alias": alias, **terms})["key"]
    return made, alias


def holder(deployment: Deployment, key: str) -> OpenAI:
    """A client with a key; it retries what the SDK retries."""
    return deployment.client.with_options(api_key=key, max_retries=2)


def refusal(client: OpenAI, model: str = "gpt-4o") -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{**HELLO, "model": model})
    return caught.value


def lines(deployment: Deployment) -> list[dict[str, Any]]:
    """What the replicas have written of usage."""
    logs = "".join(deployment.container(part).logs(stderr=False).decode() for part in REPLICAS)
    return [json.loads(line) for line in logs.splitlines() if line.startswith('{"event": "usage"')]


def test_a_virtual_key_asks_for_its_models_and_is_named_by_its_alias(with_database: Deployment) -> None:
    """In the edge's log and the lines of usage. The key itself is in no log."""
    key, alias = key_of(with_database, models=["gpt-4o"])
    client = holder(with_database, key)
    assert client.chat.completions.create(**HELLO).choices[0].message.content
    assert [model.id for model in client.models.list()] == ["gpt-4o"]
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"
    assert (refusal(client, "claude-3-5-sonnet").status_code, refusal(client, "claude-3-5-sonnet").code) == (
        404,
        "model_not_found",
    )
    until(lambda: any(line["client"] == alias for line in lines(with_database)), "the answer is reported")
    until(lambda: any(entry.get("client") == alias for entry in edge_log(with_database)), "its requests are logged")
    for part in ("edge", *REPLICAS):
        assert key not in with_database.container(part).logs().decode()


def test_what_is_no_key_is_refused_as_the_edge_refuses_it(with_database: Deployment) -> None:
    """So is LiteLLM's master key."""
    of_edge = refusal(holder(with_database, "unknown")).body
    for key in (UNKNOWN, with_database.secret("master-key")):
        refused = refusal(holder(with_database, key))
        assert (refused.status_code, refused.body) == (UNAUTHORIZED, of_edge)


def test_a_budget_that_is_used_up_is_openais_quota_error_and_is_not_repeated(with_database: Deployment) -> None:
    key, alias = key_of(with_database, max_budget=SMALL)
    client = holder(with_database, key)
    calls = 0

    def used_up() -> bool:
        nonlocal calls
        calls += 1
        try:
            client.chat.completions.create(**HELLO)
        except openai.RateLimitError as refused:
            return (refused.code, refused.type) == ("insufficient_quota", "budget_exceeded")
        return False

    until(lambda: all(used_up() for _ in REPLICAS * 2), "each replica knows that the budget is used up")

    def logged() -> int:
        return sum(entry.get("client") == alias for entry in edge_log(with_database))

    until(lambda: logged() >= calls, "each request is logged")
    assert logged() == calls


def test_a_client_of_the_stack_config_counts_in_litellm_under_its_name(with_database: Deployment) -> None:
    with_database.client.chat.completions.create(**HELLO)

    def spent() -> float:
        told = admin(with_database, "/spend/keys")
        return float(sum(key["spend"] for key in told if key["key_alias"] == "app"))

    until(lambda: spent() > 0, "what app spent is written")
