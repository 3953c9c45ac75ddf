"""The plan that this project began with, taken literally: Postgres and one LiteLLM, its config, its port published.

It is what a team writes in an afternoon: no edge, no second replica, the master key handed to callers.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from benchmarks.containers import container
from benchmarks.peer import NotAvailableError
from infra import demo, gateway, model_list, postgres
from infra.settings import Settings
from infra.stack_config import validate
from infra.workload import LOOPBACK
from tests.stack_config import PROJECT, PROJECT_NAME, raw_config
from tests.stacks import free_port, image_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import docker
    from docker.models.containers import Container
    from docker.models.networks import Network

COMPOSE = "docker-compose"
CONFIG = "/app/config.yaml"
COMMAND = ("--config", CONFIG, "--port", str(gateway.PORT))


def new_key() -> str:
    """A master key."""
    return f"sk-{secrets.token_hex(24)}"


def rendered_config() -> str:
    """LiteLLM's config as a new stack renders it, its models answered by a provider at http://demo:8080."""
    values, _ = validate(raw_config(demo=True), secret=())
    text = (PROJECT / "litellm/config.yaml").read_text(encoding="utf-8")
    address = f"http://{demo.NETWORK_NAME}:{demo.PORT}"
    return model_list.render(text, Settings.model_construct(**values), demo_url=address).config


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan's running LiteLLM."""

    container: Container
    url: str
    key: str


@contextmanager
def plan(engine: docker.DockerClient, on: Network, config: str | None = None) -> Iterator[Plan]:
    """The plan's LiteLLM in a network with a provider: the demo provider, unless its `config` names another."""
    port, key = free_port(), new_key()
    with container(
        engine,
        image_of("litellm"),
        on=on,
        name="litellm",
        command=COMMAND,
        environment={**gateway.ENVIRONMENT, "LITELLM_MASTER_KEY": key},
        files={CONFIG: config or rendered_config()},
        port=gateway.PORT,
        published=port,
    ) as made:
        yield Plan(container=made, url=f"http://{LOOPBACK}:{port}", key=key)


class Compose:
    """The plan as a docker-compose project in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Writes nothing yet. Raises NotAvailableError if docker-compose is not installed."""
        if shutil.which(COMPOSE) is None:
            raise NotAvailableError(f"{COMPOSE} is not installed (apt-get install --no-install-recommends {COMPOSE})")
        self._folder = folder
        self._project = f"{PROJECT_NAME}-benchmark-{secrets.token_hex(4)}"
        self.key = new_key()
        self._port, self._database_port = free_port(), free_port()
        self.url = f"http://{LOOPBACK}:{self._port}"

    def write(self, config: str) -> None:
        """Write the compose file and LiteLLM's config."""
        (self._folder / "config.yaml").write_text(config, encoding="utf-8")
        for path, text in demo.files().items():
            file = self._folder / path.removeprefix("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        (self._folder / "docker-compose.yml").write_text(yaml.safe_dump(self._file(), sort_keys=False))

    def _file(self) -> dict[str, object]:
        litellm = {
            "image": image_of("litellm"),
            "command": list(COMMAND),
            "environment": {**gateway.ENVIRONMENT, "LITELLM_MASTER_KEY": self.key},
            "volumes": [f"./config.yaml:{CONFIG}:ro"],
            "ports": [f"{LOOPBACK}:{self._port}:{gateway.PORT}"],
            "depends_on": ["postgres"],
            "restart": "unless-stopped",
        }
        database = {
            "image": image_of("postgres"),
            "environment": {"POSTGRES_PASSWORD": self.key, "POSTGRES_DB": "app"},
            "volumes": [f"data:{postgres.DATA}"],
            "ports": [f"{LOOPBACK}:{self._database_port}:{postgres.PORT}"],
            "restart": "unless-stopped",
        }
        provider = {
            "image": image_of("litellm"),
            "entrypoint": ["python3", demo.PROGRAM],
            "command": [str(demo.PORT)],
            "volumes": ["./app:/app:ro"],
        }
        services = {"postgres": database, "litellm": litellm, demo.NETWORK_NAME: provider}
        return {"version": "3", "services": services, "volumes": {"data": {}}}

    def run(self, *arguments: str) -> None:
        """Run docker-compose. Raises RuntimeError with what it printed."""
        done = subprocess.run(
            [COMPOSE, "--project-name", self._project, *arguments],
            cwd=self._folder,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{COMPOSE} {arguments[0]} failed: {done.stdout}{done.stderr}")

    def up(self) -> None:
        """Bring it up; containers that run and have not changed stay as they are."""
        self.run("up", "--detach")

    def take_config_up(self) -> None:
        """Make LiteLLM read a changed config: docker-compose does not look into the files that it mounts."""
        self.run("up", "--detach", "--no-deps", "--force-recreate", "litellm")

    def down(self) -> None:
        """Remove it, with its data."""
        self.run("down", "--volumes", "--timeout", "5")
