"""The checks of tests/deploy without a stack: what they need, how they find secrets, and which models they ask."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import model_list
from tests.deploy.leaks import Secret, forms, leaked
from tests.deploy.test_gateway import models_to_ask
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infra.settings import Settings

SECRETS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n", exclude_categories=["C", "Z"]), min_size=8)
AROUND = st.text(st.characters(codec="ascii"), max_size=9)
PROVIDER: dict[str, Any] = {"demo": False, "openaiApiKey": "sk-of-a-provider"}
OWN = {"name": "own", "model": "openai/own", "apiBase": "http://10.0.0.9/v1"}


def test_without_a_docker_command_that_alone_is_said(tmp_path: Path) -> None:
    """In one line, and checks that would fail without it do not run."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/deploy", "--stack", "nowhere"],
        cwd=PROJECT,
        env={**os.environ, "PATH": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    [error] = [line for line in (result.stdout + result.stderr).splitlines() if "docker" in line]
    assert error.startswith("ERROR: there is no docker command on PATH")


def secret(value: str) -> Secret:
    return Secret(name="master-key", value=value, renew="rotate it")


@given(value=SECRETS, before=AROUND, after=AROUND)
def test_a_secret_is_found_in_each_form(value: str, before: str, after: str) -> None:
    """As it is, in JSON, in a URL, and in the base64 form of a text that contains it."""
    text = before + value + after
    for written in (
        text,
        json.dumps({"env": [text]}),
        f"https://gateway.example/?key={quote(text, safe='')}",
        base64.b64encode(text.encode()).decode(),
        base64.urlsafe_b64encode(text.encode()).decode(),
    ):
        assert [found.name for found in leaked([secret(value)], written)] == ["master-key"]


def test_each_line_of_a_private_key_is_a_secret() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG\n9w0BAQEFAASCBKcwggSj\n-----END PRIVATE KEY-----\n"
    assert leaked([secret(key)], "… 9w0BAQEFAASCBKcwggSj …")
    assert not leaked([secret(key)], "-----BEGIN PRIVATE KEY-----")


@pytest.mark.parametrize("value", ["", "none", "EMPTY"])
def test_what_is_too_short_to_be_a_secret_is_not_looked_for(value: str) -> None:
    """A placeholder for a server without a key appears in many texts."""
    assert forms(value) == set()


def test_a_secret_is_not_found_where_another_one_is() -> None:
    assert not leaked([secret("sk-" + "a1" * 32)], json.dumps({"key": "sk-" + "b2" * 32}))


def test_a_secrets_repr_does_not_show_it() -> None:
    assert "hunter22" not in repr(secret("hunter22"))


def stack(settings: Settings) -> Any:
    """What the checks read of a stack that was deployed with these settings."""
    text = (PROJECT / "litellm/config.yaml").read_text()
    config = model_list.render(text, settings, demo_url="http://demo:8080").config
    return SimpleNamespace(settings=settings, outputs={"litellmConfig": config}, parts=[])


@pytest.mark.parametrize("embeds", [False, True])
def test_a_providers_model_is_asked_only_where_money_may_be_spent(
    settings: Callable[..., Settings], *, embeds: bool
) -> None:
    """The skip reason names the models, and the option that includes them."""
    model = "text-embedding-3-small" if embeds else "gpt-4o"
    made = stack(settings(**PROVIDER))
    with pytest.raises(pytest.skip.Exception, match=rf"it would cost money: .*{model}.*make check-deploy SPEND=1"):
        models_to_ask(made, embeds=embeds, spend=False)
    assert models_to_ask(made, embeds=embeds, spend=True) == [model]


def test_the_demo_provider_costs_nothing(settings: Callable[..., Settings]) -> None:
    assert models_to_ask(stack(settings()), embeds=False, spend=False) == ["gpt-4o"]


def test_a_model_of_the_teams_own_without_a_price_is_asked_in_place_of_a_providers(
    settings: Callable[..., Settings],
) -> None:
    made = stack(settings(**PROVIDER, models=[OWN]))
    assert models_to_ask(made, embeds=False, spend=False) == ["own"]
    assert models_to_ask(made, embeds=False, spend=True) == ["gpt-4o", "own"]


def test_a_model_of_the_teams_own_with_a_price_costs_money(settings: Callable[..., Settings]) -> None:
    made = stack(settings(**PROVIDER, models=[{**OWN, "inputCostPerToken": 0.001}]))
    with pytest.raises(pytest.skip.Exception, match="it would cost money"):
        models_to_ask(made, embeds=False, spend=False)


def test_a_stack_without_an_embedding_model_is_not_asked_for_one(settings: Callable[..., Settings]) -> None:
    made = stack(settings(demo=False, models=[OWN]))
    with pytest.raises(pytest.skip.Exception, match="no model for embeddings"):
        models_to_ask(made, embeds=True, spend=True)
