"""Renew `litellm/retirements.yaml` from LiteLLM's newest price list: `make retirements`.

The list comes with LiteLLM's package, from whichever index this machine's pip is set to; nothing of the package is
run. A model that the list has dropped keeps its line: that is how the list treats those that are gone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from infra import retirements

if TYPE_CHECKING:
    from collections.abc import Mapping

PRICE_LIST = "litellm/model_prices_and_context_window_backup.json"
PROVIDERS = ("anthropic", "deepseek", "gemini", "mistral", "openai", "xai")
"""Those whose models are called the same by everybody who asks them."""
MODES = {"chat", "completion", "embedding", "responses"}
FINE_TUNED = "ft:"
REFUSED = ["max_tokens", "temperature", "top_p", "stop"]
"""What OpenAI's reasoning models refuse. Who wants a limit sends `max_completion_tokens`."""
SAMPLING = ["temperature", "top_p"]


def newest_price_list() -> tuple[str, dict[str, Any]]:
    """Return LiteLLM's newest version that pip finds, and its price list."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", *wheel, "litellm"], check=True)
        (file,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(file) as package:
            return file.name.split("-")[1], json.loads(package.read(PRICE_LIST))


def merged(table: Mapping[str, Any], prices: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's content with what a price list says; of models that it does not have, what stood there."""
    listed = {
        _full_name(model, facts["litellm_provider"]): facts
        for model, facts in prices.items()
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
    named = {ending.get("successor") for ending in models.values()} - {None}
    return {
        "models": {
            model: {key: value for key, value in models[model].items() if value is not None}
            for model in sorted(models)
        },
        "successors": {
            model: _parameters(listed[model]) if model in listed else table["successors"][model]
            for model in sorted(named)
            if model in listed or model in table["successors"]
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
    """None for embeddings: vectors of another model cannot be compared with those that are stored."""
    if facts["mode"] == "embedding" or not facts.get("successor_model"):
        return None
    return _full_name(facts["successor_model"], facts["litellm_provider"])


def _full_name(model: str, provider: str) -> str:
    return model if model.startswith(f"{provider}/") else f"{provider}/{model}"


def _parameters(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The `litellm_params` that a release of LiteLLM wants for a model that it does not know."""
    parameters: dict[str, Any] = {
        key: facts[key] for key in ("input_cost_per_token", "output_cost_per_token") if key in facts
    }
    if facts["litellm_provider"] == "openai" and facts.get("supports_reasoning"):
        parameters["additional_drop_params"] = REFUSED
    elif facts.get("supports_sampling_params") is False:
        parameters["additional_drop_params"] = SAMPLING
    return parameters


def main() -> None:
    """Write the file anew, and say what is other than before."""
    text = retirements.FILE.read_text(encoding="utf-8")
    before: dict[str, Any] = yaml.safe_load(text)
    version, prices = newest_price_list()
    after = merged(before, prices)
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
