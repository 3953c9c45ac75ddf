"""Which image replaces which: the set-up writes this record and the program reads it.

If an image can neither be pulled nor found on the engine, the set-up builds one from Debian and PyPI packages and
records it in `.images.yaml`. The program then runs that one, with a warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from pathlib import Path


class ImageRecordError(Exception):
    """The record of stand-ins cannot be read."""


def stand_ins(path: Path) -> dict[str, str]:
    """Read the record, which maps image references in the stack's configuration to the tags of their stand-ins.

    Empty if there is no record. Raises ImageRecordError for anything but a mapping of names to names.
    """
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ImageRecordError(_unreadable(path, str(error))) from error
    if record is None:
        return {}
    if not isinstance(record, dict):
        raise ImageRecordError(_unreadable(path, f"a mapping is expected, not {type(record).__name__}"))
    for official, stand_in in record.items():
        if not (isinstance(official, str) and isinstance(stand_in, str) and official and stand_in):
            raise ImageRecordError(_unreadable(path, f"`{official}: {stand_in}` is not a pair of image names"))
    return record


def in_registry(reference: str, registry: str) -> str:
    """The name of an image in a registry of your own: `ghcr.io/berriai/litellm:1` is REGISTRY/berriai/litellm:1.

    A reference by digest gets the digest as its tag, `sha256-…`: the image is pushed with a different manifest, so
    its digest in that registry is different.
    """
    host, slash, path = reference.partition("/")
    has_host = slash and ("." in host or ":" in host or host == "localhost")
    name, _, digest = (path if has_host else reference).partition("@")
    if digest:
        name = f"{name.partition(':')[0]}:{digest.replace(':', '-')}"
    return f"{registry}/{name}"


def _unreadable(path: Path, why: str) -> str:
    return f"{path} is not a record of stand-in images: {why}. Remove it, and `make up` writes a new one."
