"""The commands `llmctl teams`: LiteLLM's teams, to which keys belong."""

from __future__ import annotations

from typing import Annotated

import typer

from console import managed_cli as managed
from console.options import HELP, AsJson
from console.served import check_served
from console.tables import print_table

teams = typer.Typer(
    help="LiteLLM's teams, whose keys share a budget:  llmctl teams create research --max-budget 500",
    no_args_is_help=True,
    context_settings=HELP,
)


@teams.command("create")
def create(
    alias: Annotated[str, typer.Argument(help="A name for it.")],
    model: managed.Models = None,
    max_budget: managed.MaxBudget = None,
    budget_duration: managed.BudgetDuration = None,
    rpm_limit: managed.RpmLimit = None,
    tpm_limit: managed.TpmLimit = None,
    force: managed.Force = False,
    as_json: AsJson = False,
) -> None:
    """Create a team:  llmctl teams create research --max-budget 500 --budget-duration 30d."""
    from console.management import Limits, gateway  # noqa: PLC0415

    limits = Limits(
        models=tuple(model or ()),
        max_budget=max_budget,
        budget_duration=budget_duration,
        rpm_limit=rpm_limit,
        tpm_limit=tpm_limit,
    )
    check_served(limits.models, force=force)
    managed.print_one(gateway().create_team(alias, limits), as_json=as_json)


@teams.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the teams, with what they have spent:  llmctl teams list."""
    from console.management import gateway  # noqa: PLC0415

    found = gateway().teams()
    if as_json:
        print(managed.to_json([team.told() for team in found]))
        return
    rows: list[tuple[str, ...]] = [("alias", "id", "keys", *managed.COLUMNS)]
    rows += [(team.team_alias or "-", team.team_id, str(len(team.keys)), *managed.cells(team)) for team in found]
    print_table(rows)


# LiteLLM caches a team for 60 seconds.
managed.add_commands(teams, "team", example="research", keys="a team and its keys", seconds=60)
