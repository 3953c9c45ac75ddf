"""When providers end models, and what answers instead: `litellm/retirements.yaml`, applied to a model list."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

Policy = Literal["replace", "keep", "leaveOut"]
FILE = Path(__file__).parent.parent / "litellm" / "retirements.yaml"
NOTICE = timedelta(days=60)
"""How long before a model's end a preview begins to warn."""
INFO = ("shutdown_date", "successor", "replaces")
"""The entries that `apply` adds to a model's `model_info`; litellm/release.py reads them there."""


@dataclass(frozen=True, kw_only=True)
class Retirement:
    """When and how a model ends."""

    end: date
    """The first day on which the provider no longer serves it."""
    successor: str | None
    """The model that the provider recommends instead, with LiteLLM's prefix."""
    source: str
    """The page that says so."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The file's content. Models are named as in LiteLLM's `model`: provider/model."""

    models: Mapping[str, Retirement]

    def of(self, model: str) -> Retirement | None:
        """The end of a model; None if none is known. LiteLLM reads `gpt-4o` as `openai/gpt-4o`."""
        if "/" in model:
            return self.models.get(model)
        return self.models.get(f"openai/{model}") or self.models.get(f"anthropic/{model}")

    def successor(self, model: str, today: date) -> str | None:
        """The first in the chain of a model's successors that is available on a day."""
        seen = {model}
        while (retirement := self.of(model)) is not None and retirement.end <= today:
            if retirement.successor is None or retirement.successor in seen:
                return None
            model = retirement.successor
            seen.add(model)
        return model


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A model of the list that has been shut down, or will be soon."""

    name: str
    """What callers ask for."""
    model: str
    end: date
    successor: str | None
    """The model that answers instead, now or then."""
    fate: Literal["replaced", "left out", "kept", "ends"]

    def warning(self, command: str) -> str:
        """One sentence for the preview; `command` is the start of the command that sets another model."""
        other = f"{command} {self.successor or 'PROVIDER/MODEL'}"
        match self.fate:
            case "replaced":
                what = f"{self.model} ended on {self.end}, so {self.successor} answers in its place"
            case "left out":
                what = f"{self.model} ended on {self.end}, so it is not served"
            case "kept":
                what = f"{self.model} ended on {self.end}: its provider refuses what is asked of it"
            case "ends":
                then = f"; {self.successor} takes its place at the next `up` after that" if self.successor else ""
                what = f"{self.model} ends on {self.end}{then}"
        return f"{self.name}: {what}. To choose what answers: {other}"


def load(text: str | None = None) -> Table:
    """Return the table; `text` is the file's content."""
    content: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8") if text is None else text)
    return Table(
        models={
            model: Retirement(end=it["end"], successor=it.get("successor"), source=it["source"])
            for model, it in content["models"].items()
        }
    )


def apply(
    entry: dict[str, Any], policy: Policy, table: Table, today: date
) -> tuple[dict[str, Any] | None, Ending | None]:
    """Return what is served for an entry of a model list on a day, and what to say about its end.

    `model_info` of the result says when the model that answers ends (`shutdown_date`, as OpenAI's API calls it),
    which model follows it (`successor`), and which model it replaces (`replaces`).
    """
    name, parameters = entry["model_name"], entry["litellm_params"]
    model: str = parameters["model"]
    retirement = table.of(model)
    if retirement is None:
        return entry, None
    successor = table.successor(model, max(today, retirement.end))
    ending = Ending(name=name, model=model, end=retirement.end, successor=successor, fate="ends")
    if today < retirement.end:
        soon = retirement.end - today <= NOTICE
        then = successor if policy == "replace" else None
        return _with_info(entry, end=retirement.end, successor=then), ending if soon else None
    if policy == "leaveOut":
        return None, _with_fate(ending, "left out")
    if policy == "keep" or successor is None:
        return _with_info(entry, end=retirement.end, successor=successor), _with_fate(ending, "kept")
    placed = {**entry, "litellm_params": {**parameters, "model": successor}}
    next_end = table.of(successor)
    return (
        _with_info(placed, end=next_end.end if next_end else None, replaces=model),
        _with_fate(ending, "replaced"),
    )


def _with_fate(ending: Ending, fate: Literal["replaced", "left out", "kept"]) -> Ending:
    return Ending(name=ending.name, model=ending.model, end=ending.end, successor=ending.successor, fate=fate)


def _with_info(entry: dict[str, Any], *, end: date | None, **known: str | None) -> dict[str, Any]:
    info = {"shutdown_date": end.isoformat() if end else None, **known}
    return {
        **entry,
        "model_info": {**entry.get("model_info", {}), **{k: v for k, v in info.items() if v is not None}},
    }
