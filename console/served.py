"""What the gateway serves, for commands that name models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from app.organizations import Organization
    from console.gateway_report import Gateway


def served() -> Gateway:
    """What the gateway says about itself. Raises NotConfiguredError, and GatewayError if it does not answer."""
    from app import Settings  # noqa: PLC0415
    from console import gateway_report  # noqa: PLC0415

    return gateway_report.accepted(Settings.load())


def check_served(models: Iterable[str], *, force: bool) -> Gateway | None:
    """Refuse models that the gateway does not serve, unless forced. Raises typer.BadParameter.

    Returns what the gateway says about itself if it was asked.
    """
    wanted = list(models)
    if force or not wanted:
        return None
    gateway = served()
    known = gateway.models
    for name in wanted:
        if name not in known:
            raise typer.BadParameter(f"the gateway does not serve {name}; it serves {', '.join(known)} (or --force)")
    return gateway


def doubts(organization: Organization, models: Container[str]) -> Iterator[str]:
    """What is wrong with an organization's models, given those that the gateway serves, a sentence each."""
    for name in (organization.llm_model, organization.llm_fallback_model):
        if name is not None and name not in models:
            yield f"{organization.name} names {name}, which the gateway does not serve"
    if organization.llm_fallback_model == organization.llm_model:
        yield f"{organization.name} has no fallback: the one that is set is the preferred model itself"
