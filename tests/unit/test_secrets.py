"""Generated secrets: stable, rotated on demand, never taken back."""

from __future__ import annotations

from typing import Any

import pytest

from infra.secrets import _ConstantProvider, _Provider

PROVIDER, CONSTANT = _Provider(), _ConstantProvider()


def inputs(**changes: object) -> dict[str, Any]:
    return {
        "kind": "key",
        "version": 1,
        "retire": 0,
        "configured": "",
        "value": None,
        "previous": None,
        "generation": None,
    } | changes


def created(**changes: object) -> dict[str, Any]:
    outs = PROVIDER.create(inputs(**changes)).outs
    assert outs is not None
    return outs


def updated(olds: dict[str, Any], **changes: object) -> dict[str, Any]:
    outs = PROVIDER.update("id", olds, inputs(**changes)).outs
    assert outs is not None
    return outs


def test_a_generated_key_has_the_form_that_settings_demand() -> None:
    from infra.settings import KEY_CHARACTERS  # noqa: PLC0415

    value = created()["value"]
    assert value.startswith("sk-")
    assert len(value) >= KEY_CHARACTERS + 3
    assert created()["value"] != value


def test_nothing_changes_while_the_version_stays() -> None:
    assert PROVIDER.diff("id", created(), inputs()).changes is False


def test_a_higher_version_makes_a_new_value_and_keeps_the_last_one() -> None:
    first = created()
    assert PROVIDER.diff("id", first, inputs(version=2)).changes is True
    second = updated(first, version=2)
    assert second["value"] != first["value"]
    assert second["previous"] == first["value"]
    assert second["generation"] == 2


def test_a_configured_value_wins_and_rotates_when_it_changes() -> None:
    first = created()
    second = updated(first, configured="sk-mine")
    assert (second["value"], second["previous"], second["generation"]) == ("sk-mine", first["value"], 2)
    third = updated(second, configured="sk-other")
    assert (third["value"], third["previous"], third["generation"]) == ("sk-other", "sk-mine", 3)


def test_taking_a_configured_value_away_keeps_it_until_the_next_rotation() -> None:
    first = created(configured="sk-mine")
    assert updated(first)["value"] == "sk-mine"
    assert updated(first)["generation"] == 1


def test_a_first_value_has_no_previous_one() -> None:
    assert created()["previous"] == ""


def test_retiring_forgets_the_previous_value_until_the_next_rotation() -> None:
    first = created()
    second = updated(first, version=2)
    assert PROVIDER.diff("id", second, inputs(version=2, retire=1)).changes is True
    retired = updated(second, version=2, retire=1)
    assert (retired["value"], retired["previous"], retired["generation"]) == (second["value"], "", 2)
    assert updated(retired, version=3, retire=1)["previous"] == second["value"]


def test_a_rotation_that_retires_at_once_leaves_no_previous_value() -> None:
    """A leaked key requires this."""
    assert updated(created(), version=2, retire=1)["previous"] == ""


def test_a_number_cannot_go_back() -> None:
    failures = PROVIDER.check(created(version=3, retire=1), inputs(version=2)).failures
    assert [failure.reason for failure in failures] == [
        "secretVersions cannot go back from 3 to 2",
        "retirePrevious cannot go back from 1 to 0",
    ]


def test_your_own_value_replaces_a_number() -> None:
    """The settings require that a value replaces the number. Removing the value keeps it, and numbers start again."""
    counted = updated(created(), version=3)
    assert PROVIDER.check(counted, inputs(configured="sk-mine")).failures == []
    mine = updated(counted, configured="sk-mine")
    assert (mine["value"], mine["previous"]) == ("sk-mine", counted["value"])
    assert PROVIDER.check(mine, inputs()).failures == []
    kept = updated(mine)
    assert kept["value"] == "sk-mine"
    assert updated(kept, version=2)["value"] != "sk-mine"


def constant(value: str, of: str, *, refusal: str = "dump first") -> dict[str, Any]:
    return {"value": value, "of": of, "first": "the first", "refusal": refusal}


def refusals(olds: dict[str, Any], news: dict[str, Any]) -> list[str]:
    return [failure.reason for failure in CONSTANT.check(olds, news).failures]


def test_a_constant_refuses_another_value_with_its_reason() -> None:
    olds = CONSTANT.check({}, constant("16", "the first")).inputs
    assert refusals({}, constant("16", "the first")) == []
    assert refusals(olds, constant("16", "the first")) == []
    assert refusals(olds, constant("17", "the first")) == ["the first has 16: dump first"]


def test_a_constant_remembers_the_value_of_each_thing() -> None:
    """So the way back is to that thing's value, however many others there have been since."""
    olds: dict[str, Any] = {}
    for value, of in (("16", "the first"), ("17", "another"), ("18", "a third")):
        assert refusals(olds, constant(value, of)) == []
        olds = CONSTANT.check(olds, constant(value, of)).inputs
    assert refusals(olds, constant("18", "the first")) == ["the first has 16: dump first"]
    assert refusals(olds, constant("18", "another")) == ["another has 17: dump first"]
    assert refusals(olds, constant("16", "the first")) == []


@pytest.mark.parametrize(
    ("olds", "of"),
    [
        ({"value": "16", "refusal": "dump first"}, "the first"),
        ({"value": "16", "of": "another", "refusal": "dump first"}, "another"),
    ],
)
def test_a_constant_takes_a_state_of_before_over(olds: dict[str, Any], of: str) -> None:
    """A state that names no thing means the first; a state without other values means the one it names."""
    assert refusals(olds, constant("17", of)) == [f"{of} has 16: dump first"]
    assert refusals(olds, constant("17", "a third")) == []
    taken = CONSTANT.check(olds, constant("16", of))
    assert taken.failures == []
    state = CONSTANT.update("guard", olds, taken.inputs).outs
    assert state is not None
    assert CONSTANT.diff("guard", olds, taken.inputs).changes is True
    assert CONSTANT.diff("guard", state, CONSTANT.check(taken.inputs, constant("16", of)).inputs).changes is False


def test_what_a_guard_remembers_follows_what_it_let_through() -> None:
    """Otherwise it would compare with the original value."""
    made = CONSTANT.check({}, constant("16", "the first")).inputs
    first = CONSTANT.create(made).outs
    assert first == made
    assert CONSTANT.diff("guard", first, CONSTANT.check(made, constant("16", "the first")).inputs).changes is False
    again = CONSTANT.check(made, constant("16", "the first", refusal="dump it first")).inputs
    assert CONSTANT.diff("guard", first, again).changes is True
    assert CONSTANT.update("guard", first, again).outs == again
