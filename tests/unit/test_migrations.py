"""The rules for migration files, which need no database."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from app import migrations
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("SELECT 1;\n")


def test_the_projects_own_migrations_are_in_order() -> None:
    assert [each.file for each in migrations.read(PROJECT / "migrations")][:2] == [
        "0001_organizations.sql",
        "0002_organization_models.sql",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0002_b.sql"], "0002_b.sql: number 0001 is missing"),
        (["0001_a.sql", "0003_c.sql"], "0003_c.sql: number 0002 is missing"),
        (["0001_a.sql", "0001_b.sql"], "0001_b.sql: number 0001 is taken"),
        (["0000_a.sql"], "0000_a.sql: number 0000 is taken"),
        (["1_a.sql"], "1_a.sql: name it NNNN_name.sql"),
        (["0001_A.sql"], "0001_A.sql: name it NNNN_name.sql"),
        (["0001-a.sql"], "0001-a.sql: name it NNNN_name.sql"),
    ],
)
def test_a_file_out_of_line_is_refused_by_name(tmp_path: Path, names: list[str], message: str) -> None:
    write(tmp_path, *names)
    with pytest.raises(migrations.MigrationError, match=message):
        migrations.read(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(migrations.MigrationError, match="is not a folder"):
        migrations.read(tmp_path / "none")


def test_other_files_are_not_migrations(tmp_path: Path) -> None:
    write(tmp_path, "0001_a.sql", "README.md")
    assert [each.name for each in migrations.read(tmp_path)] == ["a"]


def test_the_digest_does_not_depend_on_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "0001_a.sql"
    path.write_bytes(b"SELECT 1;\nSELECT 2;\n")
    unix = migrations.read(tmp_path)[0].sha256
    path.write_bytes(b"SELECT 1;\r\nSELECT 2;\r\n")
    assert migrations.read(tmp_path)[0].sha256 == unix


BODY = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("-- nothing;\n/* no; /* thing */; */ ;;\n", []),
        ("SELECT 1;\n\nSELECT 2\n", [(1, "SELECT 1"), (3, "SELECT 2")]),
        ("SELECT ';' || 'it''s;' || E'\\';' || $$;$$ || $a$;$$;$a$;X", [(1, None), (1, "X")]),
        ('SELECT ";" AS "a"";b" -- ;\n;X', [(1, None), (2, "X")]),
        ("CREATE RULE r AS ON INSERT TO a DO (SELECT 1; SELECT 2);X", [(1, None), (1, "X")]),
        (f"{BODY};\nX", [(1, BODY), (2, "X")]),
        ("DO $$BEGIN PERFORM 1; END$$;X", [(1, "DO $$BEGIN PERFORM 1; END$$"), (1, "X")]),
        ("SELECT a$$b;X", [(1, "SELECT a$$b"), (1, "X")]),  # a dollar in a name begins no string
        ("SELECT 'not ended;X", [(1, "SELECT 'not ended"), (1, "X")]),  # the server refuses it
    ],
)
def test_a_file_is_cut_where_its_statements_end(text: str, found: list[tuple[int, str | None]]) -> None:
    """Not at a semicolon in a string, a name, a comment, brackets, or a body."""
    cut = list(migrations.statements(text))
    assert [each.line for each in cut] == [line for line, _ in found]
    for statement, (_, sql) in zip(cut, found, strict=True):
        assert sql is None or statement.sql == sql


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        *(
            (word, True)
            for word in ("BEGIN", "begin work", "START TRANSACTION", "COMMIT", "End", "ABORT", "ROLLBACK")
        ),
        *((word, True) for word in ("/* so */ COMMIT AND CHAIN", "ROLLBACK WORK", "PREPARE TRANSACTION 'a'")),
        *((word, True) for word in ("COMMIT PREPARED 'a'", "ROLLBACK PREPARED 'to'")),
        *((word, False) for word in ("SAVEPOINT a", "ROLLBACK TO a", "ROLLBACK WORK TO SAVEPOINT a", "RELEASE a")),
        *(
            (word, False)
            for word in ("PREPARE a AS SELECT 1", "DO $$BEGIN PERFORM 1; END$$", "SELECT 'COMMIT'", BODY)
        ),
    ],
)
def test_a_file_that_ends_its_transaction_is_refused_with_the_line(statement: str, refused: bool) -> None:  # noqa: FBT001
    """It would be half applied, or be recorded without being applied."""
    migration = migrations.Migration(1, "a", f"CREATE TABLE a ();\n\n{statement};\n")
    with pytest.raises(migrations.MigrationError, match=r"0001_a\.sql: line 3") if refused else nullcontext():
        migrations._refuse_transaction_control(migration)


def test_a_file_outside_a_transaction_holds_one_statement() -> None:
    """If a later statement failed, the earlier ones would stay applied."""
    migration = migrations.Migration(1, "a", f"{migrations.NO_TRANSACTION}\nCREATE TABLE a ();\nCREATE TABLE b ();\n")
    with pytest.raises(migrations.MigrationError, match=r"0001_a\.sql: line 3: .* holds one statement"):
        migrations._refuse_transaction_control(migration)


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        ("CREATE INDEX CONCURRENTLY ON a (n)", True),
        ("create unique index\n  concurrently -- takes a while\n  on a (n)", True),
        ("CREATE INDEX /* without a lock */ CONCURRENTLY ON a (n)", True),
        ("CREATE INDEX CONCURRENTLY IF NOT EXISTS a_n ON a (n)", False),
        ('CREATE INDEX CONCURRENTLY "on" ON a (n)', False),
        ("-- not by CREATE INDEX CONCURRENTLY ON a\nREINDEX INDEX CONCURRENTLY a_n", False),
    ],
)
def test_an_index_that_may_fail_alone_needs_a_name(statement: str, refused: bool) -> None:  # noqa: FBT001
    """Otherwise nobody notices what a failed run left behind when the next run creates another index."""
    migration = migrations.Migration(2, "index", f"-- migrate: no-transaction\n{statement};\n")
    with pytest.raises(migrations.MigrationError, match="give the index a name") if refused else nullcontext():
        migrations._refuse_nameless_index(migration)


@pytest.mark.parametrize(
    ("written", "index", "named"),
    [
        ("a_n", "a_n", True),
        ("A_n", "a_n", True),
        ('"a n"', "a n", True),
        ("a_n2", "a_n", False),
        ("b_a_n", "a_n", False),
        (f"{'n' * 63}", "n" * 63, True),
        (f"{'n' * 70}", "n" * 63, True),
        (f'"{"ü" * 32}"', "ü" * 31, True),
        (f"{'n' * 63}", "n" * 62, False),
        (f"{'n' * 70}", "n" * 62, False),
    ],
)
def test_an_index_is_known_by_the_name_that_postgres_gives_it(written: str, index: str, named: bool) -> None:  # noqa: FBT001
    """Postgres truncates it after 63 bytes."""
    assert migrations._names(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {written} ON t (x);", index) == named


def test_a_new_migration_gets_the_next_number(tmp_path: Path) -> None:
    write(tmp_path, "0001_a.sql")
    assert migrations.new(tmp_path, "Add budgets!").name == "0002_add_budgets.sql"
    assert [each.name for each in migrations.read(tmp_path)] == ["a", "add_budgets"]
    with pytest.raises(migrations.MigrationError, match="no letter or digit"):
        migrations.new(tmp_path, "!")
