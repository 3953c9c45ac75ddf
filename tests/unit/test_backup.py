"""What a backup and a restore refuse, and what they read from a file, without a database."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from console import backup, cli, restore
from console.postgres_programs import PROGRAMS, BackupError, Programs, Server, programs_for
from console.programs import reason

if TYPE_CHECKING:
    from pathlib import Path

NOWHERE = "postgresql://app_1:the-password@127.0.0.1:9/app"
SERVER = Server(
    url=NOWHERE,
    database="app",
    oid=1,
    user="app_1",
    role="app",
    address="127.0.0.1:9",
    port=9,
    version=17,
    password="the-password",
    variable="DATABASE_URL",
    litellm_beside=False,
)


def silent(_line: str) -> None:
    """Report to nobody."""


def restored(file: Path, folder: Path) -> restore.Restored:
    return restore.restore(NOWHERE, file, folder, confirm=lambda _name: True, report=silent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "migrations"
    made.mkdir()
    (made / "0001_a.sql").write_text("SELECT 1;")
    return made


@pytest.mark.parametrize("there", ["x.dump", "x.dump.sha256", "x.dump.partial"])
def test_a_file_that_exists_is_never_written_over(tmp_path: Path, there: str) -> None:
    """It is refused before the database is asked."""
    (tmp_path / there).write_text("precious")
    with pytest.raises(ValueError, match=f"{there} exists"):
        backup.backup(NOWHERE, tmp_path / "x.dump", report=silent)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(there, "precious")]


@pytest.mark.parametrize("name", ["a\nb", "a\\b"])
def test_a_name_that_sha256sum_could_not_check_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be named"):
        backup.backup(NOWHERE, tmp_path / name, report=silent)


def test_a_new_file_is_private_from_the_start(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with backup._new_file(tmp_path / "x") as stream:
            assert stat.S_IMODE(os.fstat(stream.fileno()).st_mode) == 0o600
    finally:
        os.umask(before)
    with pytest.raises(FileExistsError), backup._new_file(tmp_path / "x"):
        pass


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system knows hard links, as FAT does not."""
    if not request.param:

        def refuse(source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

        monkeypatch.setattr(os, "link", refuse)
    return bool(request.param)


def test_a_backup_has_its_name_only_when_it_is_whole(tmp_path: Path, *, links: bool) -> None:
    """So has its checksum, whenever it is killed. Without hard links an empty file has the name for a moment."""
    file, partial, checksum = (tmp_path / f"x.dump{suffix}" for suffix in ("", ".partial", ".sha256"))
    partial.write_text("an archive")
    seen = set()

    def look(*_: object) -> None:
        if file.exists():
            seen.add((file.read_text(), checksum.read_text()))

    before = sys.getprofile()
    sys.setprofile(look)  # at the begin and the end of each call
    try:
        backup._give_name(partial, file, "0" * 64)
    finally:
        sys.setprofile(before)
    whole = ("an archive", f"{'0' * 64}  x.dump\n")
    assert seen == ({whole} if links else {whole, ("", whole[1])})
    assert {each.name for each in tmp_path.iterdir()} == {"x.dump", "x.dump.sha256"}


@pytest.mark.usefixtures("links")
def test_a_file_created_in_the_meantime_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the last moment either: when the backup is complete, and its checksum is being written."""
    file, partial, to_disk = tmp_path / "x.dump", tmp_path / "x.dump.partial", backup._to_disk
    partial.write_text("an archive")

    def with_another(stream: IO[bytes]) -> None:
        file.write_text("precious")
        to_disk(stream)

    monkeypatch.setattr(backup, "_to_disk", with_another)
    with pytest.raises(BackupError, match=r"x\.dump was created in the meantime"), backup.file_errors(file):
        backup._give_name(partial, file, "0" * 64)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {
        "x.dump": "precious",
        "x.dump.partial": "an archive",
    }


@pytest.mark.usefixtures("links")
def test_a_backup_that_gets_no_name_leaves_nothing_under_it(tmp_path: Path) -> None:
    """Not even a checksum, because of which the next backup with that name would be refused."""
    with pytest.raises(FileNotFoundError):
        backup._give_name(tmp_path / "gone.partial", tmp_path / "x.dump", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_its_checksum_is_refused(tmp_path: Path, folder: Path) -> None:
    """Damage, and a checksum that is missing or empty, are found before the database is asked."""
    file, checksum = tmp_path / "x.dump", tmp_path / "x.dump.sha256"
    file.write_bytes(b"an archive")
    with pytest.raises(BackupError, match=r"x\.dump\.sha256 is missing.*sha256sum"):
        restored(file, folder)
    for wrong in ("", "0" * 64, hashlib.sha256(b"an archiv").hexdigest(), "\0"):
        checksum.write_text(f"{wrong}  x.dump\n" if wrong else "")
        with pytest.raises(BackupError, match="damaged or cut short"):
            restored(file, folder)
    checksum.write_text(f"{hashlib.sha256(b'an archive').hexdigest()}  renamed.dump\n")
    with pytest.raises(BackupError, match="the database at DATABASE_URL cannot be used") as caught:
        restored(file, folder)
    assert "the-password" not in str(caught.value)


def test_a_file_or_folder_that_cannot_be_used_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BackupError, match=r"none\.dump: No such file"):
        restored(tmp_path / "none.dump", folder)
    with pytest.raises(BackupError, match="cannot be used"):
        backup.backup(NOWHERE, tmp_path, report=silent)


def test_rows_are_counted_as_they_stand_in_the_archive() -> None:
    """Names and rows that look like SQL do not mislead the count."""
    printed = b"""\\restrict token
SET search_path = '';
COPY public.schema_migrations (version, name, sha256, applied_at) FROM stdin;
1\ta\tx\tt
10\tb\tx\tt
2\tc\tx\tt
\\.

COPY public."a ""b"" (c) FROM stdin; d" (id) FROM stdin;
COPY public.organizations (id) FROM stdin;
\\\\.
\\.
COPY "Other".nothing (id) FROM stdin;
\\.
COPY public.no_columns  FROM stdin;

\\.
SELECT pg_catalog.setval('public.s', 7, true);
"""
    content = backup.read_content(printed.splitlines(keepends=True))
    assert content.rows == {
        "public.schema_migrations": 3,
        'public."a ""b"" (c) FROM stdin; d"': 2,
        '"Other".nothing': 0,
        "public.no_columns": 1,
    }
    assert content.migration == 10
    assert str(content) == "6 rows in 4 tables, schema 0010"


@given(st.lists(st.binary(max_size=20).filter(lambda row: b"\n" not in row and row != b"\\."), max_size=20))
def test_any_row_counts_once(rows: list[bytes]) -> None:
    printed = [b"COPY public.t (a) FROM stdin;\n", *(row + b"\n" for row in rows), b"\\.\n"]
    assert backup.read_content(printed).rows == {"public.t": len(rows)}


def test_a_program_that_is_missing_or_of_another_version_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what was tried in what order, and what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError) as caught:
        programs_for(SERVER)
    assert "there is no docker on PATH" in str(caught.value)
    assert "there is no pg_dump on PATH" in str(caught.value)
    assert "postgresql-client-17" in str(caught.value)
    assert "the-password" not in str(caught.value)
    for program in PROGRAMS:
        (tmp_path / program).write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) 17.2 (Debian 17.2-1)'\n")
        (tmp_path / program).chmod(0o755)
    programs = programs_for(SERVER)
    assert programs.environment["PGPASSWORD"] == "the-password"
    assert "the-password" not in f"{programs.connection} {programs.admin}"
    for other in ("15.14", "18.0"):
        (tmp_path / "pg_restore").write_text(f"#!/bin/sh\necho 'pg_restore (PostgreSQL) {other}'\n")
        with pytest.raises(BackupError, match=f"pg_restore on PATH has version {other[:2]}"):
            programs_for(SERVER)


@pytest.mark.parametrize(("then", "held"), [("read -r query; echo t; cat", True), ("exit", False), ("cat", False)])
def test_a_lock_is_held_as_long_as_its_session_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    held: bool,  # noqa: FBT001
) -> None:
    """It is not held if psql has ended, or says something else."""
    (tmp_path / "psql").write_text(f"#!/bin/sh\necho t\n{then}\n")
    (tmp_path / "psql").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    programs = Programs(where="here", prefix=(), connection="", admin="")
    lost = pytest.raises(BackupError, match="the session that keeps other restores out has ended")
    with restore._only_one(programs, "app") as lock, nullcontext() if held else lost:
        restore._refuse_unlocked(lock)


def test_the_reason_of_a_failure_has_no_rows_in_it() -> None:
    errors = (
        "pg_restore: while PROCESSING TOC:\n"
        'pg_restore: error: COPY failed for table "t": ERROR:  duplicate key value\n'
        "DETAIL:  Key (name)=(a customer) already exists.\n"
        "CONTEXT:  COPY t, line 1: a customer\n"
    )
    assert reason(errors) == 'pg_restore: error: COPY failed for table "t": ERROR:  duplicate key value'
    in_use = 'ERROR:  database "app" is in use\nDETAIL:  There is 1 other session using the database.\n'
    assert reason(in_use).endswith("There is 1 other session using the database.")
    assert reason("") == "it says nothing"


def test_without_a_terminal_a_restore_needs_yes(tmp_path: Path) -> None:
    """It counts as wrong usage, as a missing file does."""
    (tmp_path / "x.dump").write_bytes(b"")
    for arguments, message in (
        (["restore", str(tmp_path / "x.dump")], "--yes"),
        (["restore", str(tmp_path / "none.dump"), "--yes"], "none.dump"),
        (["restore"], "Missing argument"),
    ):
        done = CliRunner().invoke(cli.cli, arguments, env={"COLUMNS": "500"})
        assert (done.exit_code, done.stdout) == (2, "")
        assert message in done.stderr


@pytest.fixture
def postgres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the server and its programs; returns the program that reads a backup back."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for program in PROGRAMS:
        (programs / program).write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) 17.2'\n")
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    for module in (backup, restore):
        monkeypatch.setattr(module, "server_at", lambda *_: SERVER)
    return programs / "pg_restore"


NIGHTS = [f"app-2026110{night}T030000Z.dump" for night in range(1, 6)]
NOT_ITS_OWN = ["app_2-20261101T030000Z.dump", "app-mine.dump"]


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    """A folder with five backups, and two that are none of this database's by its schedule."""
    folder = tmp_path / "nights"
    folder.mkdir()
    for name in (*NIGHTS, *NOT_ITS_OWN):
        (folder / name).write_text("an archive")
        (folder / f"{name}.sha256").write_text("its checksum")
    return folder


def backups(folder: Path) -> list[str]:
    """The names of the backups in a folder; each has its checksum, and there is nothing else."""
    names = sorted(each.name for each in folder.iterdir() if not each.name.endswith(".sha256"))
    assert sorted(f"{name}.sha256" for name in names) == sorted(each.name for each in folder.glob("*.sha256"))
    return names


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("keep", [1, 3, 5, 6, 99])
def test_of_the_older_backups_as_many_stay_as_are_wanted(nights: Path, keep: int) -> None:
    """The new one is among them. Another database's backups stay, and files that a person has named."""
    made = backup.backup(NOWHERE, nights, keep=keep, report=silent)
    older = [*NIGHTS, made.file.name][-keep:]
    assert backups(nights) == sorted([*older, *NOT_ITS_OWN])
    assert [each.name for each in made.removed] == [name for name in NIGHTS if name not in older]


@pytest.mark.usefixtures("postgres")
def test_the_new_backup_stays_whatever_the_clock_was(nights: Path) -> None:
    for name in NIGHTS:
        for suffix in ("", ".sha256"):
            (nights / f"{name}{suffix}").rename(nights / f"{name.replace('2026', '2999')}{suffix}")
    made = backup.backup(NOWHERE, nights, keep=1, report=silent)
    assert backups(nights) == sorted([made.file.name, *NOT_ITS_OWN])


@pytest.mark.parametrize("fails", PROGRAMS[:2])
def test_no_backup_goes_for_one_that_is_not_whole(postgres: Path, nights: Path, fails: str) -> None:
    """Neither for one that was not completely written, nor for one that cannot be read back."""
    (postgres.parent / fails).write_text(f"#!/bin/sh\necho '{fails} (PostgreSQL) 17.2'\n[ $1 = --version ]\n")
    with pytest.raises(BackupError, match=fails):
        backup.backup(NOWHERE, nights, keep=1, report=silent)
    assert backups(nights) == sorted([*NIGHTS, *NOT_ITS_OWN])


@pytest.mark.usefixtures("postgres")
def test_what_a_killed_backup_has_left_goes(nights: Path) -> None:
    """But not what another backup is still writing."""
    left, writing = (nights / f"app-20261106T0{hour}0000Z.dump.partial" for hour in (3, 4))
    left.write_text("half an archi")
    with backup._new_file(writing):
        backup.backup(NOWHERE, nights, keep=9, report=silent)
        assert (left.exists(), writing.exists()) == (False, True)


@pytest.mark.parametrize(
    "arguments", [["--keep", "0"], ["--keep", "-1"], ["--keep", "all"], ["x.dump", "--keep", "2"]]
)
def test_a_number_or_a_file_that_makes_no_sense_is_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is wrong usage, before the database is asked."""
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    monkeypatch.setattr(sys, "argv", ["llmctl", "backup", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


@pytest.mark.usefixtures("postgres")
def test_a_folder_means_its_newest_backup(nights: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=rf"{NIGHTS[-1]} is damaged"):
        restored(nights, folder)
    with pytest.raises(BackupError, match="has no backup of database app"):
        restored(tmp_path, folder)
