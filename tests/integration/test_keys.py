"""LiteLLM's keys and teams in a real stack: created and deleted by `llmctl`, used through the edge, and counted."""

from __future__ import annotations

import json
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import openai
import pytest

import app
from app import organizations
from tests.stacks import LLMCTL, REPLICAS
from tests.swarm.cluster import until

if TYPE_CHECKING:
    from tests.stacks import Deployment

PROMPT = "what a key asks"
NO_DATABASE = "./pulumiw config set litellmDatabase true && ./pulumiw up"


def llmctl(*arguments: str, fails: bool = False) -> str:
    """What a command prints, or says where it fails."""
    done = subprocess.run([LLMCTL, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def chat(deployment: Deployment, key: str, **more: Any) -> str:
    """The model's name of an answer to a key, once."""
    with openai.OpenAI(base_url=f"{deployment.outputs['litellmUrl']}/v1", api_key=key, max_retries=0) as client:
        asked = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": PROMPT}], **more)
        return str(asked.model)


def used(by: str, *options: str) -> dict[str, dict[str, Any]]:
    """What `llmctl usage` says, by the value of what it adds up by."""
    found = json.loads(llmctl("usage", "--json", "--by", by, *options))
    return {row["group"][by]: row for row in found["rows"]}


@pytest.mark.usefixtures("environment_with_database")
def test_a_team_s_bill_is_what_its_keys_and_organizations_asked(with_database: Deployment) -> None:
    """The same question twice counts as two calls, although the provider gives both answers the same id."""
    name = uuid.uuid4().hex[:8]
    team, alias = f"team-{name}", f"key-{name}"
    llmctl("teams", "create", team, "--max-budget", "5", "--budget-duration", "30d")
    key = llmctl("keys", "create", alias, "--team", team, "--model", "gpt-4o", "--duration", "1d").strip()
    organization = organizations.create(f"org-{name}")
    for _ in range(2):
        chat(with_database, key, extra_headers={"X-LLM-Organization": str(organization.id)})
    until(lambda: used("team").get(team, {}).get("calls") == 2, "both calls are in the database")
    row = used("team")[team]
    assert row["cost"] > 0
    assert used("client")[alias] == {**row, "group": {"client": alias}}
    assert used("key", "--since", "1h")[json.loads(llmctl("keys", "show", alias, "--json"))["key_name"]]["calls"] == 2
    assert used("org")[organization.name]["calls"] == 2
    in_lines = used("client", "--source", "lines")[alias]
    same = ("calls", "prompt_tokens", "completion_tokens", "unpriced_tokens")
    assert [in_lines[each] for each in same] == [row[each] for each in same]
    for said in (llmctl("keys", "list"), llmctl("keys", "list", "--json"), llmctl("teams", "show", team)):
        assert alias in said
        assert key not in said
    for replica in REPLICAS:
        assert key not in with_database.container(replica).logs().decode()


@pytest.mark.usefixtures("environment_with_database")
def test_an_organization_of_the_app_is_on_the_bill_with_the_client(with_database: Deployment) -> None:
    """A client of the stack config has its own key in the database, under its name."""
    organization = organizations.create(f"org-{uuid.uuid4()}")
    app.chat_completion_for_org(organization.id, [app.ChatMessage("user", PROMPT)])
    until(lambda: organization.name in used("org"), "the call is in the database")
    assert used("org")[organization.name]["calls"] == 1
    assert "app" in used("client")
    assert "app" in llmctl("keys", "list")
    assert (
        "source: LiteLLM's database"
        in subprocess.run([LLMCTL, "usage"], capture_output=True, text=True, check=True).stderr.splitlines()[-1]
    )
    assert with_database.outputs["litellmApiKey"] not in llmctl("keys", "list", "--json")


@pytest.mark.usefixtures("environment_with_database")
def test_what_litellm_would_misread_is_refused(with_database: Deployment) -> None:
    """Before anything changes."""
    chat(with_database, with_database.outputs["litellmApiKey"])  # so that the client has its key
    before = llmctl("keys", "list", "--json")
    assert "no team is called" in llmctl("keys", "create", "x", "--team", "nobody", fails=True)
    assert "does not serve o9" in llmctl("keys", "create", "x", "--model", "o9", fails=True)
    assert "is not a duration" in llmctl("keys", "create", "x", "--duration", "soon", fails=True)
    assert "there is a key app already" in llmctl("keys", "create", "app", fails=True)
    assert [row["key_alias"] for row in json.loads(llmctl("keys", "list", "--json"))] == [
        row["key_alias"] for row in json.loads(before)
    ]


@pytest.mark.usefixtures("environment")
def test_a_stack_without_the_database_says_how_to_get_it() -> None:
    for command in (
        ("keys", "list"),
        ("teams", "list"),
        ("usage", "--by", "team"),
        ("usage", "--source", "database"),
    ):
        assert NO_DATABASE in llmctl(*command, fails=True)
