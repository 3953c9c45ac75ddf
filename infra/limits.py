"""What the stack config says about a client's limits: `clientLimits`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from console.durations import DURATION

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = {"rpm": "600", "tpm": "100000", "budget": "50", "budgetDuration": "30d", "models": "MODEL"}
"""An example of each limit, for the command that sets it."""


def _duration(text: str) -> str:
    if not DURATION.fullmatch(text):
        raise ValueError("is not a duration that LiteLLM reads: use 30s, 30m, 30h, 30d or 1mo")
    return text


PerMinute = Annotated[int, Field(ge=1, le=1_000_000_000)]


class ClientLimits(BaseModel):
    """A client's limits, as LiteLLM counts them; None for no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, hide_input_in_errors=True)

    rpm: PerMinute | None = None
    """Requests per minute, at each replica."""
    tpm: PerMinute | None = None
    """Tokens per minute, at each replica."""
    budget: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """US dollars."""
    budget_duration: Annotated[str, AfterValidator(_duration)] | None = None
    """The period after which the budget starts over."""
    models: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The models that it may ask."""


def command(location: Sequence[int | str]) -> str | None:
    """The command that fixes a value of `clientLimits` at this location; None if no better one is known."""
    client, *steps = location
    if not steps:
        return None
    path = f"clientLimits.{client}.{steps[0]}"
    if steps[0] not in EXAMPLES:
        return f"rm --path {path}"
    return (
        f"set --path '{path}[{steps[1] if steps[1:] else 0}]' MODEL"
        if steps[0] == "models"
        else (f"set --path {path} {EXAMPLES[str(steps[0])]}")
    )
