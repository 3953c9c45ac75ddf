"""The data are lost, and come back from a backup; the gateway does not need them to answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.test_backup import ROWS, everything, fill, restored, saved
from tests.load import NOTHING_FAILS

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.drills.conftest import Drill
    from tests.stacks import Deployment


def test_a_lost_volume_comes_back_from_a_backup_with_every_row(
    deployment: Deployment, drill: Drill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After the next `up --refresh` and a restore; sequences go on where they were, and the app owns its tables."""
    url = deployment.outputs["databaseUrl"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", url)
    fill(deployment)
    before = everything(url)
    assert len(before["kinds"]) == len(before["organizations"]) == ROWS
    with drill("a lost volume, restored from a backup", NOTHING_FAILS):
        folder = saved(".")
        container = deployment.container("postgres")
        (volume,) = [mount["Name"] for mount in container.attrs["Mounts"] if mount["Type"] == "volume"]
        container.remove(force=True)
        deployment.engine.volumes.get(volume).remove()
        up = deployment.pulumi("up", "--refresh", "--yes", "--skip-preview")
        assert up.returncode == 0, up.stdout
        assert everything(url)["organizations"] == []
        restored(folder)  # the newest in it
    assert everything(url) == before
    with deployment.database() as connection:
        row = connection.execute("INSERT INTO kinds DEFAULT VALUES RETURNING id").fetchone()
        assert row == (ROWS + 1,)
        owners = connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert owners.fetchall() == [("app",)]
    deployment.up(expect_no_changes=True)
