"""The table of images/README.md: what official images promise, from `images/official.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "images"
FILE = FOLDER / "README.md"
BEGIN = "<!-- Written by `make docs` from official.yaml. Change that, then run it again. -->"
END = "<!-- End of what is written. -->"


def load() -> dict[str, Any]:
    """The content of `images/official.yaml`."""
    table: dict[str, Any] = yaml.safe_load((FOLDER / "official.yaml").read_text(encoding="utf-8"))
    return table


def page() -> str:
    """The page, with its table as it should be."""
    before, _, rest = FILE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{_table()}\n\n{END}{rest.partition(END)[2]}"


def _table() -> str:
    table = load()
    rows = [
        "| official image | from | starts as | entrypoint, command | volumes | environment | stops by |",
        "|---|---|---|---|---|---|---|",
    ]
    for it in table["images"]:
        source = f"[{it['source']}]({table['sources'][it['part']]})"
        started = " ".join([*it["entrypoint"], *it["command"]])
        environment = ", ".join(f"`{key}={value}`" for key, value in it.get("environment", {}).items())
        volumes = ", ".join(f"`{each}`" for each in it.get("volumes", ()))
        user = (
            f"{it['user']} ({it['user_id']})" if str(it.get("user_id", it["user"])) not in it["user"] else it["user"]
        )
        rows.append(
            f"| `{it['image']}`, {it['base']} | {source} | {user} | `{started}` | {volumes} | {environment} | "
            f"{it.get('stop_signal', 'SIGTERM')} |"
        )
    differs = [
        f"- **{part}**, {what}: {why}." for part, all_ in table["differs"].items() for what, why in all_.items()
    ]
    return "\n".join([f"Read on {table['read']}.", "", *rows, "", "Where a stand-in differs:", "", *differs])
