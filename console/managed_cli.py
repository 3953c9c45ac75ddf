"""What the commands `llmctl keys` and `llmctl teams` share."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console.options import AsJson  # noqa: TC001 -- typer reads it when it runs
from console.tables import print_table, say

if TYPE_CHECKING:
    from console.management import Key, Team

Models = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="A model that it may ask. Repeat it for more (default: all)."),
]
MaxBudget = Annotated[float | None, typer.Option(min=0, help="US dollars that it may spend.")]
BudgetDuration = Annotated[
    str | None, typer.Option(help="After how long the budget starts over, such as 30d or 1mo.")
]
RpmLimit = Annotated[int | None, typer.Option(min=1, help="Requests a minute.")]
TpmLimit = Annotated[int | None, typer.Option(min=1, help="Tokens a minute.")]
Force = Annotated[bool, typer.Option("--force", help="Allow models that the gateway does not serve.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The alias, a team's id, or 8 or more characters of a key's hash (--json)."),
]

COLUMNS = ("spend ($)", "budget ($)", "rpm", "tpm", "models", "blocked")


def add_commands(to: typer.Typer, kind: str, *, example: str, keys: str, seconds: int) -> None:
    """Add the commands show, block, unblock and delete for a kind: `key` or `team`.

    `keys` says in the help whose keys are blocked, and `seconds` is how long a replica still uses what it has read.
    """

    def set_blocked(name: str, *, blocked: bool, as_json: bool) -> None:
        from console.management import gateway  # noqa: PLC0415

        asked = gateway()
        now = asked.block(asked.named(kind, name), blocked=blocked)
        if as_json:
            print(to_json(now.told()))
        else:
            say(
                f"{kind} {name} is {'blocked' if blocked else 'unblocked'}, on every replica within {seconds} seconds"
            )

    @to.command("show", help=f"Show the limits of a {kind}, and what it has spent:  llmctl {kind}s show {example}.")
    def show(name: Name, as_json: AsJson = False) -> None:
        from console.management import gateway  # noqa: PLC0415

        print_one(gateway().named(kind, name), as_json=as_json)

    @to.command("block", help=f"Refuse {keys}, until you unblock it:  llmctl {kind}s block {example}.")
    def block(name: Name, as_json: AsJson = False) -> None:
        set_blocked(name, blocked=True, as_json=as_json)

    @to.command("unblock", help=f"Accept {keys} again:  llmctl {kind}s unblock {example}.")
    def unblock(name: Name, as_json: AsJson = False) -> None:
        set_blocked(name, blocked=False, as_json=as_json)

    @to.command("delete", help=f"Delete {keys}. What was spent stays on record:  llmctl {kind}s delete {example}.")
    def delete(name: Name, yes: Yes = False) -> None:
        from console.management import gateway  # noqa: PLC0415

        asked = gateway()
        found = asked.named(kind, name)
        if not agreed(f"Delete {found}?", yes=yes):
            raise typer.Exit(1)
        asked.delete(found)
        say(f"deleted: {found}, on every replica within {seconds} seconds")


def cells(each: Key | Team) -> tuple[str, ...]:
    """The cells of COLUMNS."""
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
    """One field per line, or JSON."""
    if as_json:
        print(to_json(each.told()))
    else:
        print_table(
            [(name, _text(value)) for name, value in {**each.told(), "models": each.models or ("all",)}.items()]
        )


def agreed(question: str, *, yes: bool) -> bool:
    """Ask for a yes. Raises typer.BadParameter if there is no terminal to ask on."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: add --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def to_json(value: Any) -> str:  # noqa: ANN401 -- a dictionary or a list of some
    """One document."""
    return json.dumps(value, default=str)


def _text(value: Any) -> str:  # noqa: ANN401 -- any field
    if isinstance(value, (tuple, list)):
        return ", ".join(value) or "-"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return "-" if value is None else str(value)
