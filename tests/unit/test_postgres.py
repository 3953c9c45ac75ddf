"""Passwords and roles of Postgres: which password opens it, and what it is told. psycopg is replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import psycopg
import pulumi
import pytest
from psycopg import pq, sql

from app import migrations
from infra import migration, postgres
from infra.postgres import _RolesProvider, _SaltKeyProvider

if TYPE_CHECKING:
    from collections.abc import Callable

PROPS = {
    "server": "id-1",
    "host": "127.0.0.1",
    "port": 5432,
    "superuser_password": "the-new-one",
    "superuser_previous": "the-one-before",
    "initial_password": "the-first-one",
    "app_password": "the-apps",
    "app_previous": "the-apps-before",
    "app_generation": 2,
    "app_login": None,
}
OLDS = {**PROPS, "app_generation": 1, "app_login": "app_1"}


class Connection:
    """Notes what a server is told; `roles` and `databases` are there."""

    def __init__(self, *, roles: tuple[str, ...] = (), databases: tuple[str, ...] = ()) -> None:
        self.pgconn = pq.PGconn.connect_start(b"host=/nowhere")
        self.told: list[str] = []
        self.closed = False
        self._there = {"pg_roles": roles, "pg_database": databases}

    def execute(self, query: sql.Composed | str, parameters: tuple[str, ...] = ()) -> Any:
        text = query if isinstance(query, str) else query.as_string()
        for table, names in self._there.items():
            if f'FROM "{table}"' in text:
                return Rows((1,) if parameters[0] in names else None)
        self.told.append(text)
        return Rows(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pgconn.finish()


class Rows:
    def __init__(self, row: tuple[int] | None) -> None:
        self._row = row

    def fetchone(self) -> tuple[int] | None:
        return self._row


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Which passwords are tried on a server that has one of them, or fails in another way."""

    def prepare(server_has: str = "", *, error: str = "password authentication failed", **there: Any) -> list[str]:
        passwords: list[str] = []

        def connect(*, password: str, **_: object) -> Connection:
            passwords.append(password)
            if password != server_has:
                raise psycopg.OperationalError(f"FATAL: {error}")
            connections.append(Connection(**there))
            return connections[-1]

        monkeypatch.setattr(psycopg, "connect", connect)
        return passwords

    connections.clear()
    return prepare


connections: list[Connection] = []


def told() -> list[str]:
    [connection] = connections
    return connection.told


@pytest.mark.parametrize(
    ("server_has", "passwords"),
    [
        ("the-new-one", ["the-new-one"]),
        ("the-one-before", ["the-new-one", "the-one-before"]),
        ("the-first-one", ["the-new-one", "the-one-before", "the-first-one"]),
        ("really-set", ["the-new-one", "the-one-before", "the-first-one", "really-set"]),
    ],
)
def test_the_password_that_the_server_has_is_found(
    tried: Callable[..., list[str]], server_has: str, passwords: list[str]
) -> None:
    """A rotation that was killed may have set the new one or not; the last that was set is in the state."""
    found = tried(server_has)
    outs = _RolesProvider().update("roles", {**OLDS, "superuser_password": "really-set"}, PROPS).outs
    assert found == passwords
    assert outs == {**PROPS, "app_login": "app_2"}


@pytest.mark.parametrize(
    ("error", "tries"), [("password authentication failed", 3), ("the database system is starting up", 1)]
)
def test_a_server_that_no_password_opens(tried: Callable[..., list[str]], error: str, tries: int) -> None:
    """Other errors are no reason to try another password."""
    found = tried(error=error)
    with pytest.raises(RuntimeError, match=f"Postgres at 127.0.0.1:5432 cannot be used .*: FATAL: {error}"):
        _RolesProvider().create(PROPS)
    assert len(found) == tries


def test_no_password_reaches_the_server_in_clear(tried: Callable[..., list[str]]) -> None:
    """So it is not in the server's log either."""
    tried("the-new-one")
    _RolesProvider().create(PROPS)
    assert sum("SCRAM-SHA-256$" in each for each in told()) == 2
    assert not [each for each in told() if any(str(PROPS[name]) in each for name in PROPS if "password" in name)]


def test_databases_are_their_owners_alone(tried: Callable[..., list[str]]) -> None:
    tried("the-new-one")
    _RolesProvider().create(PROPS)
    for name in (postgres.APP_DATABASE, postgres.LITELLM_DATABASE):
        assert f'CREATE ROLE "{name}" NOLOGIN' in told()
        assert f'CREATE DATABASE "{name}" OWNER "{name}" TEMPLATE template0' in told()
        assert f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC' in told()


def test_existing_roles_and_databases_are_not_created_again(tried: Callable[..., list[str]]) -> None:
    names = (postgres.APP_DATABASE, postgres.LITELLM_DATABASE)
    tried("the-new-one", roles=(*names, "app_1", "app_2"), databases=names)
    _RolesProvider().create(PROPS)
    assert [each for each in told() if each.startswith("CREATE")] == []


