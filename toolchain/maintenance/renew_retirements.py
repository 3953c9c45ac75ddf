"""Updates `litellm/retirements.yaml` and `litellm/prices.yaml` from LiteLLM's newest price list: `make retirements`.

A model that the list has dropped keeps its line, because the list drops models that are gone.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import yaml

from infra import retirements
from toolchain.maintenance import renew_prices

if TYPE_CHECKING:
    from collections.abc import Mapping

PROVIDERS = ("anthropic", "deepseek", "gemini", "mistral", "openai", "xai")
"""Providers whose models have the same name for everybody."""
MODES = {"chat", "completion", "embedding", "responses"}
FINE_TUNED = "ft:"


def merged(table: Mapping[str, Any], newest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's content with what a price list says; models that the list does not have stay as they were."""
    listed = {
        _full_name(model, facts["litellm_provider"]): facts
        for model, facts in newest.items()
        if facts.get("litellm_provider") in PROVIDERS
        and facts.get("mode") in MODES
        and not model.startswith(FINE_TUNED)
    }
    models = {model: ending for model, ending in table["models"].items() if model not in listed}
    for model, facts in listed.items():
        if "deprecation_date" in facts:
            models[model] = {
                "end": date.fromisoformat(facts["deprecation_date"]),
                "successor": _successor(facts),
                "source": facts.get("deprecation_source") or facts["source"],
            }
    return {
        "models": {
            model: {key: value for key, value in models[model].items() if value is not None}
            for model in sorted(models)
        },
    }


def written(comment: str, content: Mapping[str, Any]) -> str:
    """The file's text: a line for each model."""
    lines = [comment.rstrip()]
    for section, entries in content.items():
        lines.append(f"{section}:")
        for model, entry in entries.items():
            line = yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=sys.maxsize).strip()
            lines.append(f"  {model}: {line}")
    return "\n".join(lines) + "\n"


def _successor(facts: Mapping[str, Any]) -> str | None:
    """None for embeddings: another model's vectors cannot be compared with those that are stored."""
    if facts["mode"] == "embedding" or not facts.get("successor_model"):
        return None
    return _full_name(facts["successor_model"], facts["litellm_provider"])


def _full_name(model: str, provider: str) -> str:
    return model if model.startswith(f"{provider}/") else f"{provider}/{model}"


def main() -> None:
    """Rewrite the file, and say what has changed."""
    text = retirements.FILE.read_text(encoding="utf-8")
    before: dict[str, Any] = yaml.safe_load(text)
    version, listed = renew_prices.price_list()
    renew_prices.renew(version, listed)
    after = merged(before, listed)
    if after == before:
        print(f"{retirements.FILE.name} says what LiteLLM {version} does")
        return
    comment = "".join(re.findall(r"^#.*\n", text, re.MULTILINE))
    today = datetime.now(UTC).date()
    comment = re.sub(r"Renewed on .*", f"Renewed on {today} from LiteLLM {version}.", comment)
    retirements.FILE.write_text(written(comment, after), encoding="utf-8")
    for model in sorted(before["models"].keys() | after["models"].keys()):
        old, new = before["models"].get(model), after["models"].get(model)
        if old != new:
            print(f"{model}: {new['end']} ({new.get('successor', 'no successor')})" if new else f"{model}: no end")


if __name__ == "__main__":
    main()
