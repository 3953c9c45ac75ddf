"""`llmctl backup` and `llmctl restore`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from app._settings import Settings
from console.options import FOLDER, AsJson, Folder
from console.tables import say


def backup(
    file: Annotated[
        Path | None, typer.Argument(help="The file to write, or its folder. A backup in a folder is named by time.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="How many backups to keep in the folder. The oldest are deleted.")
    ] = None,
    only: Annotated[Literal["app"] | None, typer.Option(help="Save the app's database alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Save the app's database, and LiteLLM's own beside it, and print the files' names:  llmctl backup.

    With --keep, use a folder for each stack: backups of another stack's database may have the same names.
    """
    from console import backup  # noqa: PLC0415

    app, litellm = _urls()
    made = backup.backup(app, file or Path(), litellm=litellm, alone=only == "app", keep=keep, report=say)
    print(
        json.dumps(asdict(made), default=str)
        if as_json
        else "\n".join(str(each.file) for each in (made, made.litellm) if each)
    )


def restore(
    file: Annotated[Path, typer.Argument(help="A backup, or a folder: its newest backup is restored.", exists=True)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for the database's name.")] = False,
    only: Annotated[
        Literal["app", "litellm"] | None, typer.Option(help="Restore the app's database alone, or LiteLLM's.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Accept LiteLLM's database from another release or salt key, or if they cannot be compared.",
        ),
    ] = False,
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Replace the databases with saved ones:  llmctl restore FILE.

    LiteLLM's database is in a second file, beside the app's. A replaced database is kept; its new name is printed.
    """
    from console import restore  # noqa: PLC0415

    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: pass --yes")

    def typed(database: str) -> bool:
        if yes:
            return True
        # Not by typer, whose prompts leave a space on standard output.
        print("Type the database's name to continue: ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip() == database

    app, litellm = _urls()
    done = restore.restore(
        app,
        file,
        folder,
        litellm=litellm,
        only=only,
        force=force,
        confirm=typed,
        report=say,
    )
    print(
        json.dumps(asdict(done), default=str)
        if as_json
        else "\n".join(each.kept for each in (done, done.litellm) if each)
    )


def _urls() -> tuple[str, str | None]:
    """Those of the app's database and of LiteLLM's own, where there is one."""
    settings = Settings.load()
    litellm = settings.litellm_database_url
    return settings.required_database_url(), litellm.get_secret_value() if litellm else None
