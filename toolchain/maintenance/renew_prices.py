"""Updates `litellm/prices.yaml` from LiteLLM's price lists: the newest, and those of the releases that are run here.

Each list comes with its package, from the index that this machine's pip uses; no code of a package is run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import prices, providers

if TYPE_CHECKING:
    from collections.abc import Mapping

PRICE_LIST = "litellm/model_prices_and_context_window_backup.json"
PREFIXES = {
    **{name: name for name in ("anthropic", "azure", "bedrock", "cohere", "cohere_chat", "deepseek", "fireworks_ai")},
    **{name: name for name in ("gemini", "groq", "mistral", "openai", "openrouter", "together_ai", "xai")},
    "bedrock_converse": "bedrock",
}
"""The providers whose models are kept, by their names in the list, with LiteLLM's prefix."""
OF_VERTEX = "vertex_ai"
MODES = {"chat", "completion", "embedding", "responses"}
LEFT_OUT = re.compile(
    r"(openai/)?ft:|(azure|bedrock)/[\w-]+/|(fireworks|together)[\w/-]*ai-[\d\w.-]*b|.*/(\d+|max)-x|.*-x-"
)
"""Entries that are left out: fine-tuned models, models of one region, and sizes that the list has instead of
models."""
REASONING, SAMPLING = "reasoning", "sampling"
REFUSED = {REASONING: ["max_tokens", "temperature", "top_p", "stop"], SAMPLING: ["temperature", "top_p"]}
"""What OpenAI's reasoning models refuse, and others that fix their sampling. All accept `max_completion_tokens`."""
CHAT_LATEST = re.compile(r"chat(-latest)?$")


def price_list(version: str = "") -> tuple[str, dict[str, Any]]:
    """Return a version of LiteLLM, the newest that pip finds unless one is named, and its price list."""
    wanted = f"litellm=={version}" if version else "litellm"
    with tempfile.TemporaryDirectory() as folder:
        wheel = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", *wheel, wanted], check=True)
        (file,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(file) as package:
            return file.name.split("-")[1], json.loads(package.read(PRICE_LIST))


def full_name(model: str, facts: Mapping[str, Any]) -> str:
    """A model of a price list as LiteLLM's `model` names it; empty for one that is not kept."""
    of = str(facts.get("litellm_provider", ""))
    prefix = OF_VERTEX if of.startswith(OF_VERTEX) else PREFIXES.get(of, "")
    if not prefix or facts.get("mode") not in MODES or "input_cost_per_token" not in facts:
        return ""
    name = model if model.startswith(f"{prefix}/") else f"{prefix}/{model}"
    return "" if LEFT_OUT.match(name) else name


def made(newest: Mapping[str, Any], of_releases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The file's content, from the newest list and those of releases.

    Models that only an older list has stay: newer lists drop models that are gone, and then LiteLLM counts no cost.
    """
    known: dict[str, dict[str, Any]] = {}
    told: dict[str, set[str]] = {}
    for version, listed in {**of_releases, "": newest}.items():
        for model, facts in listed.items():
            if name := full_name(model, facts):
                known[name] = facts
                told.setdefault(name, set()).add(version)
    models = {}
    for name, facts in sorted(known.items()):
        entry: dict[str, Any] = {
            "usd": [round(float(facts.get(cost) or 0) * prices.MILLION, prices.DIGITS) for cost in prices.COSTS]
        }
        if unknown := [version for version in of_releases if version not in told[name]]:
            entry["unknown_to"] = unknown
        if refuses := _refuses(name, facts):
            entry["refuses"] = refuses
        models[name] = entry
    return {"refused": REFUSED, "models": models}


def _refuses(name: str, facts: Mapping[str, Any]) -> str:
    if facts["mode"] == "embedding":
        return ""
    reasons = facts.get("supports_reasoning") and name.startswith(("openai/", "azure/"))
    if reasons and not CHAT_LATEST.search(name):
        return REASONING
    return SAMPLING if facts.get("supports_sampling_params") is False else ""


def written(version: str, content: Mapping[str, Any], today: str) -> str:
    """The file's text: a line for each model."""

    def line(entry: object) -> str:
        return json.dumps(entry).replace('"', "")

    return "\n".join(
        [
            "# What models cost, in US dollars for a million tokens in and out, and which parameters they refuse, as",
            "# LiteLLM's newest price list has it. `unknown_to` has the releases that are run here and do not know",
            "# the price: the stack tells them. `make retirements` renews all of it.",
            f"# Renewed on {today} from LiteLLM {version}.",
            "refused:",
            *(f"  {name}: {line(entry)}" for name, entry in content["refused"].items()),
            "models:",
            *(f"  {name}: {line(entry)}" for name, entry in content["models"].items()),
            "",
        ]
    )


def renew(version: str, newest: Mapping[str, Any]) -> None:
    """Rewrite the file from the newest list."""
    of_releases = {it.version: price_list(it.version)[1] for it in providers.load().releases}
    text = written(version, made(newest, of_releases), str(datetime.now(UTC).date()))
    prices.FILE.write_text(text, encoding="utf-8")
    print(f"{prices.FILE.name} says what LiteLLM {version} does")
