"""Secrets in clear in the stack's file are refused, wherever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pulumi
import pytest
import yaml

from infra import stack_config
from infra.stack_config import validate
from tests.stack_config import KEY, OTHER_KEY, PROJECT_NAME, raw_config

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("openaiApiKey", "sk-1", ["openaiApiKey"]),
        ("clientKeys", {"app": KEY, "web": ""}, ["clientKeys.app"]),
        ("clientKeys", {"app": ["", KEY]}, ["clientKeys.app[1]"]),
    ],
)
def test_a_secret_in_clear_is_refused(key: str, value: object, named: list[str]) -> None:
    """A secret that was set without --secret is in a file in clear text: the program says so and does not use it."""
    found = validate(raw_config("dev", **{key: value}), secret=set())[1]
    assert [problem.key for problem in found if "not encrypted" in problem.what] == named
    assert "is not encrypted" in found[0].what
    assert "--secret" in found[0].command


def test_a_secret_in_clear_beside_an_encrypted_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Pulumi calls the whole map a secret as soon as one entry is; the stack's file says which."""
    config = raw_config("dev", clientKeys={"batch": KEY, "web": OTHER_KEY, "new": ""})
    own = {f"{PROJECT_NAME}:clientKeys": {"batch": {"secure": "v1:abc"}, "web": OTHER_KEY, "new": ""}}
    (tmp_path / "Pulumi.dev.yaml").write_text(yaml.safe_dump({"config": own}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stack_config, "get_config_env", lambda: {f"{PROJECT_NAME}:{k}": v for k, v in config.items()})
    monkeypatch.setattr(stack_config, "get_config_secret_keys_env", lambda: [f"{PROJECT_NAME}:clientKeys"])
    monkeypatch.setattr(pulumi, "get_project", lambda: PROJECT_NAME)
    monkeypatch.setattr(pulumi, "get_stack", lambda: "dev")
    with pytest.raises(pulumi.RunError) as caught:
        stack_config.load()
    assert OTHER_KEY not in str(caught.value)
    assert str(caught.value).splitlines()[1:] == [
        "  clientKeys.web: is not encrypted: get a new one, because this one may be known",
        """      ./pulumiw config set --stack dev --secret --path 'clientKeys["web"]' VALUE""",
    ]


def test_clients_whose_keys_are_generated_need_no_encryption() -> None:
    assert validate(raw_config("dev", clientKeys={"batch": ""}), secret=set())[1] == []
