"""A Swarm of several machines on this one: each node has namespaces and an engine of its own, and a cable to a bridge.

A node is what `unshare` starts: network, host name, mounts and processes of its own. So one signal to its first process
is a power cut, and nothing of a node outlives it but its folder. The bridge and the registry are in a network of the
test's own (`tests.engines.own_network`), from where the test, and all that it starts, reaches the nodes' addresses.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import docker
import httpx2

from tests.engines import Daemon, own_network
from toolchain import engine
from toolchain.machine import CACHE, environment, exclusive, install, update_package_lists, which
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")

BRIDGE = "swarm"
NETWORK = "192.0.2.{}"
"""Addresses that are nobody's (RFC 5737): .1 is the test and the registry, .2 and so on are the nodes."""
REGISTRY_PORT = 5000
START_SECONDS = 60
END_SECONDS = 60
POLL_SECONDS = 0.05
MACHINE = """
set -e
hostname "$1"; address=$2; log=$3; shift 3
mount -t tmpfs tmpfs /run  # containerd's sockets are there, whatever the options say
ip link set lo up
echo ready; read -r plugged_in
ip address add "$address/24" dev eth0
ip link set eth0 up
exec 3<&0
dockerd "$@" </dev/null >>"$log" 2>&1 &
dockerd=$!
{ read -r forever; kill "$dockerd"; } <&3 >/dev/null &  # the test has ended it, or is no more
wait "$dockerd"
"""
"""A node's first process. It waits for its cable, and collects the processes that lost their parents."""


def eventually(what: str, condition: Callable[[], T], *, seconds: float = START_SECONDS) -> T:
    """Return what `condition` returns as soon as that is true. Raises TimeoutError that says `what` did not happen."""
    deadline = time.monotonic() + seconds
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(POLL_SECONDS)


