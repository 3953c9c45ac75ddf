"""A client of the engine at an address: a Unix socket, TLS or ssh."""

from __future__ import annotations

import os
import socket

import docker
from docker.tls import TLSConfig

from engine import ssh
from engine.certificates import CERTIFICATE_FILES, certificates, missing_certificates

DEFAULT_HOST = "unix:///var/run/docker.sock"
UNREACHABLE = (OSError, docker.errors.DockerException)


def connect(host: str) -> docker.DockerClient:
    """Return a client of an engine that has answered. Raises one of UNREACHABLE."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:  # says more than docker-py, which leaves its own connection open
            probe.connect(socket_path(host))
    if host.startswith("ssh://"):
        return ssh.Client(host)
    if why := missing_certificates(host):
        raise docker.errors.DockerException(why)
    tls: TLSConfig | bool = False
    if folder := certificates(host):
        ca, certificate, key = (f"{folder}/{file}" for file in CERTIFICATE_FILES)
        tls = _TLS(client_cert=(certificate, key), ca_cert=ca, verify=True)
    return docker.DockerClient(base_url=host, tls=tls)


def is_present(engine: docker.DockerClient, name: str) -> bool:
    """Whether an engine has an image."""
    try:
        engine.images.get(name)
    except docker.errors.NotFound:
        return False
    return True


def canonical(host: str) -> str:
    """An address in a normal form, so that two addresses of one engine are equal."""
    return f"unix://{os.path.realpath(socket_path(host))}" if host.startswith("unix://") else host.rstrip("/")


def socket_path(host: str) -> str:
    """The Unix socket of an engine of this machine."""
    return host.removeprefix("unix://")


def is_default(host: str) -> bool:
    """Whether an engine is the one that `docker` asks by default."""
    return canonical(host) == canonical(DEFAULT_HOST)


def answers(host: str) -> bool:
    """Whether an engine answers."""
    try:
        connect(host).close()
    except UNREACHABLE:
        return False
    return True


class _TLS(TLSConfig):
    def configure_client(self, client: docker.APIClient) -> None:
        super().configure_client(client)
        client.trust_env = False  # otherwise REQUESTS_CA_BUNDLE replaces the engine's own CA
