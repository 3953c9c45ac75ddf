"""An `up` that is killed, whenever that is, and two at once: the next `up` mends all, and nothing is lost."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from tests.drills.test_faults import Writer, all_there
from tests.stack_config import PROJECT_NAME
from tests.stacks import PARTS, POLL_SECONDS, free_port, kill_tree

if TYPE_CHECKING:
    from docker.models.containers import Container

    from tests.stacks import Deployment

KILLS = 20
LATEST_SECONDS = 8
"""By then the slowest of the changes here is done."""
FOUND = ("A run of Pulumi was killed here", "is not in the state")
"""What an `up` says of the lock of a dead process, and of a container that the state does not know."""
UP = ("up", "--yes", "--skip-preview", "--non-interactive")


def servers(deployment: Deployment) -> list[Container]:
    """The containers that run on the volume with the data."""
    volume = f"{PROJECT_NAME}-{deployment.name}-postgres-data"
    return deployment.engine.containers.list(filters={"volume": volume}, ignore_removed=True)


def test_an_up_that_is_killed_at_any_moment_is_mended_by_the_next(deployment: Deployment) -> None:
    """It says what it found; no container is orphaned, no acknowledged row is lost, one Postgres has the volume."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"\nseed {seed}")
    ports = {key: (deployment.stack.get_config(key).value, free_port()) for key in ("gatewayPort", "postgresPort")}
    url, (first, second) = deployment.outputs["databaseUrl"], ports["postgresPort"]
    wanted = {f"{PROJECT_NAME}-{deployment.name}-{part}" for part in PARTS}
    found = dict.fromkeys(FOUND, 0)
    with Writer(url, url.replace(first, str(second))) as writer:
        for number in range(1, KILLS + 1):
            key = ("gatewayPort", "drainSeconds", "postgresPort")[number % 3]
            value = 60 + number if key == "drainSeconds" else ports[key][(number // 3 + 1) % 2]
            deployment.set(**{key: value})
            after = chance.uniform(0, LATEST_SECONDS)
            with deployment.begin(*UP) as process:
                deadline = time.monotonic() + after
                while process.poll() is None and time.monotonic() < deadline:
                    assert len(servers(deployment)) <= 1
                kill_tree(process.pid)
            mending = deployment.begin(*UP)
            said, _ = mending.communicate()
            assert len(servers(deployment)) == 1
            print(f"{number}: {key} = {value}, killed after {after:.1f} s, mended with {mending.returncode}")
            assert mending.returncode == 0, said
            for what in found:
                found[what] += what in said
            assert {str(container.name) for container in deployment.containers()} == wanted
            assert {container.status for container in deployment.containers()} == {"running"}
            writer.await_rows(1)
    print(f"{len(writer.acknowledged)} rows acknowledged; what the next `up` found, and how often: {found}")
    assert all(found.values())
    deployment.up(expect_no_changes=True)
    deployment.refresh(expect_no_changes=True)
    assert all_there(deployment, writer)


def test_of_two_ups_at_once_one_is_told_of_the_other(deployment: Deployment) -> None:
    """The second is told that another one runs, and changes nothing; the first is not disturbed."""
    deployment.set(drainSeconds=45)
    first = deployment.begin(*UP)
    while not any(deployment.state.glob(".pulumi/locks/**/*.json")):
        assert first.poll() is None
        time.sleep(POLL_SECONDS)
    second = deployment.begin(*UP)
    refused, _ = second.communicate()
    done, _ = first.communicate()
    assert first.returncode == 0, done
    assert second.returncode != 0
    assert "currently locked" in refused
    deployment.up(expect_no_changes=True)