class Node(Daemon):
    """An engine on a machine of its own."""

    def __init__(self, number: int, *options: str) -> None:
        super().__init__(*options)
        self.name = f"node-{number}"
        """Its host name, which is its name in the Swarm."""
        self.address = NETWORK.format(number + 1)
        self._cable = f"cable-{number}"
        self._mac = f"02:00:00:00:00:{number:02x}"
        self._process: subprocess.Popen[bytes] | None = None
        # The cgroups of what is killed are left behind, so they have a place of their own.
        self._cgroup = self.folder.name
        config = self.folder / "daemon.json"
        config.write_text("{}")
        self.options += [f"--host={self.host}", f"--cgroup-parent=/{self._cgroup}", f"--config-file={config}"]

    @property
    def pid(self) -> int:
        """Its first process; the others are below it."""
        assert self._process is not None
        [first] = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(first)

    @cached_property
    def client(self) -> docker.DockerClient:
        return engine.connect(self.host)

    @property
    def id(self) -> str:
        """Its id in the Swarm."""
        return str(self.client.info()["Swarm"]["NodeID"])

    @property
    def runs(self) -> bool:
        return self._process is not None

    def start(self, *options: str) -> None:
        """Switch it on, and wait until its engine answers; what was on its disk is still there."""
        self.switch_on(*options)
        self.await_engine()

    def switch_on(self, *options: str) -> None:
        assert self._process is None
        shutil.rmtree(self.folder / "exec", ignore_errors=True)  # as what is in /run goes when a machine does
        self.pid_file.unlink(missing_ok=True)
        own = ["--net", "--uts", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child"]
        of_script = [self.name, self.address, str(self.log), *self.options, *options]
        self._process = process = subprocess.Popen(
            ["unshare", *own, "sh", "-c", MACHINE, "machine", *of_script],
            cwd="/",
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        of_peer = ["peer", "name", "eth0", "address", self._mac, "netns", str(process.pid)]
        _ip("link", "add", self._cable, "master", BRIDGE, "type", "veth", *of_peer)
        _ip("link", "set", self._cable, "up")
        process.stdin.write(b"\n")
        process.stdin.flush()

    def await_engine(self) -> None:
        def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()
            with suppress(*engine.UNREACHABLE):
                return bool(self.client.ping())
            return False

        eventually(f"the engine of {self.name} answers", answers)

    def kill(self) -> None:
        """Cut its power: its cable is dead before any of its processes can say goodbye, and all end at once."""
        _ip("link", "delete", self._cable)
        os.kill(self.pid, signal.SIGKILL)
        self._gone()

    def end(self) -> None:
        """Shut it down as an operator does: its engine stops its containers and says goodbye."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(END_SECONDS)
            _ip("link", "delete", self._cable)
            self._gone()

    def remove(self) -> None:
        """Kill it, and remove all that it had."""
        if self._process is not None:
            self.kill()
        for cgroup in [Path("/sys/fs/cgroup", self._cgroup), *Path("/sys/fs/cgroup").glob(f"*/{self._cgroup}")]:
            for folder, _, _ in os.walk(cgroup, topdown=False):
                Path(folder).rmdir()
        shutil.rmtree(self.folder)

    def _gone(self) -> None:
        if "client" in self.__dict__:
            self.client.close()
            del self.client
        assert self._process is not None
        # The first process of a namespace ends when all others in it have.
        with self._process as process:
            process.wait(END_SECONDS)
        self._process = None


class Cluster:
    """Nodes of one Swarm, and a registry that they get their images from."""

    def __init__(self, size: int) -> None:
        self.registry = f"{NETWORK.format(1)}:{REGISTRY_PORT}"
        self.nodes = [Node(number, f"--insecure-registry={self.registry}") for number in range(1, size + 1)]

    @property
    def manager(self) -> docker.DockerClient:
        """A client of a manager that answers and knows a leader."""

        def manages(node: Node) -> bool:
            with suppress(*engine.UNREACHABLE):
                return node.runs and bool(node.client.nodes.list(filters={"role": "manager"}))
            return False

        return eventually("a manager answers", lambda: next(filter(manages, self.nodes), None)).client

    def start(self) -> None:
        for node in self.nodes:
            node.switch_on()
        for node in self.nodes:
            node.await_engine()

    def join(self, *, managers: int = 1, **settings: Any) -> None:
        """Make one Swarm of the nodes, the first of them its managers; `settings` are those of docker-py's `init`."""
        first, *others = self.nodes
        first.client.swarm.init(first.address, first.address, **settings)
        tokens = first.client.swarm.attrs["JoinTokens"]
        for number, node in enumerate(others, 2):
            token = tokens["Manager" if number <= managers else "Worker"]
            node.client.swarm.join([first.address], token, node.address, node.address)

    def leader(self) -> Node:
        """The manager that the others follow."""
        states = self.manager.nodes.list(filters={"role": "manager"})
        [name] = [
            state.attrs["Description"]["Hostname"] for state in states if state.attrs["ManagerStatus"].get("Leader")
        ]
        return self.node(name)

    def node(self, name: str) -> Node:
        [node] = [node for node in self.nodes if node.name == name]
        return node

    def drain(self, node: Node) -> None:
        """Have the Swarm move a node's tasks elsewhere."""
        self._update(node, Availability="drain")

    def activate(self, node: Node) -> None:
        self._update(node, Availability="active")

    def label(self, node: Node, key: str, value: str) -> None:
        self._update(node, labels={key: value})

    def _update(self, node: Node, *, labels: Mapping[str, str] | None = None, **changes: str) -> None:
        [found] = self.manager.nodes.list(filters={"name": node.name})
        spec = found.attrs["Spec"]
        found.update({**spec, **changes, "Labels": {**spec.get("Labels", {}), **(labels or {})}})

    def fill(self, name: str, image: str) -> str:
        """Put an image of the machine's usual engine into the registry; return the reference, by its digest."""
        reference = f"{self.registry}/{name}"
        with tempfile.NamedTemporaryFile("r") as digest:
            subprocess.run(
                [
                    *("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"),
                    *("--digestfile", digest.name, f"docker-daemon:{image}", f"docker://{reference}"),
                ],
                check=True,
                env=environment(),
            )
            return f"{reference}@{digest.read()}"

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()


@contextmanager
def running_cluster(size: int = 3, *, managers: int = 1, **settings: Any) -> Iterator[Cluster]:
    """A Swarm of `size` nodes and its registry, reached from this thread; all of it is taken away at the end."""
    program = registry_program()
    with own_network(), ExitStack() as cleanup:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("address", "add", f"{NETWORK.format(1)}/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        cleanup.callback(_ip, "link", "delete", BRIDGE)
        made = Cluster(size)
        cleanup.callback(made.remove)
        cleanup.enter_context(running_registry(program, made.registry))
        made.start()
        made.join(managers=managers, **settings)
        yield made


def registry_program() -> str:
    """Have Debian's registry, and the program that fills it; return the former.

    The package is unpacked, not installed: that would start a registry which is not the tests' own.
    """
    steps = Steps()
    if which("skopeo") is None:
        install(steps, "skopeo")
    if installed := which("docker-registry"):
        return installed
    folder = CACHE / "docker-registry"
    program = folder / "usr/bin/docker-registry"
    with steps.step("Fetch docker-registry") as step, exclusive("docker-registry", step):
        if not program.exists():
            update_package_lists(step)
            with tempfile.TemporaryDirectory() as download:
                step.run(["apt-get", "--quiet", "download", "docker-registry"], cwd=Path(download))
                [package] = Path(download).iterdir()
                step.run(["dpkg-deb", "--extract", str(package), str(folder)])
    return str(program)


@contextmanager
def running_registry(program: str, address: str) -> Iterator[None]:
    """A registry at `address`, which holds what it gets as long as it runs."""
    with tempfile.TemporaryDirectory(prefix="registry-") as folder:
        config = Path(folder) / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '{address}'}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        )
        with (Path(folder) / "log").open("wb") as log:
            # Nobody else would end it if this program were killed.
            command = ["setpriv", "--pdeathsig", "KILL", program, "serve", str(config)]
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        with process:
            try:
                eventually("the registry answers", lambda: _answers(f"http://{address}/v2/"))
                yield
            finally:
                process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).is_success
    except httpx2.TransportError:
        return False


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
