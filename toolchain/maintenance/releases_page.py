"""The tables of docs/upgrade.md, from `litellm/releases.yaml` and `litellm/prices.yaml`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.allowed_images import TABLE
from infra import prices, providers

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = Path(__file__).resolve().parents[2] / "docs" / "upgrade.md"
BEGIN = "<!-- Written by `make docs` from litellm/releases.yaml. Change that, then run it again. -->"
END = "<!-- End of what is written. -->"
MEASURED = (("rest_mb", "MiB"), ("start_seconds", "s"))
"""Facts that may be known about a release that the tests do not run, with their units."""


def page() -> str:
    """The page, with its tables as they should be."""
    before, _, rest = FILE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{_tables()}\n\n{END}{rest.partition(END)[2]}"


def _tables() -> str:
    known = prices.load().values()
    rows = [
        "| LiteLLM | tag | image | at rest | starts in | models without their own price |",
        "|---|---|---|---|---|---|",
    ]
    said = []
    for release in providers.load().releases:
        unknown = sum(release.version in model.unknown_to for model in known)
        rows.append(
            f"| {release.version} | `{release.tag}` | {release.image_mb} MB | {release.rest_mb} MiB | "
            f"{release.start_seconds:g} s | {unknown:,} of {len(known):,} |"
        )
        said += _known_for(release.version, release.known_for)
    others: Mapping[str, Any] = TABLE["others"]
    for line, it in others.items():
        rest, start = (f"{it[name]} {unit}" if name in it else "" for name, unit in MEASURED)
        rows.append(f"| {line} | `{it['tag']}` | | {rest} | {start} | |")
        said += _known_for(line, it["known_for"])
    return "\n".join([*rows, "", *said])


def _known_for(version: str, facts: Any) -> list[str]:  # noqa: ANN401 -- a list, or a tuple
    return [f"- **{version}** {re.sub(r'[.]$', '', fact)}." for fact in facts]
