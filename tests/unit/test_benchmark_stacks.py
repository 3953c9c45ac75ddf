"""What the benchmarks put beside a stack, and how they grow one."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
import yaml
from rich.console import Console

import app
from app import migrations
from benchmarks import client, database, deploy, gateway, growth, pace, streams
from benchmarks.caller import Target
from benchmarks.containers import ProcessMeter
from benchmarks.deploy import MODEL, with_model
from benchmarks.measure import Readings
from benchmarks.peer import NotAvailableError
from benchmarks.plan import Compose, rendered_config
from benchmarks.stub import stub
from infra.migration import FOLDER
from tests.stacks import image_of
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from infra.settings import Settings


def test_the_plan_serves_a_new_stacks_models_from_the_demo_provider() -> None:
    config = yaml.safe_load(rendered_config())
    served = {model["model_name"]: model["litellm_params"]["api_base"] for model in config["model_list"]}
    assert served["gpt-4o"] == "http://demo:8080/v1"
    assert served["claude-3-5-sonnet"] == "http://demo:8080"


def test_a_changed_config_serves_one_model_more_and_nothing_else_is_other() -> None:
    before, after = yaml.safe_load(rendered_config()), yaml.safe_load(with_model(rendered_config()))
    assert after["model_list"].pop()["model_name"] == MODEL["name"]
    assert after == before


def test_the_plans_file_runs_the_stacks_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ports stay the same when its config is written again, so that docker-compose leaves the rest alone."""
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/docker-compose")
    compose = Compose(tmp_path)
    compose.write(rendered_config())
    file = (tmp_path / "docker-compose.yml").read_text()
    services = yaml.safe_load(file)["services"]
    assert {name: service["image"] for name, service in services.items()} == {
        "postgres": image_of("postgres"),
        "litellm": image_of("litellm"),
        "demo": image_of("litellm"),
    }
    compose.write(with_model(rendered_config()))
    assert (tmp_path / "docker-compose.yml").read_text() == file
    assert MODEL["name"] in (tmp_path / "config.yaml").read_text()


def test_without_docker_compose_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(NotAvailableError, match="apt-get install --no-install-recommends docker-compose"):
        Compose(tmp_path)


def test_the_database_costs_what_a_stack_without_it_does_not(gateway_url: str) -> None:
    """Each release is measured by itself, and each row is compared with the stack without a database."""
    target = Target(url=gateway_url, headers={"authorization": f"Bearer {client.KEY}"}, body=gateway.BODY)
    readings = Readings()
    with pytest.MonkeyPatch.context() as patch, Steps(Console(file=io.StringIO())).step("measure") as step:
        patch.setattr(database, "SECONDS", 0.1)
        for name in (database.WITHOUT, database.VIRTUAL):
            contender = gateway.Contender(name=name, target=target, parts=(ProcessMeter(os.getpid()),))
            database.measure(contender, readings, streams.PINNED.version, step)
    shown = {each.title: each for each in database.compared(readings)}
    rate = shown[f"{gateway.RATE}, LiteLLM {streams.PINNED.version}"]
    assert rate.all_points == [str(each) for each in database.CONCURRENT]
    assert all(rate.ratio(database.VIRTUAL, point) for point in rate.all_points)
    failed = shown[f"{gateway.FAILED}, LiteLLM {streams.PINNED.version}"]
    assert {value for points in failed.values.values() for rounds in points.values() for value in rounds} == {0.0}
    assert not shown[f"{gateway.RATE}, LiteLLM {streams.NEWEST.version}"].values


def test_the_figures_of_streams_are_those_that_callers_saw() -> None:
    """CPU time counts per chunk that arrived; an abandoned stream counts with the time that the caller waited."""
    seen = pace.Seen(
        first=[0.25, 45.0],
        gaps=[0.5, 1.0],
        refused=[],
        failures=["given up"],
        chunks=4,
        streams=2,
        seconds=45,
        cpu_seconds=1,
    )
    assert streams.read(seen, cpu=0.5, own=2) == {
        streams.FIRST50: 250,
        streams.FIRST99: 45_000,
        streams.GAP50: 500,
        streams.GAP99: 1000,
        streams.LONGEST: 1000,
        streams.CPU: 125_000,
        streams.OWN: 500_000,
        streams.FAILED: 1,
    }


def test_some_rows_of_the_streams_are_chosen_by_their_names() -> None:
    """An unknown name is refused with a list of all names, before anything is brought up."""
    assert streams.named("") == [*streams.NAMES, streams.HOLDING]
    assert streams.named("lane on") == [kind.name for kind in streams.KINDS if kind.fast] + [streams.HOLDING]
    with pytest.raises(ValueError, match="'nobody' in its name: the plan; this stack, LiteLLM"):
        streams.named("nobody")


def test_streams_that_were_all_refused_have_no_times() -> None:
    seen = pace.Seen(
        first=[], gaps=[], refused=[0.1], failures=["502"] * 7, chunks=0, streams=8, seconds=1, cpu_seconds=1
    )
    assert streams.read(seen, cpu=1, own=1) == {streams.FAILED: 8}


def test_the_plan_can_serve_the_model_that_has_a_pace() -> None:
    config = yaml.safe_load(with_model(rendered_config(), streams.provided()))
    added = config["model_list"][-1]
    assert (added["model_name"], added["litellm_params"]["api_base"]) == (pace.MODEL, f"{pace.PROVIDER}/v1")


