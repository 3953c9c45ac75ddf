"""A container that runs once as a step of an `up`: what is said while it runs."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from infra.placement import job

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "llm-infrastructure-dev-litellm-database-schema"


class Container:
    """One that runs for a while, by a clock that goes on by a second with each look."""

    name = NAME

    def __init__(self, seconds: float, exit_code: int = 0) -> None:
        self.left = seconds
        self.attrs: dict[str, Any] = {"State": {"Running": True, "ExitCode": exit_code, "OOMKilled": False}}

    def reload(self) -> None:
        self.left -= 1
        self.attrs["State"]["Running"] = self.left > 0

    def logs(self, **_: object) -> bytes:
        return b"the last line\n"


@pytest.fixture
def awaited(monkeypatch: pytest.MonkeyPatch) -> Callable[[Container], None]:
    seconds = itertools.count(1000.0)
    monkeypatch.setattr(job, "time", SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _: None))
    return job._await_end  # type: ignore[return-value]  # without an engine


def test_what_is_waited_for_is_said_now_and_again(
    awaited: Callable[[Container], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """On standard error, which Pulumi shows, with the command that shows more. Nothing for a job that ends soon."""
    awaited(Container(10))
    assert capfd.readouterr().err == ""
    awaited(Container(140))
    said = capfd.readouterr().err.splitlines()
    assert [line.split(" s, ")[0].split()[-1] for line in said] == ["15", "75", "135"]
    assert all(line.endswith(f"docker logs --follow {NAME}") for line in said)


def test_one_that_does_not_end_fails_with_its_last_lines(awaited: Callable[[Container], None]) -> None:
    with pytest.raises(job.JobError, match=r"did not end within 3600 s; its last lines:\nthe last line"):
        awaited(Container(9999))


def test_one_that_fails_shows_its_last_lines(awaited: Callable[[Container], None]) -> None:
    with pytest.raises(job.JobError, match=r"it exited with 3; its last lines:\nthe last line"):
        awaited(Container(2, exit_code=3))
