"""A real Swarm on one machine: an engine in each of several sets of namespaces, with a network of the test's own.

A node is what Swarm takes for a machine: it has its own host name, network, processes and mounts. Its first process
dies with the test that started it, and with that process, at once, all that runs on the node.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import docker
import requests
import yaml

from tests.engines import Daemon, own_network
from tests.stacks import descendants
from toolchain import engine
from toolchain.machine import CACHE, environment, exclusive, update_package_lists, which
from toolchain.progress import CommandError, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

NETWORK = "198.18.0"
"""Set aside for tests of networks by RFC 2544: no engine and no Swarm takes of it for networks of its own."""
BRIDGE = "bridge"
REGISTRY_PORT = 5000
WITHIN_SECONDS = 60
POLL_SECONDS = 0.1
CGROUPS = Path("/sys/fs/cgroup")
DIES_WITH_THIS_PROGRAM = ("setpriv", "--pdeathsig", "KILL")
NEW_MACHINE = ("unshare", "--net", "--uts", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child")
BOOT = """
set -o errexit
hostname "$0"
ip link set lo up
ip link add eth0 type veth peer name "$0" netns /dev/stdin
nsenter --net=/dev/stdin ip link set "$0" master "$1" up
ip address add "$2" dev eth0
ip link set eth0 up
"${@:3}" &
wait $!
"""
"""What the first process of a node does; its standard input is the network outside."""
UNREACHABLE = (*engine.UNREACHABLE, requests.RequestException)


def until(condition: Callable[[], T], what: str, *, within: float = WITHIN_SECONDS) -> T:
    """Wait until a condition gives something true, and return that; an engine that does not answer gives nothing."""
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


class Node(Daemon):
    """A machine with an engine."""

    def __init__(self, name: str, address: str, *options: str) -> None:
        super().__init__(*options)
        self.name = name
        self.address = address
        """Where the test and the other nodes reach it, and the ports that are published on it."""
        self._machine: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._machine is not None and self._machine.poll() is None

    @cached_property
    def client(self) -> docker.DockerClient:
        return engine.connect(self.host)

    @cached_property
    def id(self) -> str:
        """What Swarm calls it."""
        return str(self.client.info()["Swarm"]["NodeID"])

    @property
    def pid(self) -> int:
        """Its engine's process."""
        return self._children()[0]

    def boot(self) -> None:
        """Switch it on; `start` waits for its engine too."""
        assert not self.runs
        self.pid_file.unlink(missing_ok=True)  # what a real machine has in /run, which no reboot survives
        shutil.rmtree(self.folder / "exec", ignore_errors=True)
        command = ["dockerd", f"--host={self.host}", *self.options]
        with self.log.open("ab") as log, Path("/proc/thread-self/ns/net").open() as outside:
            self._machine = subprocess.Popen(
                [
                    *DIES_WITH_THIS_PROGRAM,
                    *NEW_MACHINE,
                    "bash",
                    "-c",
                    BOOT,
                    self.name,
                    BRIDGE,
                    f"{self.address}/24",
                    *command,
                ],
                cwd="/",
                env=environment(),
                stdin=outside,
                stdout=log,
                stderr=log,
            )

    def start(self, *options: str) -> None:
        self.options += options
        self.boot()
        self.await_engine()

    def await_engine(self) -> None:
        def answers() -> bool:
            assert self.runs, self.log.read_text()
            engine.connect(self.host).close()
            return True

        until(answers, f"the engine of {self.name} answers")

    def run(self, *command: str) -> str:
        """Run a program on it, as root at its console would; return what it printed."""
        enter = ["nsenter", "--all", f"--target={self._first_process()}", "--"]
        return subprocess.run([*enter, *command], check=True, stdout=subprocess.PIPE, text=True).stdout

    def kill(self) -> None:
        """Take its power and its network away at once: no process on it gets to say another word."""
        subprocess.run(["ip", "link", "delete", self.name], check=True)
        os.kill(self._first_process(), signal.SIGKILL)
        self._wait()

    def end(self) -> None:
        """Have its engine end as by `systemctl stop`, and with it the machine."""
        os.kill(self.pid, signal.SIGTERM)
        self._wait()

    def remove(self) -> None:
        """Switch it off and remove its disk."""
        if self.runs:
            self.kill()
        if "client" in self.__dict__:
            self.client.close()
        shutil.rmtree(self.folder)

    def _first_process(self) -> int:
        assert self._machine is not None
        return int(Path(f"/proc/{self._machine.pid}/task/{self._machine.pid}/children").read_text())

    def _children(self) -> list[int]:
        return descendants(self._first_process())

    def _wait(self) -> None:
        assert self._machine is not None
        self._machine.wait(WITHIN_SECONDS)  # the kernel lets a first process go when all others are gone