@pytest.mark.parametrize("count", growth.MODELS)
def test_a_stack_may_have_as_many_models(settings: Callable[..., Settings], count: int) -> None:
    assert len(settings(models=growth.models(count)).models) == count


def test_a_stack_may_have_as_many_replicas(settings: Callable[..., Settings]) -> None:
    for count in growth.REPLICAS:
        assert settings(replicas=count, litellmMemoryMb=growth.MEMORY_MB).replicas == count


def test_a_project_grows_and_shrinks_to_as_many_migrations(tmp_path: Path) -> None:
    """In the form that the runner reads."""
    folder = tmp_path / "migrations"
    shutil.copytree(FOLDER, folder)
    for count in (*growth.MIGRATIONS, *growth.MIGRATIONS):
        growth.write_migrations(folder, count)
        assert len(migrations.read(folder)) == count


@pytest.fixture
def gateway_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A stub's address, which the app module uses too."""
    with stub() as url:
        monkeypatch.setenv("LITELLM_URL", url)
        monkeypatch.setenv("LITELLM_API_KEY", client.KEY)
        yield url
        app.close()


def test_every_kind_of_call_is_measured(gateway_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync and async, all compared with the same bare call. Organizations need a database and are left out."""
    monkeypatch.setattr(client, "LEAST_CALLS", 2)
    readings = Readings()

    async def run_async(kinds: list[tuple[str, str]]) -> None:
        async with client.async_calls(gateway_url, UUID(int=0)) as calls:
            assert calls.keys() == {*kinds, (client.CHAT, client.FOR_ORG)}
            for kind in kinds:
                await client.run_async(calls, 2, readings, kind)

    with client.sync_calls(gateway_url, UUID(int=0)) as calls:
        kinds = [kind for kind in calls if kind[1] != client.FOR_ORG]
        for kind in kinds:
            client.run_sync(calls, 2, readings, kind)
    asyncio.run(run_async(kinds))
    for quantity, contender in kinds:
        for mode in ("sync", "async"):
            shown = readings.comparison(f"{quantity}, {mode}", unit="ms", points="", baseline=client.BARE)
            figure = shown.figure(contender, "2")
            assert figure is not None
            assert figure.median > 0
            assert (shown.ratio(contender, "2") is None) is (contender == client.BARE)


def test_every_point_of_a_gateway_is_measured(gateway_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain and streamed: rates, times, CPU time and failures, the callers' own cost apart."""
    monkeypatch.setattr(gateway, "SECONDS", 0.05)
    monkeypatch.setattr(gateway, "CONCURRENT", (1, 4))
    monkeypatch.setattr(gateway, "TARGETS_AT", 4)
    readings = Readings()
    with Steps(Console(file=io.StringIO())).step("measure") as step:
        for name in (gateway.PLAN, gateway.size(2)):
            contender = gateway.Contender(
                name=name,
                target=Target(url=gateway_url, headers={}, body=gateway.BODY),
                parts=(ProcessMeter(os.getpid()),),
            )
            with contender.awake():
                gateway.measure(contender, readings, step)
    readings.leave_out(gateway.PEER, "npm is not installed")
    shown = {each.title: each for each in gateway.compared(readings)}
    for mode in gateway.MODES:
        for quantity in (gateway.RATE, gateway.P50, gateway.P99, gateway.CPU, gateway.FAILED, gateway.CALLERS):
            assert shown[f"{quantity}, {mode}"].all_points == ["1", "4"]
            assert shown[f"{quantity}, {mode}"].absent == {gateway.PEER: "npm is not installed"}
        assert shown[f"{gateway.FAILED}, {mode}"].values[gateway.PLAN] == {"1": (0.0,), "4": (0.0,) * gateway.TIMES}
    assert shown[gateway.MEMORY].all_points == ["after the load"]


class Nothing:
    """A way of deploying that has nothing to do."""

    name = deploy.OURS

    def __init__(self, url: str) -> None:
        self._url = url
        self.done: list[str] = []

    def up(self) -> None:
        self.done.append("up")

    def write_change(self) -> None:
        self.done.append("write")

    def take_change_up(self) -> None:
        self.done.append("change")

    def target(self, model: str) -> Target:
        body = {**gateway.BODY, "model": model}
        return Target(url=self._url, headers={"authorization": f"Bearer {client.KEY}"}, body=body)

    def take_away(self) -> None:
        self.done.append("away")


def test_a_deployment_is_measured_from_nothing_again_and_with_a_change_under_load(gateway_url: str) -> None:
    """Requests that a change does not break are reported as such."""
    readings, way = Readings(), Nothing(gateway_url)
    with Steps(Console(file=io.StringIO())).step("measure") as step:
        deploy.measure(way, readings, step)
    assert way.done == ["up", "up", "write", "change"]
    times = readings.comparison(deploy.TIME, unit="s", points="")
    assert times.all_points == [deploy.NOTHING, deploy.UNCHANGED, deploy.CHANGED]
    failed = readings.comparison(deploy.FAILED, unit="", points="")
    assert failed.values == {way.name: {deploy.CHANGED: (0.0,)}}


def test_a_process_is_known_by_its_time_and_memory() -> None:
    meter = ProcessMeter(os.getpid())
    before = meter.cpu_seconds()
    assert 0 < before < 24 * 60 * 60
    assert 1 < meter.memory_mb() < 100_000
    meter.pause()
    meter.resume()
    assert meter.cpu_seconds() >= before
