"""The commands `llmctl keys`: LiteLLM's virtual keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from console import managed_cli as managed
from console.options import HELP, AsJson
from console.served import check_served
from console.tables import print_table, say

keys = typer.Typer(
    help="LiteLLM's keys, each with its own models, budget and limits:  llmctl keys create nightly --max-budget 50",
    no_args_is_help=True,
    context_settings=HELP,
)


@keys.command("create")
def create(
    alias: Annotated[str, typer.Argument(help="A name for it, which `llmctl usage` shows too.")],
    team: Annotated[str | None, typer.Option(help="Its team, whose budget and limits it shares.")] = None,
    model: managed.Models = None,
    max_budget: managed.MaxBudget = None,
    budget_duration: managed.BudgetDuration = None,
    rpm_limit: managed.RpmLimit = None,
    tpm_limit: managed.TpmLimit = None,
    duration: Annotated[
        str | None, typer.Option(help="How long it is valid, such as 90d (default: no expiry).")
    ] = None,
    force: managed.Force = False,
    as_json: AsJson = False,
) -> None:
    """Create a key, and print it this once:  llmctl keys create nightly --team research --max-budget 50."""
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
        print(managed.to_json({**made.told(), "key": key}))
        return
    say(f"key {alias} was created. This is the only time it is shown:")
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
        print(managed.to_json([key.told() for key in found]))
        return
    rows: list[tuple[str, ...]] = [("alias", "key", "team", *managed.COLUMNS, "expires")]
    rows += [
        (key.key_alias or "-", key.key_name or "-", key.team, *managed.cells(key), _day(key.expires, "never"))
        for key in found
    ]
    print_table(rows)


managed.add_commands(keys, "key", example="batch", keys="a key", seconds=10)  # FRESH_SECONDS of litellm/keys.py


def _day(time: datetime | None, otherwise: str) -> str:
    if time is None:
        return otherwise
    return f"{time:%Y-%m-%d}" if time > datetime.now(UTC) else "expired"
