"""The commands `llmctl keys`: LiteLLM's virtual keys."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console.served import check_served
from console.tables import print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from console.management import Key, Team

HELP = {"help_option_names": ["-h", "--help"]}
keys = typer.Typer(
    help="LiteLLM's keys, with models, budgets and limits of their own:  llmctl keys create batch --max-budget 50",
    no_args_is_help=True,
    context_settings=HELP,
)

FRESH_SECONDS = 10
"""How long a replica goes by what it has read of a key (litellm/keys.py)."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="A model it may ask; several times for several (default: all)."),
]
MaxBudget = Annotated[float | None, typer.Option(min=0, help="US dollars that it may spend.")]
BudgetDuration = Annotated[str | None, typer.Option(help="After which the budget begins anew, as 30d or 1mo.")]
RpmLimit = Annotated[int | None, typer.Option(min=1, help="Requests a minute.")]
TpmLimit = Annotated[int | None, typer.Option(min=1, help="Tokens a minute.")]
Force = Annotated[bool, typer.Option("--force", help="Take models that the gateway does not serve.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Called = Annotated[str, typer.Argument(metavar="ALIAS", help="The key's alias, or how its hash begins (--json).")]


@keys.command("create")
def create(
    alias: Annotated[str, typer.Argument(help="A name for it, which the bill has too.")],
    team: Annotated[str | None, typer.Option(help="Its team, whose budget and limits it shares.")] = None,
    model: Models = None,
    max_budget: MaxBudget = None,
    budget_duration: BudgetDuration = None,
    rpm_limit: RpmLimit = None,
    tpm_limit: TpmLimit = None,
    duration: Annotated[str | None, typer.Option(help="How long it is good for, as 90d (default: for ever).")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make a key, and print it this once:  llmctl keys create batch --team research --max-budget 50."""
    from console.management import Limits, gateway  # noqa: PLC0415

    limits = Limits(
        models=tuple(model or ()),
        max_budget=max_budget,
        budget_duration=budget_duration,
        rpm_limit=rpm_limit,
        tpm_limit=tpm_limit,
    )
    check_served(limits.models, force=force)
    made, key = gateway().create_key(alias, limits, team=team, duration=duration)
    if as_json:
        print(_json({**dataclasses.asdict(made), "key": key}))
        return
    say(f"key {alias} is made; nobody can be told it again:")
    print(key)


@keys.command("list")
def list_(
    team: Annotated[str | None, typer.Option(help="Only those of this team.")] = None, as_json: AsJson = False
) -> None:
    """List the keys, with what they have spent:  llmctl keys list."""
    from console.management import gateway, team_called  # noqa: PLC0415

    found, teams = gateway().all()
    if team is not None:
        of = team_called(team, teams).team_id
        found = [key for key in found if key.team_id == of]
    if as_json:
        print(_json([dataclasses.asdict(key) for key in found]))
        return
    rows: list[tuple[str, ...]] = [("alias", "key", "team", *COMMON, "expires")]
    rows += [
        (key.key_alias or "-", key.key_name or "-", _team(key), *common(key), _day(key.expires, "never"))
        for key in found
    ]
    print_table(rows)


@keys.command("show")
def show(alias: Called, as_json: AsJson = False) -> None:
    """Show a key's limits, and what it has spent:  llmctl keys show batch."""
    from console.management import gateway  # noqa: PLC0415

    print_one(gateway().key(alias), as_json=as_json)


@keys.command("block")
def block(alias: Called, as_json: AsJson = False) -> None:
    """Let a key ask nothing more, until it is unblocked:  llmctl keys block batch."""
    _set_blocked(alias, blocked=True, as_json=as_json)


@keys.command("unblock")
def unblock(alias: Called, as_json: AsJson = False) -> None:
    """Let a key ask again:  llmctl keys unblock batch."""
    _set_blocked(alias, blocked=False, as_json=as_json)


@keys.command("delete")
def delete(alias: Called, yes: Yes = False) -> None:
    """Delete a key for ever, but not what it has spent:  llmctl keys delete batch."""
    from console.management import gateway  # noqa: PLC0415

    asked = gateway()
    key = asked.key(alias)
    if not agreed(f"Delete key {alias} ({key.key_name}), team {_team(key)}?", yes=yes):
        raise typer.Exit(1)
    asked.delete_key(key)
    say(f"key {alias} is deleted, on every replica within {FRESH_SECONDS} seconds")


def _set_blocked(alias: str, *, blocked: bool, as_json: bool) -> None:
    from console.management import gateway  # noqa: PLC0415

    asked = gateway()
    now = asked.block_key(asked.key(alias), blocked=blocked)
    if as_json:
        print(_json(dataclasses.asdict(now)))
        return
    say(f"key {alias} is {'blocked' if blocked else 'unblocked'}, on every replica within {FRESH_SECONDS} seconds")


COMMON = ("spend ($)", "budget ($)", "rpm", "tpm", "models", "blocked")


def common(each: Key | Team) -> tuple[str, ...]:
    """The cells of COMMON."""
    budget = "-" if each.max_budget is None else f"{each.max_budget:,g}"
    per = f" per {each.budget_duration}" if each.budget_duration else ""
    limits = [f"{limit:,}" if limit is not None else "-" for limit in (each.rpm_limit, each.tpm_limit)]
    return (
        f"{each.spend:,.6f}",
        f"{budget}{per}",
        *limits,
        ", ".join(each.models) or "all",
        "blocked" if each.blocked else "-",
    )


def print_one(each: Key | Team, *, as_json: bool) -> None:
    """A field a line, or as JSON."""
    if as_json:
        print(_json(dataclasses.asdict(each)))
        return
    print_table([(name, _text(value)) for name, value in dataclasses.asdict(each).items()])


def agreed(question: str, *, yes: bool) -> bool:
    """Whether whoever types agrees. Raises typer.BadParameter where nobody can be asked."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise typer.BadParameter("without a terminal to ask on, say --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _team(key: Key) -> str:
    return key.team_alias or key.team_id or "-"


def _text(value: Any) -> str:  # noqa: ANN401 -- any field
    if isinstance(value, (tuple, list)):
        return ", ".join(value) or "-"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return "-" if value is None else str(value)


def _day(time: datetime | None, otherwise: str) -> str:
    if time is None:
        return otherwise
    return f"{time:%Y-%m-%d}" if time > datetime.now(UTC) else "expired"


def _json(value: Any) -> str:  # noqa: ANN401 -- a dictionary or a list of some
    return json.dumps(value, default=str)


def to_json(found: Sequence[Key | Team]) -> str:
    """All of them as one document."""
    return _json([dataclasses.asdict(each) for each in found])
