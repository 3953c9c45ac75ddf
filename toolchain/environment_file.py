"""Writes `.env`, from which the app module knows the last stack that was brought up."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.progress import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping

OUTPUTS = {
    "LITELLM_URL": "litellmUrl",
    "LITELLM_API_KEY": "litellmApiKey",
    "DATABASE_URL": "databaseUrl",
    "LITELLM_DATABASE_URL": "litellmDatabaseUrl",
}
"""Each variable, with the stack's output that is its value."""


def forget(path: Path) -> None:
    """Remove what `write` has written, and the file if nothing else is in it."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not _is_of(line, OUTPUTS)]
    if kept:
        path.write_text("".join(kept), encoding="utf-8")
    else:
        path.unlink()


def _is_of(line: str, names: Mapping[str, str]) -> bool:
    return line.split("=", 1)[0].removeprefix("export ").strip() in names


def write(path: Path, outputs: Mapping[str, str]) -> None:
    """Put a stack's outputs into `path`, readable by its owner only; other lines in it stay.

    Raises SetupError if it cannot be read or written.
    """
    values = {name: outputs[output] for name, output in OUTPUTS.items() if output in outputs}
    if "LITELLM_URL" not in values:  # not a stack of this project, or one without outputs yet
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if not _is_of(line, OUTPUTS)]  # lines of another stack too
        text = "".join(
            f"{line}\n" for line in [*kept, *(f"{name}={shlex.quote(value)}" for name, value in values.items())]
        )
        descriptor, temporary = tempfile.mkstemp(prefix=".env.", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except OSError as error:
        raise SetupError(
            f"the stack is up, but {path} cannot be written ({error.strerror})",
            fix=f'if another user owns it: sudo chown "$(id -un)" {path.parent} {path}; then run make up again',
        ) from None
    except UnicodeDecodeError:
        raise SetupError(
            f"the stack is up, but {path} is not UTF-8, and its other lines would be lost",
            fix="save it as UTF-8, or remove it; then run the same command again",
        ) from None
