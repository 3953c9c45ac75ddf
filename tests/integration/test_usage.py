"""Who used what in a real stack: what callers saw, what replicas logged, and what `llmctl usage` adds up."""

from __future__ import annotations

import json
import subprocess
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

import app
from app import organizations
from tests.edge_log import edge_log
from tests.stacks import LLMCTL, REPLICAS
from tests.swarm.cluster import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openai.types.chat import ChatCompletion

    from tests.stacks import Deployment

pytestmark = pytest.mark.usefixtures("environment")

LIST_WITH_A_WRONG_KEY = """
import http.client
replica = http.client.HTTPConnection("127.0.0.1", 4000)
replica.request("GET", "/v1/models", headers={"Authorization": "Bearer sk-of-nobody"})
print(replica.getresponse().status)
"""
PROMPT = "what nobody else may read"
ID = "x-litellm-call-id"


def used(*options: str) -> dict[str, dict[str, Any]]:
    """What `llmctl usage` says, by the value of what it adds up by."""
    command = [LLMCTL, "usage", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert (done.stderr, found["unseen"]) == ("", [])
    assert [log["name"] for log in found["logs"]] == ["litellm-1", "litellm-2"]
    return {"/".join(row["group"].values()): row for row in found["rows"]}


def lines(deployment: Deployment, parts: Sequence[str] = REPLICAS) -> list[dict[str, Any]]:
    """What replicas have written of usage."""
    logs = "".join(deployment.container(part).logs(stderr=False).decode() for part in parts)
    return [json.loads(line) for line in logs.splitlines() if line.startswith('{"event": "usage"')]


def test_an_answer_is_recorded_by_client_and_organization(deployment: Deployment) -> None:
    """As the edge and the app report it. A caller cannot pretend to be another client, or choose the id."""
    organization = organizations.create(f"usage-{uuid.uuid4()}")
    answer = app.chat_completion_for_org(organization.id, [app.ChatMessage("user", PROMPT)])
    headers = {"x-llm-gateway-client": "another", "x-llm-gateway-call": "mine", ID: "mine"}
    asked = deployment.client.with_options(default_headers=headers)
    raw = asked.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=[{"role": "user", "content": PROMPT}]
    )
    ids = {answer.request_id: str(organization.id), raw.headers[ID]: None}
    assert "mine" not in ids

    def told() -> list[dict[str, Any]]:
        return [line for line in lines(deployment) if line["call_id"] in ids]

    until(lambda: len(told()) == len(ids), "both answers are reported")
    assert {line["call_id"]: line["organization"] for line in told()} == ids
    assert {line["client"] for line in told()} == {"app"}

    def logged() -> set[str]:
        return {entry["call"] for entry in edge_log(deployment)}

    until(lambda: logged() >= ids.keys(), "the edge has logged both")
    row = used("--by", "org")[organization.name]
    assert answer.usage is not None
    expected = (1, answer.usage.prompt_tokens, answer.usage.completion_tokens, 0)
    assert (row["calls"], row["prompt_tokens"], row["completion_tokens"], row["unpriced_tokens"]) == expected
    assert row["cost"] > 0
    for part in REPLICAS:
        assert PROMPT not in deployment.container(part).logs().decode()


def test_calls_are_counted_by_model_with_those_that_failed(deployment: Deployment) -> None:
    """Failed tries of one call are one call. An answer counts with the usage that its caller saw."""
    label = f"usage-{uuid.uuid4()}"
    client = deployment.client.with_options(default_headers={"x-llm-organization": label})
    good: ChatCompletion = client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "hello"}]
    )
    with suppress(openai.InternalServerError):
        client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "[[demo status=500]] hello"}]
        )
    assert good.usage

    def row() -> dict[str, Any]:
        return used("--by", "org", "--by", "model").get(f"{label}/gpt-4o", {"calls": 0})

    until(lambda: bool(row()["calls"] == 2), "both calls are reported")
    assert (row()["failed"], row()["prompt_tokens"]) == (1, good.usage.prompt_tokens)


def test_a_refused_list_of_models_is_no_call(deployment: Deployment) -> None:
    """The edge asks for it with the old key during a rotation, and nobody is to find failed calls of nobody."""
    refused = deployment.read("litellm-1", "python3", "-c", LIST_WITH_A_WRONG_KEY)
    assert refused.strip() in {"400", "401"}
    label = f"usage-{uuid.uuid4()}"
    client = deployment.client.with_options(default_headers={"x-llm-organization": label})

    def told() -> bool:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hello"}])
        return any(line["organization"] == label for line in lines(deployment, REPLICAS[:1]))

    until(told, "that replica has reported a later call")
    assert [line for line in lines(deployment) if line["model"] is None] == []


def test_an_organization_that_is_not_a_label_is_refused(deployment: Deployment) -> None:
    refused = httpx2.post(
        f"{deployment.outputs['litellmUrl']}/v1/chat/completions",
        headers={
            "authorization": f"Bearer {deployment.outputs['litellmApiKey']}",
            "x-llm-organization": "no, label",
        },
        json={"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]},
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_header")
