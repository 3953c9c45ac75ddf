"""litellm/schema.py: which release's step runs over which database, and what it says."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PASSWORD = "pass%2Fword"
URL = f"postgresql://litellm_1:{PASSWORD}@postgres:5432/litellm"


@pytest.fixture
def schema() -> Any:
    spec = importlib.util.spec_from_file_location("schema", PROJECT / "litellm/schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def steps(schema: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """What runs for a release, with migrations or without, over a database; `diff` is the SQL that is missing."""

    def run(*, migrations: bool, history: bool, tables: int, diff: str = "") -> list[str]:
        done: list[str] = []
        secret = tmp_path / "DATABASE_URL"
        secret.write_text(f"{URL}\n")
        monkeypatch.setattr(schema, "SECRET", secret)
        monkeypatch.setenv("DATABASE_URL", "")
        monkeypatch.setenv("DISABLE_SCHEMA_UPDATE", "")

        class Connection:
            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                done.append("commit")

            def execute(self, script: str) -> None:
                done.append(script)

        def called(command: tuple[str, ...], **_: object) -> SimpleNamespace:
            done.append(" ".join(command[:3]) if command[0] == "prisma" else "migrate")
            return SimpleNamespace(stdout=diff, stderr="", returncode=0)

        psycopg = ModuleType("psycopg")
        psycopg.connect = lambda *_, **__: Connection()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "psycopg", psycopg)
        monkeypatch.setattr(schema, "_looked_at", lambda _: (history, tables))
        monkeypatch.setattr(schema, "_folder", lambda: tmp_path)
        found = {"prisma.client": True, "litellm_proxy_extras": migrations}
        monkeypatch.setattr(schema.importlib.util, "find_spec", lambda name: found[name] or None)
        monkeypatch.setattr(schema.subprocess, "run", called)
        try:
            schema.main()
        except schema.SchemaError as error:
            done.append(f"refused: {error}")
        return done

    return run


@pytest.mark.parametrize("tables", [0, 16])
def test_a_release_without_migrations_pushes_its_schema(steps: Callable[..., list[str]], tables: int) -> None:
    assert steps(migrations=False, history=False, tables=tables) == ["prisma db push"]


def test_nothing_may_be_lost_by_that(schema: Any) -> None:
    """Prisma then refuses what would lose data."""
    assert "accept-data-loss" not in (PROJECT / "litellm/schema.py").read_text()
    assert schema.DROPS.search("-- DropTable\nDROP TABLE x;")


@pytest.mark.parametrize(("history", "tables"), [(False, 0), (True, 102)])
def test_a_release_with_migrations_runs_them(steps: Callable[..., list[str]], *, history: bool, tables: int) -> None:
    """In an empty database, and in one that has a history of migrations."""
    assert steps(migrations=True, history=history, tables=tables) == ["migrate"]


def test_a_database_from_before_migrations_gets_what_is_missing_first(steps: Callable[..., list[str]]) -> None:
    """In one transaction."""
    sql = 'ALTER TABLE "LiteLLM_TeamTable" ADD COLUMN "x" TEXT;'
    done = steps(migrations=True, history=False, tables=16, diff=sql)
    assert done == ["prisma migrate diff", sql, "commit", "migrate"]


@pytest.mark.parametrize(
    "sql",
    [
        'DROP TABLE "LiteLLM_Config";',
        'ALTER TABLE "LiteLLM_TeamTable" ADD COLUMN "x" TEXT,\nDROP COLUMN "spend";',
        'ALTER TABLE "a" drop column "b";',
        "DROP INDEX x;",
        'DROP TYPE "JobStatus";',
        "TRUNCATE x;",
    ],
)
def test_unless_that_would_take_something_away(steps: Callable[..., list[str]], sql: str) -> None:
    first, refused = steps(migrations=True, history=False, tables=16, diff=sql)
    assert first == "prisma migrate diff"
    assert refused.startswith("refused: the change to this release's schema would drop data")


def test_an_older_release_leaves_the_database_of_a_newer_one_alone(steps: Callable[..., list[str]]) -> None:
    (refused,) = steps(migrations=False, history=True, tables=102)
    assert "a newer LiteLLM has migrated this database" in refused


@pytest.mark.parametrize("leaked", [URL, f"password {PASSWORD}", "password pass/word"])
def test_what_it_prints_has_no_password(schema: Any, leaked: str) -> None:
    said = schema.without_password(f"cannot connect: {leaked}", URL)
    assert said.startswith("cannot connect: ")
    assert "word" not in said.removeprefix("cannot connect: ").removeprefix("password ")


def test_an_image_without_a_client_says_how_to_get_one(schema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that was built where npm could not download anything."""
    monkeypatch.setattr(schema.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(schema.SchemaError, match="install npm"):
        schema.main()


def test_a_step_that_does_not_end_is_told_as_that(
    schema: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a sentence: the last lines of the job are what an operator sees."""
    monkeypatch.setattr(schema, "SECONDS", 0.01)
    monkeypatch.setattr(schema, "_folder", lambda: tmp_path)
    with pytest.raises(schema.SchemaError, match=r"python\S* did not end within 0\.01 s"):
        schema._run(URL, sys.executable, "-c", "import time; time.sleep(60)")
