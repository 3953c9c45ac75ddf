"""The engine restarts, or its disk is full: on an engine of the drills' own, whose volumes have little room."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import docker
import psycopg
import pytest

from engine.connection import connect
from infra.workload import MEBIBYTE
from tests.drills.test_faults import Writer, all_there
from tests.engines import Daemon, needs_an_engine_of_its_own, own_network
from tests.load import NOTHING_FAILS, Bound
from tests.stacks import PARTS, deployed, image_of
from toolchain.__main__ import IMAGE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.drills.conftest import Drill
    from tests.stacks import Deployment

VOLUMES_MB = 256
BOUNDS = {"stops its containers": Bound(gap_seconds=120), "lets them run": Bound(gap_seconds=30)}
"""Nobody gets an answer until the engine is back, with the containers that it had stopped."""
OPTIONS = {"stops its containers": (), "lets them run": ("--live-restore",)}
MORE_THAN_THE_DISK = "CREATE TABLE much AS SELECT md5(generate_series(1, %s)::text)"
"""32 bytes a row. Asked for with FROM, the numbers would go to a temporary file first, which fails in other words."""

pytestmark = needs_an_engine_of_its_own


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """An engine with the stack's images, and a small disk for its volumes."""
    daemon = Daemon()
    daemon.volumes.mkdir(parents=True)
    # Where a machine's root is not shared, an engine mounts its folder over itself, which would hide the small disk.
    data = str(daemon.volumes.parent)
    for mount in (
        ("--bind", data, data),
        ("--make-shared", data),
        ("-t", "tmpfs", "-o", f"size={VOLUMES_MB}m", "tmpfs", str(daemon.volumes)),
    ):
        subprocess.run(["mount", *mount], check=True)
    with own_network():
        try:
            daemon.start()
            with closing(docker.from_env()) as usual, closing(connect(daemon.host)) as own:
                for image in map(image_of, IMAGE_SETTINGS):
                    own.images.load(usual.images.get(image).save(named=True))  # type: ignore[arg-type]  # a stream
            yield daemon
        finally:
            daemon.remove()


@pytest.fixture(scope="module")
def deployment(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack on that engine."""
    with deployed(tmp_path_factory.mktemp("drilled"), host=daemon.host) as made:
        yield made


def fill(path: Path) -> None:
    """Fill up its disk, which is the small one, with a file."""
    assert shutil.disk_usage(path.parent).total <= VOLUMES_MB * MEBIBYTE
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
    assert shutil.disk_usage(path).free < 2**16


def test_a_full_disk_loses_no_acknowledged_row(daemon: Daemon, deployment: Deployment, drill: Drill) -> None:
    """Postgres says what is wrong and accepts no more. With room again it goes on. The gateway does not need it."""
    filler = daemon.volumes / "filler"
    url = deployment.outputs["databaseUrl"]
    with drill("a full disk under Postgres", NOTHING_FAILS), Writer(url) as writer:
        try:
            fill(filler)
            with pytest.raises(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as connection:
                connection.execute(MORE_THAN_THE_DISK % (VOLUMES_MB * MEBIBYTE // 32))
            assert b"No space left on device" in deployment.container("postgres").logs()
        finally:
            filler.unlink()
        writer.await_rows(20)
    assert all_there(deployment, writer)
    deployment.await_restart("postgres", 0)


@pytest.mark.parametrize("mode", OPTIONS)
def test_an_engine_that_restarts_brings_all_back(
    daemon: Daemon, deployment: Deployment, drill: Drill, mode: str
) -> None:
    """Without help, with the same keys and configuration, and every acknowledged row."""
    daemon.end()
    daemon.start(*OPTIONS[mode])
    for part in PARTS:
        deployment.await_restart(part, 0)
    before = {part: deployment.container(part).attrs["State"]["Pid"] for part in PARTS}
    name, url = f"an engine that restarts and {mode}", deployment.outputs["databaseUrl"]
    with drill(name, BOUNDS[mode]) as load, Writer(url) as writer:
        daemon.end()
        daemon.start(*OPTIONS[mode])
        for part in PARTS:
            deployment.await_restart(part, 0)
        load.await_successes(1)
        writer.await_rows(20)
    assert all_there(deployment, writer)
    kept = {part for part in PARTS if deployment.container(part).attrs["State"]["Pid"] == before[part]}
    assert kept == (set(PARTS) if OPTIONS[mode] else set())
    deployment.up(expect_no_changes=True)
