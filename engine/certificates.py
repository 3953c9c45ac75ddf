"""The certificates for an engine that is reached over TLS. Loads no Docker client, because that takes long."""

from __future__ import annotations

import os
from pathlib import Path

CERTIFICATE_FILES = ("ca.pem", "cert.pem", "key.pem")


def certificates(host: str) -> str | None:
    """The folder with the certificates for an engine that is reached over TLS: Docker's own convention."""
    if not host.startswith("tcp://"):
        return None
    return os.environ.get("DOCKER_CERT_PATH") or str(Path.home() / ".docker")


def missing_certificates(host: str) -> str | None:
    """Why an engine cannot be reached over TLS: the certificates that are missing."""
    folder = certificates(host)
    missing = [file for file in CERTIFICATE_FILES if folder and not Path(folder, file).is_file()]
    if not missing:
        return None
    return (
        f"it is reached by TLS only, as plain tcp would send every secret in clear, and {folder} has no "
        f"{', '.join(missing)} (DOCKER_CERT_PATH names another folder)"
    )


def docker_command(host: str) -> str:
    """The docker command for an engine, as a person would type it."""
    return f"docker {'--tlsverify ' if certificates(host) else ''}--host {host}"
