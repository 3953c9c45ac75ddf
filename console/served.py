"""What the gateway serves, for commands that name models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from console.gateway_report import Gateway


def served() -> Gateway:
    """What the gateway says about itself. Raises NotConfiguredError, and GatewayError if it does not answer."""
    from app import Settings  # noqa: PLC0415
    from console import gateway_report  # noqa: PLC0415

    return gateway_report.accepted(Settings.load())


def check_served(models: Iterable[str], *, force: bool) -> None:
    """Refuse models that the gateway does not serve, unless forced. Raises typer.BadParameter."""
    wanted = list(models)
    if force or not wanted:
        return
    known = served().models
    for name in wanted:
        if name not in known:
            raise typer.BadParameter(f"the gateway does not serve {name}; it serves {', '.join(known)} (or --force)")
