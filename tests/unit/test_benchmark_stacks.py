"""What the benchmarks put beside a stack, and how they grow one."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
import yaml

from app import migrations
from benchmarks import growth
from benchmarks.containers import ProcessMeter, image
from benchmarks.deploy import MODEL, with_model
from benchmarks.peer import NotToBeHadError
from benchmarks.plan import Compose, rendered_config
from infra.migration import FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable
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
        "postgres": image("postgres"),
        "litellm": image("litellm"),
        "demo": image("litellm"),
    }
    compose.write(with_model(rendered_config()))
    assert (tmp_path / "docker-compose.yml").read_text() == file
    assert MODEL["name"] in (tmp_path / "config.yaml").read_text()


def test_without_docker_compose_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(NotToBeHadError, match="apt-get install --no-install-recommends docker-compose"):
        Compose(tmp_path)


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


def test_a_process_is_known_by_its_time_and_memory() -> None:
    meter = ProcessMeter(os.getpid())
    before = meter.cpu_seconds()
    assert 0 < before < 24 * 60 * 60
    assert 1 < meter.memory_mb() < 100_000
    meter.pause()
    meter.resume()
    assert meter.cpu_seconds() >= before
