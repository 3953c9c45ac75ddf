"""What was made with another salt key; what LiteLLM encrypts is tried where its libraries are, in a replica."""

from __future__ import annotations

import importlib

import pytest

from console import litellm_database, salt_key
from console.backup import Content
from tests.stack_config import PROJECT


def test_a_client_has_the_key_that_a_replica_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROJECT / "litellm"))
    keys = importlib.import_module("keys")
    token = keys.hash_of(keys.key_of("batch", "sk-salt"))
    assert salt_key.compared({"clients": {"batch": token}, "values": []}, "sk-salt")["clients"] == []
    assert salt_key.compared({"clients": {"batch": token}, "values": []}, "sk-other")["clients"] == ["batch"]


@pytest.mark.parametrize(
    ("tables", "litellms"),
    [
        ({'public."LiteLLM_Config"': 1, "public._prisma_migrations": 2}, True),
        ({'public."LiteLLM_Config"': 1, "public.organizations": 0}, False),
        ({"public.organizations": 1}, False),
        ({'other."LiteLLM_Config"': 1}, False),
        ({}, False),
    ],
)
def test_an_archive_is_litellms_if_it_has_no_other_tables(tables: dict[str, int], *, litellms: bool) -> None:
    assert litellm_database.is_litellms(Content(tables, 0)) is litellms
