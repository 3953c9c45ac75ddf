"""The search for secrets of tests/deploy: found in every form that they are written in, and not without."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.leaks import Secret, forms, leaked

SECRETS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n", exclude_categories=["C", "Z"]), min_size=8)
AROUND = st.text(st.characters(codec="ascii"), max_size=9)


def secret(value: str) -> Secret:
    return Secret(name="master-key", value=value, renew="rotate it")


@given(value=SECRETS, before=AROUND, after=AROUND)
def test_a_secret_is_found_in_each_form(value: str, before: str, after: str) -> None:
    """As it is, in JSON, in a URL, and in base64 of anything that it is in."""
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
    """The placeholder of a server that wants no key is in many texts."""
    assert forms(value) == set()


def test_a_secret_is_not_found_where_another_one_is() -> None:
    assert not leaked([secret("sk-" + "a1" * 32)], json.dumps({"key": "sk-" + "b2" * 32}))


def test_a_secrets_repr_does_not_show_it() -> None:
    assert "hunter22" not in repr(secret("hunter22"))
