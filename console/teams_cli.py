"""The commands `llmctl teams`: LiteLLM's teams, which keys belong to."""

from __future__ import annotations

from typing import Annotated

import typer

from console.keys_cli import (
    COMMON,
    HELP,
    AsJson,
    BudgetDuration,
    Force,
    MaxBudget,
    Models,
    RpmLimit,
    TpmLimit,
    Yes,
    agreed,
    common,
    print_one,
    to_json,
)
from console.served import check_served
from console.tables import print_table, say

teams = typer.Typer(
    help="LiteLLM's teams, whose keys share a budget:  llmctl teams create research --max-budget 500",
    no_args_is_help=True,
    context_settings=HELP,
)
CACHED_SECONDS = 60
"""How long LiteLLM goes by what it has read of a team."""
Called = Annotated[str, typer.Argument(metavar="TEAM", help="The team's alias or id.")]


@teams.command("create")
def create(
    alias: Annotated[str, typer.Argument(help="A name for it.")],
    model: Models = None,
    max_budget: MaxBudget = None,
    budget_duration: BudgetDuration = None,
    rpm_limit: RpmLimit = None,
    tpm_limit: TpmLimit = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make a team:  llmctl teams create research --max-budget 500 --budget-duration 30d."""
    from console.management import Limits, gateway  # noqa: PLC0415

    limits = Limits(
        models=tuple(model or ()),
        max_budget=max_budget,
        budget_duration=budget_duration,
        rpm_limit=rpm_limit,
        tpm_limit=tpm_limit,
    )
    check_served(limits.models, force=force)
    print_one(gateway().create_team(alias, limits), as_json=as_json)


@teams.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the teams, with what they have spent:  llmctl teams list."""
    from console.management import gateway  # noqa: PLC0415

    found = gateway().teams()
    if as_json:
        print(to_json(found))
        return
    rows: list[tuple[str, ...]] = [("alias", "id", "keys", *COMMON)]
    rows += [(team.team_alias or "-", team.team_id, str(len(team.keys)), *common(team)) for team in found]
    print_table(rows)


@teams.command("show")
def show(team: Called, as_json: AsJson = False) -> None:
    """Show a team's keys and limits, and what it has spent:  llmctl teams show research."""
    from console.management import gateway  # noqa: PLC0415

    print_one(gateway().team(team), as_json=as_json)


@teams.command("block")
def block(team: Called, as_json: AsJson = False) -> None:
    """Let a team's keys ask nothing more, until it is unblocked:  llmctl teams block research."""
    _set_blocked(team, blocked=True, as_json=as_json)


@teams.command("unblock")
def unblock(team: Called, as_json: AsJson = False) -> None:
    """Let a team's keys ask again:  llmctl teams unblock research."""
    _set_blocked(team, blocked=False, as_json=as_json)


@teams.command("delete")
def delete(team: Called, yes: Yes = False) -> None:
    """Delete a team and its keys for ever, but not what they have spent:  llmctl teams delete research."""
    from console.management import gateway  # noqa: PLC0415

    asked = gateway()
    found = asked.team(team)
    keys = f" and its keys ({', '.join(found.keys)})" if found.keys else ""
    if not agreed(f"Delete team {team}{keys}?", yes=yes):
        raise typer.Exit(1)
    asked.delete_team(found)
    say(f"deleted: team {team}{keys}, on every replica within {CACHED_SECONDS} seconds")


def _set_blocked(team: str, *, blocked: bool, as_json: bool) -> None:
    from console.management import gateway  # noqa: PLC0415

    asked = gateway()
    now = asked.block_team(asked.team(team), blocked=blocked)
    if as_json:
        print_one(now, as_json=True)
        return
    say(f"team {team} is {'blocked' if blocked else 'unblocked'}, on every replica within {CACHED_SECONDS} seconds")
