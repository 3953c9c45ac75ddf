"""A stack on another machine's engine, reached over TLS or ssh.

The machine is a node of tests.swarm.cluster, with an address of its own and ports that nothing else has.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest

from engine.certificates import CERTIFICATE_FILES
from engine.connection import DEFAULT_HOST
from tests.certificates import certify
from tests.engines import needs_an_engine_of_its_own
from tests.packages import unpacked
from tests.stacks import Deployment, image_of
from tests.swarm.cluster import DIES_WITH_THIS_THREAD, NETWORK, Node, cluster, until
from toolchain.__main__ import IMAGE_SETTINGS
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.certificates import Certified

pytestmark = needs_an_engine_of_its_own

ADDRESS = NETWORK.format(2)
BY_TLS = f"tcp://{ADDRESS}:2376"
BY_SSH = f"ssh://root@{ADDRESS}"
SSHD = "usr/sbin/sshd"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
START_SSHD = """
mkdir /run/sshd
mount --bind "$1" /etc/passwd
LD_LIBRARY_PATH=$2 exec "$0" -D -e -f "$3"
"""
"""Its own machine can have the folder and the user that it needs; this machine need not."""
DEFAULT_ENGINE = "--host=unix:///run/docker.sock"
"""Where `docker system dial-stdio`, behind ssh, looks for it."""


def write(folder: Path, authority: Certified, own: Certified) -> Path:
    """Write ca.pem, cert.pem and key.pem, as Docker has them, into a folder."""
    folder.mkdir()
    contents = (authority.certificate_pem, own.certificate_pem, own.key_pem)
    for file, content in zip(CERTIFICATE_FILES, contents, strict=True):
        (folder / file).write_text(content)
    return folder


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine with an engine, and what opens it from here: folders of certificates, ssh's config and keys."""

    node: Node
    folder: Path

    def configure_ssh(self, *, key: str = "key", known: str = "known_hosts") -> str:
        """A folder with an ssh that reads this config, as a user's does ~/.ssh/config, which is this user's."""
        config = self.folder / "config"
        config.write_text(
            f"Host {ADDRESS}\n"
            f"  IdentityFile {self.folder}/{key}\n"
            "  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder}/{known}\n"
        )
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        (programs / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {config} "$@"\n')
        (programs / "ssh").chmod(0o755)
        return str(programs)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    authority, stranger = certify("the engine's"), certify("a stranger")
    client = certify("a client", authority)
    write(folder / "certificates", authority, client)
    write(folder / "of a stranger", stranger, client)
    write(folder / "by a stranger", authority, certify("a client", stranger))
    server = write(folder / "server", authority, certify("the engine", authority, address=ADDRESS))
    ca, certificate, key = (server / file for file in CERTIFICATE_FILES)
    by_tls = (f"--host={BY_TLS}", "--tlsverify", f"--tlscacert={ca}", f"--tlscert={certificate}", f"--tlskey={key}")
    with Steps() as steps:
        sshd = unpacked(steps, SSHD, "openssh-server", "libwrap0")
    with cluster(1, DEFAULT_ENGINE, *by_tls) as made, closing(docker.from_env()) as usual:
        node = made.nodes[0]
        for image in map(image_of, IMAGE_SETTINGS):
            node.client.images.load(usual.images.get(image).save(named=image))  # type: ignore[arg-type]  # a stream
        start_sshd(sshd, node, folder)
        yield Machine(node=node, folder=folder)


def start_sshd(program: Path, node: Node, folder: Path) -> None:
    """Make a node accept `key` over ssh, and add it to `known_hosts`. This ends with the node."""
    for key in ("host", "key", "another_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    (folder / "known_hosts").write_text(f"{ADDRESS} {(folder / 'host.pub').read_text()}")
    (folder / "strangers").write_text(f"{ADDRESS} {(folder / 'another_key.pub').read_text()}")
    users, config, log = folder / "passwd", folder / "sshd_config", folder / "sshd.log"
    users.write_text(Path("/etc/passwd").read_text() + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
    config.write_text(
        f"ListenAddress {ADDRESS}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/key.pub\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\nPidFile none\n"
    )
    arguments = [str(program / SSHD), str(users), str(program / LIBRARIES), str(config)]
    enter = ["nsenter", "--all", f"--target={node._first_process()}", "--"]
    command = [*DIES_WITH_THIS_THREAD, *enter, "bash", "-ec", START_SSHD, *arguments]
    with log.open("wb") as output:
        subprocess.Popen(command, stdout=output, stderr=output).returncode = 0  # it ends with the node
    until(lambda: "Server listening" in log.read_text(), "sshd listens")


def deployment(folder: Path, machine: Machine, host: str) -> Deployment:
    """A stack on the machine, reached by `host`."""
    made = Deployment(folder, f"test-{os.urandom(4).hex()}", host=machine.node.host)
    made.set(dockerHost=host, bindAddress=ADDRESS, allowPlainHttp="true", replicas=1)
    return made


@pytest.mark.parametrize("host", [BY_TLS, BY_SSH])
def test_a_stack_on_another_machine(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """It comes up, answers, is as declared, and is removed. Certificates for one engine do not affect others."""
    monkeypatch.setenv("DOCKER_CERT_PATH", str(machine.folder / "certificates"))
    monkeypatch.setenv("PATH", machine.configure_ssh(), prepend=os.pathsep)
    made = deployment(tmp_path, machine, host)
    try:
        made.up()
        answer = made.client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hello"}])
        assert answer.choices[0].message.content
        assert made.outputs["litellmUrl"].startswith(f"http://{ADDRESS}:")
        made.up(expect_no_changes=True)
        made.refresh(expect_no_changes=True)
        made.set(dockerHost=DEFAULT_HOST)
        preview = made.pulumi("preview")
        made.set(dockerHost=host)
        assert preview.returncode != 0
        assert f"this stack is on {host}, and nothing of it is on {DEFAULT_HOST}" in preview.stdout
        made.stack.destroy(show_secrets=False, on_output=print)
        assert made.leftovers() == []
    finally:
        made.remove()


@pytest.fixture(scope="module")
def unmade(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack that is never up."""
    made = deployment(tmp_path_factory.mktemp("unmade"), machine, BY_TLS)
    try:
        yield made
    finally:
        made.remove()


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A client that is refused, and why."""

    host: str
    certificates: str = "none"
    key: str = "key"
    known: str = "known_hosts"
    why: str


@pytest.mark.parametrize(
    "stranger",
    [
        Stranger(host=BY_TLS, why="has no ca.pem, cert.pem, key.pem (DOCKER_CERT_PATH names another folder)"),
        Stranger(host=BY_TLS, certificates="of a stranger", why="unable to get local issuer certificate"),
        Stranger(host=BY_TLS, certificates="by a stranger", why="it may not accept the client's certificate"),
        Stranger(host=BY_SSH, key="another_key", why=f"root@{ADDRESS}: Permission denied (publickey)"),
        Stranger(host=BY_SSH, known="strangers", why="Host key verification failed"),
    ],
    ids=lambda stranger: stranger.why,
)
def test_a_refused_client_learns_why(
    machine: Machine, unmade: Deployment, monkeypatch: pytest.MonkeyPatch, stranger: Stranger
) -> None:
    """An `up` fails, even without a preview, and nothing is made on the engine."""
    monkeypatch.setenv("DOCKER_CERT_PATH", str(machine.folder / stranger.certificates))
    monkeypatch.setenv("PATH", machine.configure_ssh(key=stranger.key, known=stranger.known), prepend=os.pathsep)
    unmade.set(dockerHost=stranger.host)
    refused = unmade.pulumi("up", "--yes", "--skip-preview")
    assert refused.returncode != 0
    assert stranger.why in refused.stdout
    assert unmade.leftovers() == []
