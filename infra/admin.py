"""LiteLLM's page and administration, on a port of their own for operators (`adminPort`).

The edge has a frontend for it (edge/admin.cfg), and LiteLLM a login whose password the stack generates.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.problem import Problem
from infra.secrets import RotatingSecret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pulumi

    from infra.settings import Settings

FILE = Path(__file__).parent.parent / "edge/admin.cfg"
USER = "admin"
STACKS_OWN = {
    "UI_USERNAME": "is `admin` where the stack has an adminPort",
    "UI_PASSWORD": "is generated where the stack has an adminPort, and is its output adminPassword",
    "PROXY_BASE_URL": "would lead from adminPort to where callers ask",
    "SERVER_ROOT_PATH": "would move the page of adminPort away from /ui",
}
"""Variables of LiteLLM that must not be set beside an adminPort, and why."""


def edge_config(settings: Settings) -> str:
    """The edge's config for it; empty without an adminPort."""
    return f"\n{FILE.read_text(encoding='utf-8')}" if settings.admin_port else ""


def url(settings: Settings) -> str | None:
    """Where the page is, on the Docker host."""
    return f"http://localhost:{settings.admin_port}/ui/" if settings.admin_port else None


def password(settings: Settings) -> pulumi.Input[str] | None:
    """The password of the login; None without an adminPort."""
    if not settings.admin_port:
        return None
    version = settings.secret_versions.admin_password
    return RotatingSecret("admin-password", kind="password", version=version).value


def login(password: pulumi.Input[str] | None) -> dict[str, pulumi.Input[str]]:
    """LiteLLM's variables for it."""
    return {} if password is None else {"UI_USERNAME": USER, "UI_PASSWORD": password}


def problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with an adminPort; `values` has the valid fields of the stack config."""
    if not values.get("admin_port"):
        if getattr(values.get("secret_versions"), "admin_password", 1) > 1:
            place = "secretVersions.adminPassword"
            yield Problem(place, "has no effect without adminPort", f"rm --path {place}")
        return
    if values.get("litellm_database") is False and values.get("placement") != "swarm":
        what = "needs LiteLLM's database, which is off"
        yield Problem("adminPort", what, "set litellmDatabase true")
    for name, why in STACKS_OWN.items():
        if name in values.get("litellm_environment", {}):
            place = f"litellmEnvironment.{name}"
            yield Problem(place, f"cannot be set: it {why}", f"rm --path {place}")
