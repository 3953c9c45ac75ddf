"""A stack stays on the engine that it is on."""

from __future__ import annotations

from typing import Any

import pytest

from infra.placement import guard

THERE = {"host": "unix:///var/run/docker.sock", "label": "label", "identity": "abc", "stack": "dev"}
PROVIDER = guard._EngineGuardProvider()


def refusals(olds: dict[str, Any], host: str) -> list[str]:
    return [each.reason for each in PROVIDER.check(olds, THERE | {"host": host}).failures]


def no_engine(host: str) -> None:
    raise ConnectionRefusedError(host)


def test_the_first_engine_is_any_and_the_same_one_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "connect", no_engine)
    assert refusals({}, "tcp://10.0.0.5:2376") == []
    assert refusals(THERE, THERE["host"]) == []


@pytest.mark.parametrize("there", [True, False])
def test_another_way_to_the_same_engine_is_accepted_and_another_engine_refused(
    monkeypatch: pytest.MonkeyPatch,
    there: bool,  # noqa: FBT001
) -> None:
    """Depending on whether the stack's objects are there. The refusal says how to move the stack, and how to stay."""
    asked: list[tuple[str, str]] = []

    def has(host: str, label: str) -> bool:
        asked.append((host, label))
        return there

    monkeypatch.setattr(guard, "_has", has)
    found = refusals(THERE, "ssh://deploy@host.example")
    assert asked == [("ssh://deploy@host.example", "label=abc")]
    if there:
        assert found == []
    else:
        (refusal,) = found
        assert "nothing of it is on ssh://deploy@host.example" in refusal
        assert "llmctl backup" in refusal
        assert refusal.endswith("./pulumiw config set --stack dev dockerHost unix:///var/run/docker.sock")


def test_an_engine_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "connect", no_engine)
    (refusal,) = refusals(THERE, "tcp://10.0.0.5:2376")
    assert "tcp://10.0.0.5:2376 cannot tell whether" in refusal
