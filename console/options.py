"""Options that several commands of `llmctl` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import app

CLIENT = Path(app.__file__).parent
INSTALLED = CLIENT / "_migrations"
HELP = {"help_option_names": ["-h", "--help"]}
FOLDER = INSTALLED if INSTALLED.is_dir() else CLIENT.parent / "migrations"
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Folder = Annotated[Path, typer.Option("--folder", help="The folder with the migrations.")]
