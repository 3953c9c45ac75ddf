"""The hosts that a user downloads from, behind a proxy that opens TLS with its own authority, as in companies.

It answers for any name: Pulumi's releases with their checksums, and a registry whose images are lists of manifests,
given only to clients with a token, and to nobody while `limited`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import secrets
import shutil
import ssl
import tarfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.certificates import certify

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import docker

    from tests.certificates import Certified

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
KINDS = {
    "oci": (f"{OCI}.index.v1+json", f"{OCI}.manifest.v1+json", f"{OCI}.config.v1+json", f"{OCI}.layer.v1.tar+gzip"),
    "docker": (
        f"{DOCKER}.distribution.manifest.list.v2+json",
        f"{DOCKER}.distribution.manifest.v2+json",
        f"{DOCKER}.container.image.v1+json",
        f"{DOCKER}.image.rootfs.diff.tar.gzip",
    ),
}
"""The media types of a list, a manifest, a config and a layer: registries have images of both kinds."""
LIMITED = {"errors": [{"code": "TOOMANYREQUESTS", "message": "You have reached your pull rate limit."}]}


@dataclass(frozen=True, kw_only=True)
class Document:
    """The answer for a path."""

    kind: str
    path: Path
    digest: str


class Hosts(ThreadingHTTPServer):
    """All hosts, by the proxy in front of them."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.authority = certify("An authority of a company")
        self.limited = False
        self.files: dict[str, Path] = {}
        """Files for all, by path."""
        self.images: dict[str, Document] = {}
        """Manifests and blobs, by path below /v2/."""
        self.asked: list[tuple[str, str, int]] = []
        """Each request: the host, the path, and the status that it got."""
        self.tokens: set[str] = set()
        self.context = cache(self._context)

    @property
    def proxy(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def _context(self, host: str) -> ssl.SSLContext:
        made: Certified = certify(host, self.authority, names=[host])
        pem = self.folder / f"{host}.pem"
        pem.write_text(made.certificate_pem + made.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        return context

    def offer(self, path: str, algorithm: str, listing: str, content: Mapping[str, Path]) -> None:
        """Serve a release's archive at a path, with its checksum in a list."""
        archive = self.folder / path.rsplit("/", 1)[1]
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for name, file in content.items():
                tar.add(file.resolve(), name)
        with archive.open("rb") as packed:
            digest = hashlib.file_digest(packed, algorithm).hexdigest()
        self.files[path] = archive
        self.files[listing] = self.folder / listing.rsplit("/", 1)[1]
        self.files[listing].write_text(f"{digest}  {archive.name}\n")

    def fill(self, engine: docker.DockerClient, image: str, repository: str, tag: str, kind: str) -> str:
        """Serve an engine's image for its own platform, in a list with another platform; return the list's digest."""
        listed, manifest, config, layer = KINDS[kind]
        saved = self.folder / "saved"
        with (self.folder / "saved.tar").open("wb") as file:
            for chunk in engine.images.get(image).save():
                file.write(chunk)
        with tarfile.open(file.name) as tar:
            tar.extractall(saved, filter="data")
        [described] = json.loads((saved / "manifest.json").read_text())
        layers = []
        for each in described["Layers"]:
            with (
                (saved / each).open("rb") as plain,
                gzip.open(self.folder / "layer", "wb", compresslevel=1) as packed,
            ):
                shutil.copyfileobj(plain, packed)
            layers.append(self._blob(repository, "blobs", layer, self.folder / "layer"))
        own = self._manifest(
            repository,
            manifest,
            {"config": self._blob(repository, "blobs", config, saved / described["Config"]), "layers": layers},
        )
        platform = json.loads((saved / described["Config"]).read_text())
        other = {**own, "digest": f"sha256:{'0' * 64}", "platform": {"architecture": "s390x", "os": "linux"}}
        own["platform"] = {"architecture": platform["architecture"], "os": platform["os"]}
        described_list = self._manifest(repository, listed, {"manifests": [other, own]})
        digest = str(described_list["digest"])
        self.images[f"{repository}/manifests/{tag}"] = self.images[f"{repository}/manifests/{digest}"]
        shutil.rmtree(saved)
        Path(file.name).unlink()
        return digest

    def _manifest(self, repository: str, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
        file = self.folder / "manifest"
        file.write_text(json.dumps({"schemaVersion": 2, "mediaType": kind, **content}))
        return self._blob(repository, "manifests", kind, file)

    def _blob(self, repository: str, folder: str, kind: str, file: Path) -> dict[str, Any]:
        """Add a file; return how manifests name it."""
        with file.open("rb") as content:
            digest = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
        kept = self.folder / digest.replace(":", "-")
        shutil.copyfile(file, kept)
        self.images[f"{repository}/{folder}/{digest}"] = Document(kind=kind, path=kept, digest=digest)
        return {"mediaType": kind, "size": kept.stat().st_size, "digest": digest}


class _Handler(BaseHTTPRequestHandler):
    server: Hosts
    protocol_version = "HTTP/1.1"
    host = ""

    def do_CONNECT(self) -> None:
        self.host = self.path.rpartition(":")[0]
        self.send_response(200)
        self.end_headers()
        context = self.server.context(self.host)
        self.connection = context.wrap_socket(self.connection, server_side=True, do_handshake_on_connect=False)
        try:
            self.connection.do_handshake()
        except OSError:  # from clients that do not trust the authority, or only probe the port
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/token":
            token = secrets.token_hex(16)
            self.server.tokens.add(token)
            self._say(200, {"token": token, "expires_in": 300})
        elif path.startswith("/v2/"):
            self._of_registry(path.removeprefix("/v2/"))
        elif self.host and (file := self.server.files.get(path)):
            self._send(file, {})
        else:
            self._say(404, {})

    do_HEAD = do_GET  # noqa: N815 -- http.server's name

    def _of_registry(self, name: str) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.server.tokens:
            scope = f',scope="repository:{name.rsplit("/", 2)[0]}:pull"' if name else ""
            challenge = f'Bearer realm="https://{self.host}/token",service="{self.host}"{scope}'
            self._say(401, {"errors": [{"code": "UNAUTHORIZED"}]}, **{"WWW-Authenticate": challenge})
        elif not name:
            self._say(200, {})
        elif self.server.limited:
            self._say(429, LIMITED)
        elif document := self.server.images.get(name):
            self._send(document.path, {"Content-Type": document.kind, "Docker-Content-Digest": document.digest})
        else:
            self._say(404, {"errors": [{"code": "MANIFEST_UNKNOWN"}]})

    def _say(self, status: int, content: object, **headers: str) -> None:
        body = json.dumps(content).encode()
        self._begin(status, len(body), {"Content-Type": "application/json", **headers})
        if self.command == "GET":
            self.wfile.write(body)

    def _send(self, file: Path, headers: Mapping[str, str]) -> None:
        self._begin(200, file.stat().st_size, headers)
        if self.command == "GET":
            with file.open("rb") as content:
                shutil.copyfileobj(content, self.wfile)

    def _begin(self, status: int, size: int, headers: Mapping[str, str]) -> None:
        self.server.asked.append((self.host, urlsplit(self.path).path, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(size), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the parameter's name is inherited
        """Keep the test's output quiet."""


@contextmanager
def hosts(folder: Path) -> Iterator[Hosts]:
    """The hosts, in the network of the thread that calls."""
    folder.mkdir()
    with Hosts(folder) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
