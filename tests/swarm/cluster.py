"""A real Swarm on one machine: nodes with an engine each, on a network of the test's own, and a registry.

A node is what Swarm takes for a machine: a host name, a network, processes and mounts of its own, by namespaces. All
that runs on it ends at once with its first process, and that one when the test does, by whatever signal.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import warnings
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any, TypeVar

import docker
import httpx2
import yaml

from engine.connection import UNREACHABLE, connect
from engine.image_names import in_registry
from engine.system_path import environment, which
from tests.engines import own_network
from toolchain.operating_system import CACHE, exclusive, update_package_lists
from toolchain.progress import CommandError, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from docker.models.containers import Container

T = TypeVar("T")

NETWORK = "198.18.0.{}"
"""Set aside for tests of networks by RFC 2544: no engine and no Swarm takes of it for networks of its own."""
MAC = "02:00:00:00:00:{:02x}"
"""A card has its address for life: its neighbours remember it over a restart.

So has the bridge, which otherwise takes the lowest of the cards plugged into it: when that machine is lost, the
others look for the registry under an address that is gone, for up to a minute.
"""
BRIDGE = "bridge"
REGISTRY_PORT = 5000
WITHIN_SECONDS = 180
CRASH = re.compile(r"^(panic:|fatal error:|SIG)(.*\n){1,60}", re.MULTILINE)  # how a Go program tells why it ends
POLL_SECONDS = 0.1
LEADER_SECONDS = 2
"""A manager that asks a leader without power waits 20 s for it, when there may long be another."""
CGROUPS = Path("/sys/fs/cgroup")
DIES_WITH_THIS_THREAD = ("setpriv", "--pdeathsig", "KILL")
MACHINE = ("unshare", "--net", "--uts", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "bash", "-c")
BOOT = """
set -o errexit
hostname "$0"
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add eth0 address "$1" type veth peer name "$0" netns /dev/stdin
nsenter --net=/dev/stdin ip link set "$0" master "$2" up
ip address add "$3/24" dev eth0
ip link set eth0 up
echo plugged in
exec >&2
trap 'off=yes; kill $!' TERM
until [[ ${off-} ]]; do
    "${@:4}" &
    wait $! && status=0 || status=$?
    if [[ ${off-} ]]; then wait $! || true; fi
    [[ $status = 2 ]] || break  # a Go program that has crashed: systemd starts an engine again
