"""What answers for a name once its model's provider has shut the model down."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from infra import model_list, prices, retirements
from tests.stack_config import PROJECT
from toolchain.maintenance import renew_retirements as renewal

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.settings import Settings

FILE = (PROJECT / "litellm/config.yaml").read_text()
TABLE = retirements.load("""
models:
  openai/first: {end: 2026-01-10, successor: openai/second, source: https://provider.example/ends}
  openai/second: {end: 2026-06-10, successor: openai/third, source: https://provider.example/ends}
  openai/lonely: {end: 2026-01-10, source: https://provider.example/ends}
  openai/round: {end: 2026-01-10, successor: openai/about, source: https://provider.example/ends}
  openai/about: {end: 2026-01-10, successor: openai/round, source: https://provider.example/ends}
""")
KEY = "os.environ/OPENAI_API_KEY"


def applied(
    model: str, day: str, policy: retirements.Policy = "replace"
) -> tuple[dict[str, Any] | None, retirements.Ending | None]:
    entry = {"model_name": "name", "litellm_params": {"model": model, "api_key": KEY}}
    return retirements.apply(entry, policy, TABLE, date.fromisoformat(day))


def test_a_model_without_an_end_is_served_as_it_is() -> None:
    entry, ending = applied("openai/other", "2026-01-10")
    assert entry == {"model_name": "name", "litellm_params": {"model": "openai/other", "api_key": KEY}}
    assert ending is None


@pytest.mark.parametrize(
    ("day", "model", "fate"),
    [
        ("2025-11-10", "openai/first", None),  # 61 days before
        ("2025-11-11", "openai/first", "ends"),
        ("2026-01-09", "openai/first", "ends"),
        ("2026-01-10", "openai/second", "replaced"),
        ("2026-06-09", "openai/second", "replaced"),
        ("2026-06-10", "openai/third", "replaced"),
    ],
)
def test_the_successor_answers_from_the_day_on_which_a_model_is_gone(day: str, model: str, fate: str | None) -> None:
    """And the successor's successor from the day on which that is gone. The preview says so for 60 days before."""
    entry, ending = applied("openai/first", day)
    assert entry is not None
    assert entry["litellm_params"]["model"] == model
    assert entry["litellm_params"]["api_key"] == KEY
    assert (ending.fate if ending else None) == fate


def test_what_answers_is_asked_with_the_same_key() -> None:
    entry, _ = applied("openai/first", "2026-07-01")
    assert entry is not None
    assert entry["litellm_params"] == {"model": "openai/third", "api_key": KEY}
    assert entry["model_info"] == {"replaces": "openai/first"}


@pytest.mark.parametrize("model", ["openai/lonely", "openai/round"])
def test_a_model_without_a_successor_stays(model: str) -> None:
    """Its provider may still answer; the warning says that it probably does not."""
    entry, ending = applied(model, "2026-01-10")
    assert entry is not None
    assert entry["litellm_params"]["model"] == model
    assert ending is not None
    assert ending.fate == "kept"
    assert "PROVIDER/MODEL" in ending.warning("set")


def test_a_team_may_keep_a_model_or_leave_it_out() -> None:
    entry, ending = applied("openai/first", "2026-01-10", "keep")
    assert entry is not None
    assert entry["litellm_params"]["model"] == "openai/first"
    assert entry["model_info"] == {"shutdown_date": "2026-01-10", "successor": "openai/second"}
    assert ending is not None
    assert ending.fate == "kept"
    entry, ending = applied("openai/first", "2026-01-10", "leaveOut")
    assert entry is None
    assert ending is not None
    assert ending.fate == "left out"


def served(settings: Settings, day: str) -> tuple[model_list.ModelList, dict[str, str]]:
    result = model_list.render(FILE, settings, demo_url="http://demo:8080", today=date.fromisoformat(day))
    config = yaml.safe_load(result.config)
    return result, {model["model_name"]: model["litellm_params"]["model"] for model in config["model_list"]}


def test_callers_names_do_not_change(settings: Callable[..., Settings]) -> None:
    """The default fallback of every organization is answered, although its model ended on 2025-10-28."""
    result, models = served(settings("staging", openaiApiKey="sk-1", anthropicApiKey="sk-ant-1"), "2026-11-28")
    assert result.served == ("gpt-4o", "claude-3-5-sonnet", "text-embedding-3-small")
    assert models["claude-3-5-sonnet"] == "anthropic/claude-sonnet-5-5"
    assert "input_cost_per_token: 2.0e-06" in result.config  # which LiteLLM 1.55.0 does not know
    assert models["gpt-4o"] == "openai/gpt-4o"
    assert [(each.name, each.fate) for each in result.ending] == [
        ("gpt-4o", "ends"),
        ("claude-3-5-sonnet", "replaced"),
    ]
    _, models = served(settings("staging", openaiApiKey="sk-1"), "2027-01-14")
    assert models == {"gpt-4o": "openai/gpt-6-luna", "text-embedding-3-small": "openai/text-embedding-3-small"}


def test_a_model_that_is_left_out_is_not_served(settings: Callable[..., Settings]) -> None:
    result, _ = served(settings("dev", retiredModels="leaveOut"), "2026-11-28")
    assert result.served == ("gpt-4o", "text-embedding-3-small")


def test_what_a_server_of_the_teams_own_calls_by_that_name_does_not_end(settings: Callable[..., Settings]) -> None:
    own = {"name": "claude-3-5-sonnet", "model": "openai/gpt-4o", "apiBase": "http://10.0.0.9/v1"}
    result, models = served(settings("staging", models=[own]), "2030-01-01")
    assert models == {"claude-3-5-sonnet": "openai/gpt-4o"}
    assert result.ending == ()


def test_a_model_of_the_stack_config_ends_too(settings: Callable[..., Settings]) -> None:
    """With the provider's prefix or, as LiteLLM allows in its own file, without it."""
    own = {"name": "mini", "model": "openai/gpt-4.1-mini"}
    _, models = served(settings("staging", openaiApiKey="sk-1", models=[own]), "2027-01-14")
    assert models["mini"] == "openai/gpt-6-luna"
    assert retirements.load().of("gpt-4o") == retirements.load().of("openai/gpt-4o") is not None


def test_the_tables_successors_are_known_and_its_file_is_as_it_is_written() -> None:
    """Each one that is not itself gone has a price."""
    text = retirements.FILE.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert renewal.written(comment, content) == text
    assert renewal.merged(content, {}) == content
    for model in ("openai/gpt-6-luna", "anthropic/claude-sonnet-5-5"):
        assert prices.load()[model].costs["input_cost_per_token"] > 0


def test_a_renewal_takes_what_the_list_says_and_keeps_what_it_has_dropped() -> None:
    """An end that was postponed or revoked, a new one, and embeddings without a successor."""
    ends = {"end": date(2026, 1, 1), "successor": "openai/new", "source": "https://provider.example/ends"}
    facts = {"litellm_provider": "openai", "mode": "chat", "source": "https://provider.example/prices"}
    newest = {
        "back": facts,
        "later": facts | {"deprecation_date": "2027-01-01", "successor_model": "new"},
        "new": facts | {"input_cost_per_token": 1e-06, "supports_reasoning": True},
        "vectors": facts | {"deprecation_date": "2027-01-01", "mode": "embedding", "successor_model": "new"},
        "ft:later": facts | {"deprecation_date": "2027-01-01"},
        "picture": facts | {"deprecation_date": "2027-01-01", "mode": "image_generation"},
        "azure/later": facts | {"litellm_provider": "azure", "deprecation_date": "2027-01-01"},
    }
    before = {"models": {"openai/dropped": ends, "openai/back": ends, "openai/later": ends}}
    source = "https://provider.example/prices"
    assert renewal.merged(before, newest) == {
        "models": {
            "openai/dropped": ends,
            "openai/later": {"end": date(2027, 1, 1), "successor": "openai/new", "source": source},
            "openai/vectors": {"end": date(2027, 1, 1), "source": source},
        },
    }
