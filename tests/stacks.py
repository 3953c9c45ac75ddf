"""Real stacks on the local engine, each with its own state, project folder, ports and names.

Nothing here touches a stack that is running already, and any number of test runs may go on side by side.
"""

from __future__ import annotations

import io
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import httpx2
import psycopg
import pytest
import yaml
from openai import OpenAI
from pulumi import automation

from engine.image_names import stand_ins
from infra.placement.health import passes_its_check
from infra.placement.swarm_services import stand_down
from tests.stack_config import PROJECT, PROJECT_NAME, project_file
from toolchain import images, tools
from toolchain.__main__ import IMAGE_SETTINGS
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from docker.models.containers import Container
    from docker.models.images import Image
    from docker.models.services import Service

    from toolchain.recipes import Recipe

REPLICAS = ("litellm-1", "litellm-2")
PARTS = ("postgres", "demo", *REPLICAS, "edge")
LLMCTL = str(Path(sys.executable).with_name("llmctl"))
RESTART_SECONDS = 120
POLL_SECONDS = 0.1
PASSPHRASE = "for this test run only"


def free_port() -> int:
    """A free port, below the range from which the kernel takes ports for connections: a connection could take it."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            port = random.randrange(20_000, 32_000)
            probe.bind(("127.0.0.1", port))
            return port


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    children = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            children += [int(child) for child in thread.read_text().split()]
    return children + [each for child in children for each in descendants(child)]


def kill_tree(pid: int) -> None:
    """Kill a process and everything that it started."""
    for each in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def as_soon_as_replaced(deployment: Deployment, part: str) -> Callable[[], bool]:
    """True once a part has a new container, which cannot be in the state yet."""
    old = deployment.container(part)
    return lambda: any(each.name == old.name and each.id != old.id for each in deployment.containers())


def copy_files(folder: Path) -> None:
    """Copy the project's files that git tracks, and new ones that it does not ignore, as they are."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for file in filter(None, files):
        if (PROJECT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / file, folder / file)


def copy_project(folder: Path) -> None:
    """Copy the project to a folder, with its images and Python environment from here."""
    copy_files(folder)
    if (PROJECT / ".images.yaml").is_file():
        shutil.copy2(PROJECT / ".images.yaml", folder)
    (folder / ".venv").symlink_to(PROJECT / ".venv")