done
ip link delete eth0
"""
"""What the first process of a node does. It has the network outside as stdin, and collects orphans, as bash does."""


def until(condition: Callable[[], T | None], what: str, *, within: float = WITHIN_SECONDS) -> T:
    """Return what a condition gives once that is true; an engine that does not answer is waited for too."""
    deadline = time.monotonic() + within
    while True:
        error = None
        try:
            if result := condition():
                return result
        except UNREACHABLE as failure:
            error = failure
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within} s") from error
        time.sleep(POLL_SECONDS)


class Node:
    """A machine with an engine."""

    def __init__(self, number: int, *options: str) -> None:
        """`options` are dockerd's own."""
        # Not below a test's own folder: the paths of sockets must be short.
        self.folder = folder = Path(mkdtemp(prefix="node-"))
        """Its disk."""
        self.name = f"node-{number}"
        """Its host name, and so its name in the Swarm."""
        self.address = NETWORK.format(number + 1)
        """Where the test and the other nodes reach it."""
        self.host = f"unix://{folder}/docker.sock"
        self.log = folder / "log"
        self._card = MAC.format(number)
        settings = folder / "daemon.json"  # this machine's own are no business of a node
        settings.write_text("{}")
        self._dockerd = [
            f"--host={self.host}",
            f"--data-root={folder}/data",
            f"--config-file={settings}",
            f"--cgroup-parent=/{folder.name}",
            "--exec-opt=native.cgroupdriver=cgroupfs",  # systemd knows nothing of processes on a node
            *options,
        ]
        self.lost_at = 0.0
        """When its network was taken away, by the clock of time.monotonic."""
        self._machine: subprocess.Popen[str] | None = None
        """What was switched on, and not off since."""

    @property
    def runs(self) -> bool:
        return self._machine is not None and self._machine.poll() is None

    @cached_property
    def client(self) -> docker.DockerClient:
        """A client of its engine, good until the node stops."""
        return connect(self.host)

    @cached_property
    def id(self) -> str:
        """What the Swarm calls it, which it must have joined."""
        return str(self.client.info()["Swarm"]["NodeID"])

    def start(self) -> None:
        """Switch it on, with what is on its disk, and wait until its engine answers."""
        self.boot()
        self.await_engine()

    def boot(self) -> None:
        """Switch it on."""
        assert not self.runs
        with self.log.open("ab") as log, Path("/proc/thread-self/ns/net").open() as outside:
            self._machine = subprocess.Popen(
                [
                    *(*DIES_WITH_THIS_THREAD, *MACHINE, BOOT, self.name, self._card, BRIDGE, self.address),
                    *("dockerd", *self._dockerd),
                ],
                cwd="/",
                env={"PATH": environment()["PATH"]},  # no proxy: a closed network
                stdin=outside,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._machine.stdout
        with self._machine.stdout as output:
            if not output.readline():
                self._await_end()
                raise AssertionError(self.log.read_text())

    def await_engine(self) -> None:
        def answers() -> bool:
            assert self.runs, self.log.read_text()
            connect(self.host).close()
            return True

        until(answers, f"the engine of {self.name} answers")

    def run(self, *command: str) -> str:
        """Run a program on it, as root at its console would; return what it printed."""
        enter = ["nsenter", "--all", f"--target={self._first_process()}", "--"]
        return subprocess.run([*enter, *command], check=True, stdout=subprocess.PIPE, text=True).stdout

    def container(self, service: str) -> Container:
        """The container of a service's only running task on it."""
        [container] = self.containers(service)
        return container

    def containers(self, service: str) -> list[Container]:
        """Those of a service's running tasks on it."""
        return self.client.containers.list(filters={"label": f"com.docker.swarm.service.name={service}"})

    def kill(self) -> None:
        """Take its network and its power away: no process on it gets to say another word."""
        subprocess.run(["ip", "link", "delete", self.name], check=True)
        self.lost_at = time.monotonic()
        os.kill(self._first_process(), signal.SIGKILL)
        self._await_end()

    def end(self) -> None:
        """Shut it down: its engine stops its containers and says goodbye."""
        os.kill(self._first_process(), signal.SIGTERM)
        self._await_end()

    def remove(self) -> None:
        """Switch it off and remove its disk. Warns, with its words, if its engine has crashed or ended meanwhile."""
        if self.runs:
            self.kill()
        if (crash := CRASH.search(log := self.log.read_text())) or self._machine:
            warnings.warn(f"{self.name}'s engine has crashed: {crash[0] if crash else log}", stacklevel=2)
        remove_traces(self.folder)

    def _first_process(self) -> int:
        assert self._machine
        return int(Path(f"/proc/{self._machine.pid}/task/{self._machine.pid}/children").read_text())

    def _await_end(self) -> None:
        assert self._machine
        self._machine.wait(WITHIN_SECONDS)  # a first process ends when all others of its machine have
        self._machine = None
        if "client" in self.__dict__:
            self.client.close()
            del self.client


class Cluster:
    """Nodes on one network; a Swarm when they have joined it."""

    def __init__(self, nodes: Sequence[Node], registry: str) -> None:
        self.nodes = nodes
        self.registry = registry
        """The address and port of the one place where nodes get images from."""

    def join(self, *, managers: int = 1, heartbeat_seconds: float = 5) -> None:
        """Make the nodes one Swarm, the first of them its managers; `heartbeat_seconds` is Docker's default."""
        first, *others = self.nodes
        period = round(heartbeat_seconds * 1e9)
        first.client.swarm.init(advertise_addr=first.address, dispatcher_heartbeat_period=period)
        tokens = first.client.swarm.attrs["JoinTokens"]
        for number, node in enumerate(others, start=2):
            role = "Manager" if number <= managers else "Worker"
            node.client.swarm.join([first.address], tokens[role], advertise_addr=node.address)
        for node in self.nodes:
            self.await_state(node, "ready")

    def leader(self) -> Node:
        """The manager that decides; while managers elect one, this waits."""

        def elected() -> Node | None:
            for asked in filter(lambda node: node.runs, self.nodes):
                with (
                    suppress(*UNREACHABLE),  # as a worker, or a manager that has no leader
                    closing(docker.DockerClient(asked.host, timeout=LEADER_SECONDS)) as client,
                ):
                    for each in client.nodes.list(filters={"role": "manager"}):
                        if each.attrs.get("ManagerStatus", {}).get("Leader"):  # a new manager has no status yet
                            return next((node for node in self.nodes if node.runs and node.id == each.id), None)
            return None

        return until(elected, "the managers have a leader")

    def running(self, service: str) -> list[Node]:
        """Where tasks of a service run that are to run: a node for each task, in the order of their names."""
        tasks = self.leader().client.api.tasks({"service": service, "desired-state": "running"})  # type: ignore[no-untyped-call]
        places = [task["NodeID"] for task in tasks if task["Status"]["State"] == "running"]
        return [node for node in self.nodes for _ in range(places.count(node.id))]

    def await_running(self, service: str, *nodes: Node) -> None:
        """Wait until a service's tasks run on these nodes and on no other."""
        until(lambda: self.running(service) == list(nodes), f"{service} runs on {[node.name for node in nodes]}")

    def state(self, node: Node) -> str:
        """What the leader takes a node for, as "ready" or "down"."""
        return str(self._attributes(node)["Status"]["State"])

    def await_state(self, node: Node, state: str) -> None:
        until(lambda: self.state(node) == state, f"{node.name} is {state}")

    def drain(self, node: Node) -> None:
        self._update(node, lambda spec: spec.update(Availability="drain"))

    def activate(self, node: Node) -> None:
        self._update(node, lambda spec: spec.update(Availability="active"))

    def label(self, node: Node, key: str, value: str) -> None:
        self._update(node, lambda spec: spec.update(Labels=spec["Labels"] | {key: value}))

    def fill(self, image: str) -> None:
        """Push an image of the machine's usual engine to the registry. No node has it before."""
        pushed = in_registry(image, self.registry)
        client = next(node for node in self.nodes if node.runs).client
        with closing(docker.from_env()) as usual:
            [loaded] = client.images.load(usual.images.get(image).save())  # type: ignore[arg-type]  # a stream
        loaded.tag(pushed)
        events = list(client.images.push(pushed, stream=True, decode=True))
        assert any("aux" in event for event in events), events
        client.images.remove(pushed, force=True)

    def _attributes(self, node: Node) -> dict[str, Any]:
        return dict(self.leader().client.nodes.get(node.id).attrs)

    def _update(self, node: Node, change: Callable[[dict[str, Any]], None]) -> None:
        def updated() -> bool:
            attributes = self._attributes(node)
            change(attributes["Spec"])
            # Refused, and tried again, when the Swarm itself has changed the node in between.
            self.leader().client.api.update_node(node.id, attributes["Version"]["Index"], attributes["Spec"])
            return True

        until(updated, f"{node.name} is updated")


def cgroups(folder: Path) -> list[Path]:
    """The groups of the processes of the containers of a node, by its folder, in each hierarchy that there is."""
    return [*CGROUPS.glob(folder.name), *CGROUPS.glob(f"*/{folder.name}")]


def remove_traces(folder: Path) -> None:
    """Remove what a node that has no power leaves: its disk, and groups without processes."""

    def removed() -> bool:
        for group in cgroups(folder):
            for each, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):  # busy for as long as the kernel has to do with its last process
                    Path(each).rmdir()
        return not cgroups(folder)

    until(removed, f"the control groups of {folder} are gone")
    shutil.rmtree(folder)