@pytest.mark.parametrize(("previous", "ends"), [("the-apps-before", False), ("", True)])
def test_the_apps_login_before_stays_until_it_is_retired(
    tried: Callable[..., list[str]], previous: str, *, ends: bool
) -> None:
    tried("the-new-one", roles=("app_1", "app_2"))
    _RolesProvider().update("roles", OLDS, {**PROPS, "app_previous": previous})
    assert ('ALTER ROLE "app_1" NOLOGIN PASSWORD NULL' in told()) is ends
    assert 'ALTER ROLE "app_2" LOGIN' in told()


@pytest.mark.parametrize(
    ("olds", "generation", "login"),
    [
        ({}, 1, "app_1"),
        ({"app_generation": 1, "app_login": "app_1"}, 1, "app_1"),
        ({"app_generation": 1, "app_login": "app_1"}, 2, "app_2"),
        ({"app_generation": 2, "app_login": "app_2"}, 3, "app_1"),
        ({"app_generation": 1, "app_login": "app_1"}, 3, "app_2"),
    ],
    ids=["first", "another server", "rotated", "rotated again", "rotated twice, of which the first failed"],
)
def test_a_rotation_never_takes_the_login_that_callers_have(
    tried: Callable[..., list[str]], olds: dict[str, Any], generation: int, login: str
) -> None:
    tried("the-new-one", roles=postgres.LOGINS)
    news = {**PROPS, "app_generation": generation}
    provider = _RolesProvider()
    outs = provider.update("roles", {**PROPS, **olds}, news).outs if olds else provider.create(news).outs
    assert outs is not None
    assert outs["app_login"] == login
    assert f'ALTER ROLE "{login}" LOGIN' in told()
    assert [each for each in told() if "PASSWORD" in each and each.startswith('ALTER ROLE "app_')] == [
        each for each in told() if each.startswith(f'ALTER ROLE "{login}" PASSWORD')
    ]


@pytest.mark.parametrize("name", ["server", "superuser_password", "app_password"])
def test_roles_are_set_again_for_another_server_or_password(name: str) -> None:
    assert _RolesProvider().diff("roles", PROPS, PROPS).changes is False
    assert _RolesProvider().diff("roles", PROPS, {**PROPS, name: "other"}).changes is True


@pytest.mark.parametrize(
    ("olds", "has_tables", "refused"),
    [
        ({"configured": ""}, True, True),
        ({"configured": ""}, False, False),
        ({"configured": "sk-1"}, True, False),
        ({}, True, False),
    ],
)
@pytest.mark.parametrize("url", ["", "postgresql://db.example/litellm"])
def test_the_salt_key_changes_only_before_its_database_is_in_use(  # noqa: PLR0913 -- all by name
    tried: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    olds: dict[str, str],
    *,
    has_tables: bool,
    refused: bool,
    url: str,
) -> None:
    """Whether it is in the stack's own server, or in one that the settings name."""
    tried("the-new-one")
    where = {"url": url} if url else PROPS
    if url:
        monkeypatch.setattr(psycopg, "connect", lambda given, **_: {url: Connection()}[given])
    monkeypatch.setattr(Rows, "fetchone", lambda _: (1,) if has_tables else None)
    failures = _SaltKeyProvider().check(olds, {**where, "configured": "sk-1"}).failures
    assert [each.property for each in failures] == (["configured"] if refused else [])
    assert all("./pulumiw config rm saltKey" in each.reason for each in failures)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (migrations.MigrationError("0002 was changed"), "its transaction was rolled back. 0002 was changed"),
        (
            psycopg.OperationalError("connection refused"),
            "cannot be used from where `pulumi up` runs: connection refused",
        ),
        (
            psycopg.errors.InsufficientPrivilege("of a row"),
            r"the database refused the migrations \(42501\): see its log",
        ),
    ],
)
def test_a_failed_migration_fails_the_up(monkeypatch: pytest.MonkeyPatch, error: Exception, why: str) -> None:
    """With its reason, and without what a server's message may quote."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(migrations, "up", fail)
    with pytest.raises(RuntimeError, match=why):
        migration._Provider().create({"database_url": "postgresql://db.example/app"})


def test_migrations_out_of_line_are_refused_in_the_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise migrations.MigrationError("number 0002 is missing")

    monkeypatch.setattr(migrations, "read", fail)
    with pytest.raises(pulumi.RunError, match="migrations: number 0002 is missing"):
        migration.Migrations("migrations", database_url="", server="")


def test_migrations_are_applied_to_another_server_and_for_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    props = {"database_url": "postgresql://db.example/app", "server": "id-1", "files": {"0001_a.sql": "abc"}}
    provider = migration._Provider()
    assert provider.diff("migrations", props, dict(props)).changes is False
    for name in props:
        assert provider.diff("migrations", props, {**props, name: "other"}).changes is True
    applied = []
    monkeypatch.setattr(migrations, "up", lambda url, folder: applied.append((url, folder)))
    assert provider.update("migrations", props, props).outs == props
    assert applied == [(props["database_url"], migration.FOLDER)]
