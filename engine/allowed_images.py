"""Which images may run: those whose tag names a release, or that have a digest, and that no attacker published."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

TABLE = yaml.safe_load((Path(__file__).parent.parent / "litellm" / "releases.yaml").read_text(encoding="utf-8"))
REPLACED = {release: it["source"] for release, it in TABLE["replaced"].items()}
"""Releases of LiteLLM that an attacker published, with the source."""
REPLACED_DIGESTS = {release: tuple(it.get("digests", ())) for release, it in TABLE["replaced"].items()}
"""How the digests of their images begin."""
MOVING = re.compile(r"(^|[-_.])(latest|lts)([-_.]|$)|^\D*$", re.IGNORECASE)
"""Tags whose image changes from day to day, such as `latest`, `main-stable` and `lts-alpine3.22`."""

UNFIT = {
    re.compile(r"[:.-]alpine", re.IGNORECASE): "is built on Alpine",
    re.compile(
        r"^(dhi\.io|cgr\.dev)/|(^|[/:-])(distroless|hardened|bitnami\w*)([/:-]|$)", re.IGNORECASE
    ): "is hardened, or another maker's",
}
"""Names of images of Postgres and HAProxy that are not based on Debian, with what they are."""

VERSION = re.compile(r":(\d+)[\w.-]*(@|$)")
"""The major version in a tag that begins with it."""
OLDEST_REDIS = 7
"""The oldest whose rights and commands the stack's Redis was tried with; Valkey begins with 7."""


def moves(tag: str) -> bool:
    """Whether a tag does not name a release."""
    return MOVING.search(tag) is not None


def replaced_litellm(reference: str) -> str | None:
    """Why an image reference must not run as LiteLLM: it names a release that an attacker published."""
    name, *digests = re.split(r"\bsha256[:-]", reference)
    by_tag = [each for each in REPLACED if re.search(rf"(?<![\d.]){re.escape(each)}(?!\d)", name.rpartition("/")[2])]
    by_digest = [each for each, starts in REPLACED_DIGESTS.items() if any(it.startswith(starts) for it in digests)]
    for release in (*by_tag, *by_digest):
        return (
            f"is LiteLLM {release}, which an attacker published ({REPLACED[release]}): take another release "
            "(docs/upgrade.md), and where this one ran, rotate every key that it could read"
        )
    return None


def unfit(reference: str) -> str | None:
    """Why an image of Postgres or HAProxy cannot work: its users, its shell and its C library are different."""
    name = reference.partition("@")[0]
    what = next((what for pattern, what in UNFIT.items() if pattern.search(name)), None)
    if what is None:
        return None
    return (
        f"{what}, and the stack uses what the official images on Debian have: bash, their user ids, their text sort "
        "order (images/README.md). Take the official image of the same version, such as postgres:17 or haproxy:3.0"
    )


def old_redis(reference: str) -> str | None:
    """Why an image must not run as Redis: its tag names an old release."""
    version = VERSION.search(reference)
    return f"is older than Redis {OLDEST_REDIS}" if version and int(version[1]) < OLDEST_REDIS else None
