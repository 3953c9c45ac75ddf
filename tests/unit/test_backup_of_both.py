"""A backup of both databases, the app's and LiteLLM's own, and what of it a restore refuses; without a database."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from app._settings import Settings
from console import backup, litellm_database, salt_key
from console.management import ManagementError
from console.postgres_programs import BackupError, Server
from tests.unit import test_backup
from tests.unit.test_backup import NIGHTS, NOT_ITS_OWN, NOWHERE, SERVER, backups, silent

if TYPE_CHECKING:
    from pathlib import Path

nights, postgres = test_backup.nights, test_backup.postgres


def with_litellm(nights: Path, *names: str) -> None:
    """Give backups LiteLLM's database."""
    for name in names:
        for suffix in ("", ".sha256"):
            backup.companion(nights / name).with_suffix(f".dump{suffix}").write_text("an archive")


@pytest.mark.usefixtures("postgres")
def test_what_belongs_together_is_one_backup(nights: Path) -> None:
    """LiteLLM's database is saved and removed with the app's. Backups without it do not replace those with it."""
    with_litellm(nights, NIGHTS[0], NIGHTS[1], NIGHTS[3])
    made = backup.backup(NOWHERE, nights, litellm=NOWHERE, keep=3, report=silent)
    assert made.litellm is not None
    assert made.litellm.file == backup.companion(made.file)
    stay = [NIGHTS[1], NIGHTS[3], NIGHTS[4], made.file.name]
    companions = [backup.companion(nights / name).name for name in (NIGHTS[1], NIGHTS[3], made.file.name)]
    assert backups(nights) == sorted([*stay, *companions, *NOT_ITS_OWN])
    gone = [backup.companion(nights / NIGHTS[0]).name, NIGHTS[0], NIGHTS[2]]
    assert [each.name for each in made.removed] == gone


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("litellm", [None, NOWHERE])
def test_a_backup_without_litellms_database_is_no_success_and_removes_nothing(
    nights: Path, litellm: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If LiteLLM is connected to a database that nobody has named, or if the named one cannot be reached."""

    def server_at(_url: str, variable: str = "DATABASE_URL") -> Server:
        if variable != "DATABASE_URL":
            raise BackupError(f"the database at {variable} cannot be used")
        return replace(SERVER, litellm_beside=True)

    monkeypatch.setattr(backup, "server_at", server_at)
    with pytest.raises(BackupError, match=r"app-.*\.dump is complete, but .*LITELLM_DATABASE_URL"):
        backup.backup(NOWHERE, nights, litellm=litellm, keep=1, report=silent)
    assert len(backups(nights)) == len(NIGHTS) + len(NOT_ITS_OWN) + 1
    assert {*NIGHTS, *NOT_ITS_OWN} < {*backups(nights)}


@pytest.mark.usefixtures("postgres")
def test_the_last_backups_with_litellms_database_stay_when_newer_ones_are_without(nights: Path) -> None:
    """For example after a night without its URL, or after the database was turned off."""
    with_litellm(nights, NIGHTS[0], NIGHTS[1], NIGHTS[2])
    made = backup.backup(NOWHERE, nights, keep=2, report=silent)
    stay = [NIGHTS[1], NIGHTS[2], NIGHTS[4], made.file.name]
    companions = [backup.companion(nights / name).name for name in (NIGHTS[1], NIGHTS[2])]
    assert backups(nights) == sorted([*stay, *companions, *NOT_ITS_OWN])


@pytest.mark.usefixtures("postgres")
def test_one_database_can_be_saved_alone(nights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if LiteLLM has a database beside it."""
    monkeypatch.setattr(backup, "server_at", lambda *_: replace(SERVER, litellm_beside=True))
    made = backup.backup(NOWHERE, nights, litellm=NOWHERE, alone=True, report=silent)
    assert made.litellm is None
    assert not backup.companion(made.file).exists()


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("litellm", [None, NOWHERE])
def test_a_backup_is_not_named_as_one_whose_companion_is_left(tmp_path: Path, litellm: str | None) -> None:
    """A restore would mistake that companion for the new backup's LiteLLM database."""
    left = backup.companion(tmp_path / "x.dump")
    left.write_text("an archive")
    with pytest.raises(ValueError, match=r"x\.litellm\.dump exists and will not be overwritten"):
        backup.backup(NOWHERE, tmp_path / "x.dump", litellm=litellm, report=silent)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "litellm-of-the-file"),
        ({"DATABASE_URL": "postgresql://another/app"}, None),
        ({"DATABASE_URL": "postgresql://another/app", "LITELLM_DATABASE_URL": ""}, None),
        ({"DATABASE_URL": "postgresql://another/app", "LITELLM_DATABASE_URL": "postgresql://h/its-own"}, "its-own"),
        ({"LITELLM_DATABASE_URL": "postgresql://h/its-own"}, "its-own"),
    ],
)
def test_litellms_database_is_that_of_the_same_stack_as_the_apps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str | None
) -> None:
    """`.env` is of the last stack that was brought up; a DATABASE_URL from elsewhere belongs to another one."""
    (tmp_path / ".env").write_text(
        "DATABASE_URL=postgresql://h/app\nLITELLM_DATABASE_URL=postgresql://h/litellm-of-the-file\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "LITELLM_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    url = Settings.load().litellm_database_url
    assert (url and url.get_secret_value().rpartition("/")[2]) == expected


def test_a_salt_key_that_cannot_be_compared_is_an_objection(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example if no replica can be asked: only --force goes on."""

    def run(_program: str, _given: str) -> str:
        raise ManagementError("no replica runs on the engine that `docker` asks")

    monkeypatch.setattr(litellm_database, "_of_another_release", lambda *_: "")
    monkeypatch.setattr(litellm_database, "_of_another_salt_key", lambda _url, run: run("", ""))
    [why] = litellm_database.objections(NOWHERE, NOWHERE, run)
    assert "could not be compared" in why
    assert "no replica runs" in why
    assert "--force" in why


@pytest.mark.parametrize(
    ("value", "sealed"),
    [
        ("gpt-4o", False),
        ("https://api.example/v1", False),
        ("", False),
        (base64.b64encode(bytes(39)).decode(), False),
        (base64.b64encode(bytes(40)).decode(), True),
        (base64.urlsafe_b64encode(b"\xff" * 48).decode(), True),
        ("v2:gcm:AAAA", True),
    ],
)
def test_a_text_that_litellm_has_not_encrypted_says_nothing_of_the_salt_key(value: str, *, sealed: bool) -> None:
    assert salt_key.is_sealed(value) is sealed
