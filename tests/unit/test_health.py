"""The health of a container, awaited: healthy, or why it will not be, without waiting longer than that takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import docker
import pytest

from infra.placement import health

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60
PROPS = {"host": "unix:///var/run/docker.sock", "container": "0123456789abcdef", "start_seconds": SECONDS}
CREATED = datetime(2026, 11, 25, 10, tzinfo=UTC)
STARTED = CREATED + timedelta(seconds=5.5)
NAME = "llm-infrastructure-dev-litellm-1"


CHECK = ("python3", "-c", "check")


def state(status: str = "starting", *, restarts: int = 0, **changes: object) -> dict[str, Any]:
    """A container as the engine describes it."""
    known = {
        "Health": {"Status": status},
        "Running": True,
        "Restarting": False,
        "ExitCode": 0,
        "StartedAt": STARTED.isoformat(),
    }
    return {
        "Config": {"Healthcheck": {"Test": ["CMD", *CHECK]}},
        "RestartCount": restarts,
        "Created": CREATED.isoformat(),
        "State": known | changes,
    }


class Container:
    """One that goes through states, from one look at it to the next; it stays in the last one."""

    id = "0123456789abcdef"
    name = NAME

    def __init__(
        self, *states: dict[str, Any], died: tuple[str, ...] = (), checked: tuple[int | Exception, ...] = ()
    ) -> None:
        """`checked` is what its own check comes to, time after time; then it fails."""
        self.attrs = states[0]
        self.client = self
        self.now = 0.0
        self._coming = list(states)
        self._died = died
        self._checked = list(checked)

    def reload(self) -> None:
        self.attrs = self._coming[0]

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if len(self._coming) > 1:
            self._coming.pop(0)

    def exec_run(self, command: list[str]) -> SimpleNamespace:
        assert command == list(CHECK)
        result = self._checked.pop(0) if self._checked else 1
        if isinstance(result, Exception):
            raise result
        return SimpleNamespace(exit_code=result)

    def logs(self, *, tail: int) -> bytes:
        assert tail == health.LAST_LINES
        return b"Traceback\nValueError\n"

    def events(self, *, since: datetime, until: datetime, **_: object) -> list[dict[str, Any]]:
        assert since <= CREATED
        assert until > STARTED
        return [{"Actor": {"Attributes": {"exitCode": code}}} for code in self._died]


@pytest.fixture
def awaited(monkeypatch: pytest.MonkeyPatch) -> Callable[[Container | None], dict[str, Any]]:
    """Await the health of a container, which is the clock too; or of one that is gone."""

    def run(container: Container | None) -> dict[str, Any]:
        def get(name: str) -> Container:
            if container is None:
                raise docker.errors.NotFound(f"no such container: {name}")
            return container

        engine = SimpleNamespace(containers=SimpleNamespace(get=get), close=lambda: None)
        monkeypatch.setattr(health, "connect", lambda _: engine)
        monkeypatch.setattr(health, "time", container)
        outs = health._Provider().create(PROPS).outs
        assert outs is not None
        return outs

    return run


def test_a_container_that_gets_healthy(awaited: Callable[..., dict[str, Any]]) -> None:
    container = Container(state(), state(), state("healthy"))
    assert awaited(container) == PROPS
    assert container.now == 2 * health.POLL_SECONDS


def test_a_container_whose_own_check_passes_before_the_engine_asks(awaited: Callable[..., dict[str, Any]]) -> None:
    """The engine checks rarely. If a container is gone, the next look at it shows that."""
    container = Container(state(), checked=(1, docker.errors.APIError("it is not running"), 0))
    assert awaited(container) == PROPS
    assert container.now == 2 * health.POLL_SECONDS


def test_a_container_that_was_started_again_does_not_pass_by_its_check(
    awaited: Callable[..., dict[str, Any]],
) -> None:
    with pytest.raises(RuntimeError, match="exited with an unknown code"):
        awaited(Container(state(), state("healthy", restarts=1), checked=(1, 0)))


@pytest.mark.parametrize(
    ("after", "died", "code"),
    [
        (state("unhealthy", Running=False, ExitCode=3), (), "3"),
        (state(Restarting=True, ExitCode=137), (), "137"),
        (state(restarts=1), ("1", "2"), "2"),
        (state(restarts=1), (), "an unknown code"),
    ],
)
def test_a_container_that_ended(
    awaited: Callable[..., dict[str, Any]], after: dict[str, Any], died: tuple[str, ...], code: str
) -> None:
    """The wait ends, whether it is restarted or not, and the error has its last lines."""
    container = Container(state(), after, died=died)
    with pytest.raises(RuntimeError) as raised:
        awaited(container)
    assert str(raised.value) == f"{NAME} exited with {code}; its last lines:\nTraceback\nValueError"
    assert container.now < 1


def test_a_container_that_does_not_get_healthy(awaited: Callable[..., dict[str, Any]]) -> None:
    container = Container(state("unhealthy"))
    with pytest.raises(RuntimeError, match=rf"{NAME} was not healthy after {SECONDS} s; its last lines:\nTraceback"):
        awaited(container)
    assert container.now >= SECONDS


def test_a_container_that_was_removed(awaited: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError, match="container 0123456789ab was removed while it started"):
        awaited(None)


def test_another_container_is_awaited_again() -> None:
    provider = health._Provider()
    assert provider.diff("healthy", PROPS, {**PROPS, "start_seconds": 1}).changes is False
    assert provider.diff("healthy", PROPS, {**PROPS, "container": "fedcba"}).changes is True