@contextmanager
def cluster(nodes: int = 3, *options: str) -> Iterator[Cluster]:
    """Nodes that are up, and no Swarm yet; `options` are their dockerds' own. Nothing is left of them at the end.

    The thread that has it is in their network meanwhile, with all that it starts.
    """
    gateway = NETWORK.format(1)
    registry = f"{gateway}:{REGISTRY_PORT}"
    with Steps() as steps, ExitStack() as stack:
        program = _registry_program(steps)
        stack.enter_context(own_network())
        for arguments in (
            f"link add {BRIDGE} address {MAC.format(0xFF)} type bridge",
            f"address add {gateway}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ):
            subprocess.run(["ip", *arguments.split()], check=True)
        with steps.step("Start a registry"):
            stack.enter_context(_registry(program, registry))
        made = []
        with steps.step(f"Start {nodes} nodes"):
            for number in range(1, nodes + 1):
                made.append(node := Node(number, f"--insecure-registry={registry}", *options))
                stack.callback(node.remove)
                node.boot()
            for node in made:
                node.await_engine()
        yield Cluster(made, registry)


def _registry_program(steps: Steps) -> str:
    """The program of Debian's package, which is not installed: that would start a service."""
    if installed := which("docker-registry"):
        return installed
    folder = CACHE / "docker-registry"
    program = folder / "usr/bin/docker-registry"
    with (
        steps.step("Get docker-registry") as step,
        exclusive("docker-registry", step),
        TemporaryDirectory() as download,
    ):
        if not program.exists():
            fetch = ["apt-get", "--quiet", "download", "docker-registry"]
            try:
                step.run(fetch, cwd=Path(download))
            except CommandError:  # as on a machine whose lists were never fetched, or are old
                update_package_lists(step)
                step.run(fetch, cwd=Path(download))
            [package] = Path(download).iterdir()
            step.run(["dpkg-deb", "--extract", str(package), str(folder)])
    return str(program)


@contextmanager
def _registry(program: str, address: str) -> Iterator[None]:
    with TemporaryDirectory() as folder:
        log, settings = Path(folder, "log"), Path(folder, "config.yml")
        storage = {"filesystem": {"rootdirectory": f"{folder}/images"}}
        settings.write_text(yaml.safe_dump({"version": 0.1, "storage": storage, "http": {"addr": address}}))
        command = [*DIES_WITH_THIS_THREAD, program, "serve", str(settings)]
        with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:

            def answers() -> bool:
                assert process.poll() is None, log.read_text()
                with suppress(httpx2.ConnectError):
                    return httpx2.get(f"http://{address}/v2/", trust_env=False).is_success
                return False

            try:
                until(answers, "the registry answers")
                yield
            finally:
                process.kill()
