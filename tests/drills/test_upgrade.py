"""An upgrade to another release of LiteLLM under load, with the runbook's commands, and back."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import httpx2
import openai
import pytest

from infra.workload import MEBIBYTE
from tests import paths
from tests.boundary import answers_to_a_coding_agent, fuzz, listener, wrong_answers
from tests.load import Bound
from tests.runbooks import runbook
from tests.stacks import REPLICAS, stand_in_for
from toolchain import recipes

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionUserMessageParam

    from tests.drills.conftest import Drill
    from tests.stacks import Deployment

PINNED, (UPGRADE,) = recipes.STAND_INS["litellm"], recipes.UPGRADES
MESSAGES: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "hello"}]
FUZZED = 100
OF_THE_PROVIDER_ONLY = Bound(provider_may_fail=True, streams_may_break=True)
"""The demo provider runs in LiteLLM's image, and is replaced with it: for a second there is none."""


@pytest.fixture
def image(deployment: Deployment) -> str:
    return stand_in_for(UPGRADE, deployment.engine, deployment.folder / ".images.yaml")


def test_litellm_is_upgraded_and_taken_back(deployment: Deployment, drill: Drill, image: str) -> None:
    """Callers notice nothing, the newer one answers as the older one does, and every check passes."""
    env = {
        "LITELLM_URL": deployment.outputs["litellmUrl"],
        "LITELLM_API_KEY": deployment.outputs["litellmApiKey"],
        "DATABASE_URL": deployment.outputs["databaseUrl"],
    }
    before, official = answers(deployment), running(deployment)
    with (
        runbook("upgrade-litellm", deployment, LITELLM_IMAGE=image, **env) as book,
        drill(f"{UPGRADE} and back", OF_THE_PROVIDER_ONLY),
    ):
        assert PINNED.version in book.run("config get litellmImage")
        started = time.monotonic()
        book.run("config set litellmImage")
        print(f"\n{UPGRADE} is up after {time.monotonic() - started:.1f} s")
        assert running(deployment) == {UPGRADE.tag}
        assert answers(deployment) == before
        assert beyond_the_boundary(deployment) == []
        agent = answers_to_a_coding_agent(env["LITELLM_URL"], env["LITELLM_API_KEY"])
        assert agent == ['200 data: {"type": "message_stop"}', "200"]
        assert paths.served(env["LITELLM_URL"], env["LITELLM_API_KEY"]) == paths.told(UPGRADE.version)
        assert UPGRADE.version in book.run("llmctl doctor")
        measured(deployment)
        book.run("config rm litellmImage")
        assert running(deployment) == official
        assert answers(deployment) == before
        _, said = book.type(".venv/bin/llmctl doctor")
        assert f"LiteLLM {PINNED.version}" in said
    deployment.up(expect_no_changes=True)


def running(deployment: Deployment) -> set[str]:
    """What the replicas' images are called."""
    return {tag for part in REPLICAS for tag in deployment.image(part).tags}


def answers(deployment: Deployment) -> dict[str, object]:
    """What callers get, in each of the ways in which they ask."""
    client = deployment.client
    chat = client.chat.completions.with_raw_response.create(model="claude-3-5-sonnet", messages=MESSAGES)
    stream = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
    words = [choice.delta.content for chunk in stream for choice in chunk.choices if choice.delta.content]
    embedding = client.embeddings.create(model="text-embedding-3-small", input="hello", encoding_format="float")
    messages = {
        model: httpx2.post(
            f"{deployment.outputs['litellmUrl']}/v1/messages",
            json={"model": model, "max_tokens": 100, "messages": MESSAGES},
            headers={"x-api-key": deployment.outputs["litellmApiKey"], "anthropic-version": "2023-06-01"},
            timeout=60,
        ).raise_for_status()
        for model in ("claude-3-5-sonnet", "gpt-4o")
    }
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="nothing", messages=MESSAGES)
    assert len(words) > 1
    mistakes = [after_a_mistake(client, status) for status in (401, 404)]
    return {
        "after a mistake": mistakes,
        "chat": chat.parse().choices[0].message.content,
        "served by": chat.headers["x-litellm-model-group"],
        "stream": "".join(words),
        "embedding": embedding.data[0].embedding,
        "messages": {model: message.json()["content"][0]["text"] for model, message in messages.items()},
        "models": sorted(model.id for model in client.models.list()),
        "unknown model": (type(caught.value), caught.value.code),
    }


def after_a_mistake(client: openai.OpenAI, status: int) -> list[str | None]:
    """What others get when a provider has refused one caller, at least once for each replica."""
    refused: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": f"[[demo status={status}]]"}]
    for _ in range(4):
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="gpt-4o", messages=refused)
        assert caught.value.status_code == status
    answers = [client.chat.completions.create(model="gpt-4o", messages=MESSAGES) for _ in range(6)]
    return [answer.choices[0].message.content for answer in answers]


def beyond_the_boundary(deployment: Deployment) -> list[str]:
    """Requests that get through the guard although they must not, or get a wrong answer."""
    url, key = deployment.outputs["litellmUrl"], deployment.outputs["litellmApiKey"]
    with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        wrong = wrong_answers(client)
    with listener() as (port, arrived):
        done = fuzz(url, key, count=FUZZED, seed=random.randrange(2**32), port=port)
    return [*wrong, *done.failures, *arrived]


def measured(deployment: Deployment) -> None:
    """Show how much memory a replica uses: a fact for docs/upgrade.md, not a bound."""
    size = deployment.image("litellm-1").attrs["Size"]
    stats = deployment.container("litellm-1").stats(stream=False)
    assert isinstance(stats, dict)
    memory = stats["memory_stats"]["usage"]
    print(f"\n{UPGRADE}: image {size / MEBIBYTE:.0f} MiB, memory {memory / MEBIBYTE:.0f} MiB")