class Deployment:
    """One stack of a copy of the project, driven as an operator or another program would."""

    def __init__(
        self, folder: Path, name: str, *, host: str | None = None, lay: Callable[[Path], None] | None = None
    ) -> None:
        """`host` is a Docker Engine other than the machine's usual one; `lay` is a function that fills the folder."""
        self.name = name
        self.folder = folder / "project"
        self.environment = {
            "PULUMI_BACKEND_URL": (folder / "state").as_uri(),
            "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        }
        self.of_stack: dict[str, Any] = {"label": f"{PROJECT_NAME}.stack={name}"}
        self.state = folder / "state"
        self.state.mkdir()
        (lay or copy_project)(self.folder)
        # Like a new dev stack: a test must not see what the user has set there, such as secrets.
        settings = {f"{PROJECT_NAME}:demo": True, f"{PROJECT_NAME}:protectData": False}
        (self.folder / f"Pulumi.{name}.yaml").write_text(yaml.safe_dump({"config": settings}))
        self.engine = docker.DockerClient(host) if host else docker.from_env()
        self.connections = httpx2.Client(timeout=60)
        self.stack = automation.create_stack(
            name,
            work_dir=str(self.folder),
            opts=automation.LocalWorkspaceOptions(env_vars=self.environment),
        )
        self.set(gatewayPort=free_port(), postgresPort=free_port(), **({"dockerHost": host} if host else {}))

    def set(self, **config: object) -> None:
        self.stack.set_all_config({key: automation.ConfigValue(str(value)) for key, value in config.items()})

    def set_path(self, path: str, value: object, *, secret: bool = False) -> None:
        self.stack.set_config(path, automation.ConfigValue(str(value), secret=secret), path=True)

    def forget(self, path: str) -> None:
        self.stack.remove_config(path, path=True)

    def secrets(self) -> dict[str, str]:
        """Every secret of the stack as NAME.value and NAME.previous, decrypted from the state."""
        exported = self.pulumi("stack", "export", "--show-secrets")
        values = {}
        for resource in json.loads(exported.stdout)["deployment"]["resources"]:
            if resource["type"].endswith(":RotatingSecret"):
                for name in ("value", "previous"):
                    value = resource["outputs"][name]
                    if isinstance(value, dict) and value["plaintext"] != '""':
                        values[f"{resource['urn'].rsplit('::', 1)[1]}.{name}"] = json.loads(value["plaintext"])
        return values

    def secret(self, name: str) -> str:
        """The current value of a secret."""
        return self.secrets()[f"{name}.value"]

    def up(self, *, expect_no_changes: bool = False) -> None:
        """Raises CommandError with all that it printed."""
        self.__dict__.pop("outputs", None)
        self._change("up", expect_no_changes=expect_no_changes)

    def refresh(self, *, expect_no_changes: bool = False) -> None:
        """Raises CommandError with all that it printed."""
        self._change("refresh", expect_no_changes=expect_no_changes)

    def _change(self, operation: str, *, expect_no_changes: bool) -> None:
        """As the Automation API does it, which starts the CLI three more times to tell what has become of it."""
        options = ["--expect-no-changes"] if expect_no_changes else []
        done = self.pulumi(operation, "--yes", "--skip-preview", *options)
        print(done.stdout)
        if done.returncode != 0:
            raise automation.CommandError(automation.CommandResult(done.stdout, "", done.returncode))

    def pulumi(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the CLI; what it printed is in `stdout`."""
        return subprocess.run(
            ["pulumi", *arguments, "--stack", self.name, "--non-interactive", "--color=never"],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the project's own `pulumiw` beside this program."""
        return subprocess.Popen(
            [sys.executable, "-m", "toolchain.pulumi", *arguments, "--stack", self.name, "--color=never"],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @contextmanager
    def begun_up(self) -> Iterator[subprocess.Popen[str]]:
        """An `up` that is killed with everything it started, as on a lost machine, if it outlives the block."""
        with self.begin("up", "--yes", "--skip-preview", "--non-interactive") as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    kill_tree(process.pid)

    def killed_up(self, when: Callable[[], bool]) -> bool:
        """Kill an `up` as soon as `when` is true, and return whether it was still running."""
        with self.begun_up() as process:
            while process.poll() is None and not when():
                time.sleep(0.01)
        return process.returncode == -signal.SIGKILL

    def kill(self, part: str) -> None:
        """Kill a part's process with SIGKILL, as a crash does; after `docker kill` the engine restarts nothing."""
        os.kill(self.container(part).attrs["State"]["Pid"], signal.SIGKILL)

    def await_restart(self, part: str, pid: int) -> None:
        """Wait until another process than `pid` runs in a part's container, and is healthy."""
        deadline = time.monotonic() + RESTART_SECONDS
        while True:
            container = self.container(part)
            state = container.attrs["State"]
            if state["Pid"] not in {0, pid} and passes_its_check(container):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{part} did not come back: {state}")
            time.sleep(POLL_SECONDS)

    @cached_property
    def outputs(self) -> dict[str, Any]:
        printed = self.pulumi("stack", "output", "--json", "--show-secrets").stdout
        outputs: dict[str, Any] = json.loads(printed)
        return outputs

    @property
    def client(self) -> OpenAI:
        return OpenAI(
            base_url=f"{self.outputs['litellmUrl']}/v1",
            api_key=self.outputs["litellmApiKey"],
            max_retries=0,
            http_client=self.connections,
        )

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection]:
        with psycopg.connect(self.outputs["databaseUrl"], autocommit=True) as connection:
            yield connection

    def read(self, part: str, *command: str) -> str:
        """What a command prints in a part's container."""
        printed = self.container(part).exec_run(list(command)).output
        assert isinstance(printed, bytes)
        return printed.decode()

    @staticmethod
    def put(container: Container, path: str, text: str, *, mode: int) -> None:
        """Write a file into a container."""
        entry = tarfile.TarInfo(path.removeprefix("/"))
        entry.size, entry.mode = len(text.encode()), mode
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(entry, io.BytesIO(text.encode()))
        container.put_archive("/", buffer.getvalue())

    def container(self, part: str) -> Container:
        return self.engine.containers.get(f"{PROJECT_NAME}-{self.name}-{part}")

    def image(self, part: str) -> Image:
        image = self.container(part).image
        assert image is not None
        return image

    def containers(self) -> list[Container]:
        return self.engine.containers.list(all=True, filters=self.of_stack, ignore_removed=True)

    def services(self) -> list[Service]:
        """The stack's services, where its engine manages a Swarm."""
        swarm = self.engine.info()["Swarm"].get("ControlAvailable")
        return self.engine.services.list(filters=self.of_stack) if swarm else []

    def leftovers(self) -> list[str]:
        """The names of everything on the engine that carries this stack's label."""
        return [
            *(str(service.name) for service in self.services()),
            *(str(container.name) for container in self.containers()),
            *(str(network.name) for network in self.engine.networks.list(filters=self.of_stack)),
            *(str(volume.name) for volume in self.engine.volumes.list(filters=self.of_stack)),
        ]

    def destroy(self) -> None:
        """Remove the stack as an operator does, and whatever a failed test left of it."""
        try:
            if self.pulumi("stack").returncode == 0:  # a test may have removed it
                self.stack.cancel()
                self.stack.destroy(show_secrets=False, on_output=print)
        finally:
            self.remove()

    def remove(self) -> None:
        """Remove everything of the stack from its engine, without waiting for requests: no state is left to keep."""
        for service in self.services():
            stand_down(self.engine, str(service.id))
            service.remove()  # type: ignore[no-untyped-call]
        for container in self.containers():
            container.remove(force=True, v=True)
        for network in self.engine.networks.list(filters=self.of_stack):
            network.remove()
        for volume in self.engine.volumes.list(filters=self.of_stack):
            volume.remove()
        self.engine.close()
        self.connections.close()


def image_of(part: str) -> str:
    """The image that a new stack runs for a part of IMAGE_SETTINGS: the pinned one, or what replaces it here."""
    reference = str(project_file()["config"][IMAGE_SETTINGS[part]]["default"])
    return stand_ins(PROJECT / ".images.yaml").get(reference, reference)


def stand_in_for(recipe: Recipe, engine: docker.DockerClient, record: Path) -> str:
    """An image name that no registry has. The record lets the recipe's image replace it."""
    reference = f"127.0.0.1:1/{recipe.part}:v{recipe.version}"
    with Steps() as steps:
        images.ensure(steps, engine, {recipe.part: reference}, stack="any", ask=None, record=record)
    return reference


def pause(container: Container) -> None:
    """Stop all processes of a container, which accepts connections then but does not answer."""
    deadline = time.monotonic() + RESTART_SECONDS
    while True:
        try:
            container.pause()
        except docker.errors.APIError as error:
            # What runc says if a process is created meanwhile, as for a health check.
            if "unable to freeze" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


@contextmanager
def paused(*containers: Container) -> Iterator[None]:
    """Containers that are paused meanwhile."""
    with ExitStack() as held:
        for container in containers:
            pause(container)
            held.callback(container.unpause)
        yield


@contextmanager
def pulumi_tools() -> Iterator[None]:
    """Put the project's Pulumi tools on PATH, where the Automation API looks for them."""
    with pytest.MonkeyPatch.context() as patch, Steps() as steps:
        patch.setenv("PATH", f"{tools.ensure(steps)}:{Path(sys.executable).parent}", prepend=":")
        patch.setenv("GOGC", "400")  # an `up` is over before its garbage matters: 8 % less CPU time
        yield


@contextmanager
def deployed(
    folder: Path, configure: Callable[[Deployment], None] = lambda _: None, *, host: str | None = None
) -> Iterator[Deployment]:
    """A separate stack that is up, and removed at the end; `configure` sets what differs from dev."""
    made = Deployment(folder, f"test-{secrets.token_hex(4)}", host=host)
    try:
        configure(made)
        made.up()
        yield made
    finally:
        if made.services():  # a Swarm's configs have no label by which to find them
            made.destroy()
        else:
            made.remove()