class Cluster:
    """Machines on one network, made by `cluster`; a Swarm when they have joined it."""

    def __init__(self, nodes: Sequence[Node], registry: str) -> None:
        self.nodes = nodes
        self.registry = registry
        """The address and port of a registry of their own, which the nodes get images from, and nowhere else."""

    def join(self, *, managers: int = 1, heartbeat_seconds: float = 5) -> None:
        """Make the nodes one Swarm, the first of them as managers; `heartbeat_seconds` has Docker's default."""
        first, *others = self.nodes
        first.client.swarm.init(
            advertise_addr=first.address, dispatcher_heartbeat_period=round(heartbeat_seconds * 1e9)
        )
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
                with suppress(docker.errors.APIError):
                    for each in asked.client.nodes.list(filters={"role": "manager"}):
                        if each.attrs.get("ManagerStatus", {}).get("Leader"):
                            return next(node for node in self.nodes if node.id == each.id and node.runs)
            return None

        return until(elected, "the managers have a leader")

    def state(self, node: Node) -> str:
        """What its leader takes a node for, as "ready" or "down"."""
        return str(self._attributes(node)["Status"]["State"])

    def await_state(self, node: Node, state: str) -> None:
        until(lambda: self.state(node) == state, f"{node.name} is {state}")

    def drain(self, node: Node) -> None:
        self._update(node, lambda spec: spec.update(Availability="drain"))

    def activate(self, node: Node) -> None:
        self._update(node, lambda spec: spec.update(Availability="active"))

    def label(self, node: Node, key: str, value: str) -> None:
        self._update(node, lambda spec: spec["Labels"].update({key: value}))

    def fill(self, reference: str, image: str) -> str:
        """Push an image of the machine's usual engine to the registry as NAME:TAG.

        Returns what a node pulls it by: REGISTRY/NAME:TAG@DIGEST.
        """
        pushed = f"{self.registry}/{reference}"
        client = self.nodes[0].client
        with closing(docker.from_env()) as usual:
            (loaded,) = client.images.load(usual.images.get(image).save())  # type: ignore[arg-type]  # a stream
        loaded.tag(pushed)
        try:
            events = list(client.images.push(pushed, stream=True, decode=True))
        finally:
            client.images.remove(pushed, force=True)
        digests = [event["aux"]["Digest"] for event in events if "aux" in event]
        assert digests, events
        return f"{pushed}@{digests[0]}"

    def _attributes(self, node: Node) -> dict[str, Any]:
        attributes: dict[str, Any] = self.leader().client.nodes.get(node.id).attrs
        return attributes

    def _update(self, node: Node, change: Callable[[dict[str, Any]], None]) -> None:
        def updated() -> bool:
            attributes = self._attributes(node)
            change(attributes["Spec"])
            # Refused, and tried again, when Swarm itself has changed the node in between.
            self.leader().client.api.update_node(node.id, attributes["Version"]["Index"], attributes["Spec"])
            return True

        until(updated, f"{node.name} is updated")


@contextmanager
def cluster(nodes: int = 3, *options: str) -> Iterator[Cluster]:
    """Machines that are up, with engines that are no Swarm yet; `options` are their dockerds' own.

    The thread that has it is in their network meanwhile, and all that it starts.
    """
    group = f"cluster-{secrets.token_hex(4)}"
    gateway = f"{NETWORK}.1"
    registry = f"{gateway}:{REGISTRY_PORT}"
    of_nodes = (
        f"--insecure-registry={registry}",
        f"--cgroup-parent=/{group}",
        "--exec-opt=native.cgroupdriver=cgroupfs",
        *options,
    )
    with Steps() as steps, ExitStack() as stack:
        program = _registry_program(steps)
        stack.enter_context(own_network())
        subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
        subprocess.run(["ip", "address", "add", f"{gateway}/24", "dev", BRIDGE], check=True)
        subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
        stack.callback(_remove_cgroups, group)
        with steps.step("Start a registry"):
            stack.enter_context(_registry(program, registry))
        with steps.step(f"Start {nodes} engines"):
            made = []
            for number in range(1, nodes + 1):
                node = Node(f"node-{number}", f"{NETWORK}.{number + 1}", *of_nodes)
                stack.callback(node.remove)
                node.boot()
                made.append(node)
            for node in made:
                node.await_engine()
        yield Cluster(made, registry)


def _registry_program(steps: Steps) -> str:
    """The program of Debian's package, which is not installed: that would start a service."""
    if installed := which("docker-registry"):
        return installed
    folder = CACHE / "docker-registry"
    program = folder / "usr/bin/docker-registry"
    with steps.step("Get docker-registry") as step, exclusive("docker-registry", step):
        if not program.exists():
            with TemporaryDirectory() as download:
                fetch = ["apt-get", "--quiet", "download", "docker-registry"]
                try:
                    step.run(fetch, cwd=Path(download))
                except CommandError:  # as on a machine whose lists were never fetched, or are old
                    update_package_lists(step)
                    step.run(fetch, cwd=Path(download))
                (package,) = Path(download).glob("*.deb")
                step.run(["dpkg-deb", "--extract", str(package), str(folder)])
    return str(program)


@contextmanager
def _registry(program: str, address: str) -> Iterator[None]:
    with TemporaryDirectory() as folder:
        settings = Path(folder, "config.yml")
        storage = {"filesystem": {"rootdirectory": f"{folder}/images"}, "delete": {"enabled": True}}
        settings.write_text(yaml.safe_dump({"version": 0.1, "storage": storage, "http": {"addr": address}}))
        log = Path(folder, "log")
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [*DIES_WITH_THIS_PROGRAM, program, "serve", settings], stdout=output, stderr=output
            ) as process,
        ):
            try:

                def answers() -> bool:
                    assert process.poll() is None, log.read_text()
                    return requests.get(f"http://{address}/v2/", timeout=WITHIN_SECONDS).ok

                until(answers, "the registry answers")
                yield
            finally:
                process.kill()


def _remove_cgroups(name: str) -> None:
    """Remove what engines that lost their power left of their containers' groups."""
    tops = [*CGROUPS.glob(name), *CGROUPS.glob(f"*/{name}")]

    def removed() -> bool:
        for top in tops:
            for folder, _, _ in os.walk(top, topdown=False):
                with suppress(OSError):  # busy for as long as the kernel has to do with its last process
                    Path(folder).rmdir()
        return not any(top.exists() for top in tops)

    until(removed, f"the groups {name} are gone")
