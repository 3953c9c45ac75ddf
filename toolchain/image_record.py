"""The record of which image replaces which, in `.images.yaml`: `make up` writes it, the program reads it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from engine.image_names import ImageRecordError, stand_ins
from toolchain.progress import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORD = Path(__file__).resolve().parent.parent / ".images.yaml"
HEADER = """\
# Images that were built on this machine, by the image of the stack config that each is used for.
# Written by `make up` where an image could not be pulled. Remove a line to have the pull tried again.
# To rebuild one, with Debian's latest updates: docker rmi --force the image, then make up.
"""


def read(record: Path = RECORD) -> dict[str, str]:
    """Return the record: for each replaced image, the image that replaces it. Raises SetupError."""
    try:
        return stand_ins(record)
    except ImageRecordError as error:
        raise SetupError(str(error), fix=f"rm {record}") from error


def write(record: Path, chosen: Mapping[str, str]) -> None:
    """Record which image replaces which, for the references in `chosen`; leave the others as they are."""
    folder = os.open(record.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = stand_ins(record)
        after = {reference: tag for reference, tag in {**before, **chosen}.items() if reference != tag}
        if after != before:
            new = record.with_name(f"{record.name}.new")
            new.write_text(HEADER + yaml.safe_dump(after), encoding="utf-8")
            new.replace(record)
    finally:
        os.close(folder)
