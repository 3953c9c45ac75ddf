"""An `up` that is killed, whenever that is, and two at once: the next `up` mends all, and nothing is lost."""

from __future__ import annotations

import itertools
import random
import signal
import time
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING

from tests.drills.test_faults import Writer, all_there
from tests.load import NOTHING_FAILS, Bound
from tests.stack_config import PROJECT_NAME
from tests.stacks import POLL_SECONDS, free_port, kill_tree

if TYPE_CHECKING:
    from tests.drills.conftest import Drill
    from tests.stacks import Deployment

LATEST_SECONDS = 12
"""About how long a change here takes."""
FOUND = ("A run of Pulumi was killed here", "pending operations", "is not in the state")
"""What an `up` says of the lock of a dead process, of what that had begun, and of a container it left behind."""
UP = ("up", "--yes", "--skip-preview", "--non-interactive")
CHANGES = {
    # setting: (what it replaces, how often an `up` is killed over it, what that may cost)
    "drainSeconds": ("the replicas", 8, NOTHING_FAILS),
    "postgresPort": ("Postgres", 6, NOTHING_FAILS),
    "edgeMemoryMb": ("the edge", 6, Bound(gap_seconds=300)),
}


def servers(deployment: Deployment) -> int:
    """How many containers run on the volume with the data."""
    volume = f"{PROJECT_NAME}-{deployment.name}-postgres-data"
    return len(deployment.engine.containers.list(filters={"volume": volume}, ignore_removed=True))


def killed_up(deployment: Deployment, after: float) -> bool:
    """Start an `up`, and kill it so many seconds later; whether it still ran."""
    with deployment.begin(*UP) as process:
        deadline = time.monotonic() + after
        while process.poll() is None and time.monotonic() < deadline:
            assert servers(deployment) <= 1
        kill_tree(process.pid)
    return process.returncode == -signal.SIGKILL


def mending_up(deployment: Deployment) -> str:
    """What an `up` says that mends all."""
    with deployment.begin(*UP) as process:
        while True:
            try:
                said, _ = process.communicate(timeout=POLL_SECONDS)
            except TimeoutExpired:
                assert servers(deployment) <= 1
            else:
                break
    assert process.returncode == 0, said
    assert servers(deployment) == 1
    return said


def test_an_up_that_is_killed_at_any_moment_is_mended_by_the_next(deployment: Deployment, drill: Drill) -> None:
    """It says what it found; nothing is orphaned, no acknowledged row is lost, one Postgres has the volume.

    Callers notice it only when it was about to replace the edge: there is none until the next `up`.
    """
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"\nseed {seed}")
    url, first, second = (
        deployment.outputs["databaseUrl"],
        str(deployment.stack.get_config("postgresPort").value),
        str(free_port()),
    )
    values = {
        "drainSeconds": itertools.count(61),
        "postgresPort": itertools.cycle((second, first)),
        "edgeMemoryMb": itertools.count(300),
    }
    whole = sorted(deployment.leftovers())
    found = dict.fromkeys(FOUND, 0)
    with Writer(url, url.replace(first, second)) as writer:
        for key, (what, kills, bound) in CHANGES.items():
            with drill(f"`up` killed {kills} times, replacing {what}", bound):
                killed = 0
                while killed < kills:
                    value, after = next(values[key]), chance.uniform(0, LATEST_SECONDS)
                    deployment.set(**{key: value})
                    was_killed = killed_up(deployment, after)
                    killed += was_killed
                    said = mending_up(deployment)
                    print(f"{key} = {value}, {'killed' if was_killed else 'over'} after {after:.1f} s")
                    for each in found:
                        found[each] += each in said
                    assert sorted(deployment.leftovers()) == whole
                    assert {container.status for container in deployment.containers()} == {"running"}
                    writer.await_rows(1)
    print(f"{len(writer.acknowledged)} rows acknowledged; what the next `up` found, and how often: {found}")
    assert all(found.values())
    deployment.up(expect_no_changes=True)
    deployment.refresh(expect_no_changes=True)
    assert all_there(deployment, writer)


def test_of_two_ups_at_once_one_is_told_of_the_other(deployment: Deployment, drill: Drill) -> None:
    """The second is told that another one runs, and changes nothing; the first is not disturbed."""
    deployment.set(drainSeconds=45)
    with drill("two `up`s at once", NOTHING_FAILS):
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
