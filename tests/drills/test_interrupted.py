"""An `up` that is killed at any moment, and two at once: the next `up` fixes everything, and nothing is lost."""

from __future__ import annotations

import itertools
import os
import random
import time
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING

from tests.drills.test_faults import Writer, all_there
from tests.load import NOTHING_FAILS, Bound
from tests.stack_config import PROJECT_NAME
from tests.stacks import POLL_SECONDS, as_soon_as_replaced, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.drills.conftest import Drill
    from tests.stacks import Deployment

KILLS = int(os.environ.get("KILLS", "3"))
"""Of an `up`, at each part. Each takes half a minute: `make drill NAME=killed KILLS=20` when there is time."""
EDGE_IS_MADE_AGAIN = Bound(gap_seconds=120)
"""One that an `up` was about to replace is away until the next `up`."""
FOUND = ("A run of Pulumi was killed here", "is not in the state")
"""What an `up` says about the lock of a dead process, and about a container that it left behind."""


def servers(deployment: Deployment) -> int:
    """How many containers run on the volume with the data."""
    volume = f"{PROJECT_NAME}-{deployment.name}-postgres-data"
    return len(deployment.engine.containers.list(filters={"volume": volume}, ignore_removed=True))


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def with_one_server(deployment: Deployment, when: Callable[[], bool]) -> Callable[[], bool]:
    """`when`, which fails if two servers have the volume."""

    def asked() -> bool:
        assert servers(deployment) <= 1
        return when()

    return asked


def repairing_up(deployment: Deployment) -> str:
    """The output of an `up` that repairs everything."""
    with deployment.begun_up() as process:
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


def interrupted(  # noqa: PLR0913 -- all by name
    deployment: Deployment,
    drill: Drill,
    *,
    part: str,
    setting: str,
    values: Sequence[object],
    bound: Bound,
    urls: Sequence[str] = (),
) -> None:
    """Kill an `up` that replaces a part because of a changed setting, again and again; the next one fixes it.

    The first when it has just made a container, the others at random moments of the time that the longest `up` took.
    Each must say what it found, orphan nothing and lose no acknowledged row. `urls` are where else the database may
    be.
    """
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"\n`up` killed while it replaces {part}, seed {seed}")
    whole = sorted(deployment.leftovers())
    value = itertools.cycle(values)
    found = dict.fromkeys(FOUND, 0)
    killed, longest = 0, 0.0
    with (
        drill(f"`up` killed {KILLS} times at {part}", bound) as load,
        Writer(deployment.outputs["databaseUrl"], *urls) as writer,
    ):
        while killed < KILLS:
            deployment.set(**{setting: next(value)})
            when = after(chance.uniform(0, longest)) if longest else as_soon_as_replaced(deployment, part)
            load.report.broken = started = time.monotonic()
            killed += deployment.killed_up(with_one_server(deployment, when))
            ended = time.monotonic()
            said = repairing_up(deployment)
            longest = max(longest, time.monotonic() - ended)
            here = [what for what in FOUND if what in said]
            print(
                f"{killed}: killed after {ended - started:.1f} s, fixed in {time.monotonic() - ended:.1f} s: {here}"
            )
            for what in here:
                found[what] += 1
            assert sorted(deployment.leftovers()) == whole
            assert {container.status for container in deployment.containers()} == {"running"}
            writer.await_rows(1)
    print(f"{len(writer.acknowledged)} rows acknowledged; what the next `up` found, and how often: {found}")
    assert all(found.values())
    deployment.up(expect_no_changes=True)
    deployment.refresh(expect_no_changes=True)
    assert all_there(deployment, writer)


def test_an_up_that_is_killed_at_the_replicas_is_fixed_by_the_next(deployment: Deployment, drill: Drill) -> None:
    """Callers notice nothing of it."""
    interrupted(
        deployment,
        drill,
        part="litellm-1",
        setting="drainSeconds",
        values=(61, 62),
        bound=NOTHING_FAILS,
    )


def test_an_up_that_is_killed_at_postgres_is_fixed_by_the_next(deployment: Deployment, drill: Drill) -> None:
    """Two servers never use the volume at once, and callers notice nothing."""
    first, second = str(deployment.stack.get_config("postgresPort").value), str(free_port())
    interrupted(
        deployment,
        drill,
        part="postgres",
        setting="postgresPort",
        values=(second, first),
        bound=NOTHING_FAILS,
        urls=[deployment.outputs["databaseUrl"].replace(first, second)],
    )


def test_an_up_that_is_killed_at_the_edge_is_fixed_by_the_next(deployment: Deployment, drill: Drill) -> None:
    """There may be no edge until then."""
    interrupted(
        deployment,
        drill,
        part="edge",
        setting="metricsPort",
        values=(free_port(), free_port()),
        bound=EDGE_IS_MADE_AGAIN,
    )


def test_the_second_of_two_ups_at_once_is_refused_and_names_the_first(deployment: Deployment, drill: Drill) -> None:
    """The second one says that another runs, and changes nothing; the first one is not disturbed."""
    deployment.set(drainSeconds=45)
    with drill("two `up`s at once", NOTHING_FAILS), deployment.begun_up() as first:
        while not any(deployment.state.glob(".pulumi/locks/**/*.json")):
            assert first.poll() is None
            time.sleep(POLL_SECONDS)
        with deployment.begun_up() as second:
            refused, _ = second.communicate()
        done, _ = first.communicate()
        assert first.returncode == 0, done
        assert second.returncode != 0
        assert "currently locked" in refused
    deployment.up(expect_no_changes=True)
