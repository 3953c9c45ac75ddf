"""The app's schema migrations, as part of the deployment: a failing one fails the `up`, the next `up` tries again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pulumi
from pulumi.dynamic import Resource

from app import migrations
from infra.deploy_step import DeployStep

FOLDER = Path(__file__).parent.parent / "migrations"


class _Provider(DeployStep):
    id = "migrations"
    inputs = ("database_url", "server", "files")

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        try:
            migrations.up(props["database_url"], FOLDER)
        except migrations.MigrationError as error:
            raise RuntimeError(f"migration failed; its transaction was rolled back. {error}") from error
        except psycopg.OperationalError as error:
            raise RuntimeError(f"the database cannot be used from where `pulumi up` runs: {error}") from None
        except psycopg.Error as error:
            raise RuntimeError(f"the database refused the migrations ({error.sqlstate}): see its log") from None
        return props


class Migrations(Resource, module="migration", name="Migrations"):
    """The migrations of `migrations/`, applied to a database. Destroying it leaves the database as it is.

    Type token: `pulumi-python:dynamic/migration:Migrations`.
    """

    def __init__(
        self,
        name: str,
        *,
        database_url: pulumi.Input[str],
        server: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`server` differs for each server that the database may be on."""
        try:
            files = {each.file: each.sha256 for each in migrations.read(FOLDER)}
        except migrations.MigrationError as error:
            raise pulumi.RunError(f"migrations: {error}") from error
        super().__init__(_Provider(), name, {"database_url": database_url, "server": server, "files": files}, opts)
