"""An engine on another machine, reached by the user's own ssh, as the docker command and the Docker provider do it.

docker-py's own way starts a new ssh for each request, waits for it without a time limit, leaves it running, and
cannot say why it failed.
"""

from __future__ import annotations

import socket
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import docker
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from urllib3.response import HTTPResponse

ENGINE = "docker system dial-stdio"
"""The command that connects its standard input and output to the engine of the machine that it runs on."""
END_SECONDS = 2
"""How long an ssh whose connection was closed may take to end by itself and to say why."""


class _Connection(HTTPConnection):
    """A connection whose other end is an ssh process."""

    _ssh: subprocess.Popen[str] | None = None
    _last_words = ""

    def __init__(self, command: Sequence[str], **options: Any) -> None:  # noqa: ANN401 -- urllib3's own
        super().__init__(**options)
        self._command = command

    def connect(self) -> None:
        self.sock, other_end = socket.socketpair()
        self.sock.settimeout(self.timeout)
        with other_end:
            try:
                self._ssh = subprocess.Popen(
                    self._command,
                    stdin=other_end.fileno(),
                    stdout=other_end.fileno(),
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # no password prompt, and Ctrl-C does not reach it
                )
            except FileNotFoundError as error:
                raise FileNotFoundError("there is no ssh on this machine") from error

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # urllib3 names another one of its own
        try:
            return super().getresponse()
        except ConnectionError as error:
            self.close()
            raise ConnectionError(self._last_words or str(error)) from error

    def close(self) -> None:
        super().close()
        if self._ssh is None:
            return
        try:
            _, said = self._ssh.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._ssh.terminate()
            _, said = self._ssh.communicate()
        self._last_words = said.strip()
        self._ssh = None


class _Adapter(HTTPAdapter):
    def __init__(self, command: Sequence[str]) -> None:
        super().__init__()
        self._pool = HTTPConnectionPool("localhost")
        self._pool.ConnectionCls = partial(_Connection, command)  # type: ignore[assignment]

    def get_connection_with_tls_context(self, *_: object, **__: object) -> HTTPConnectionPool:
        return self._pool

    def request_url(self, request: Any, proxies: object) -> str:  # noqa: ANN401, ARG002
        return str(request.path_url)

    def close(self) -> None:
        self._pool.close()
        super().close()


class _API(docker.APIClient):
    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        super().__init__("unix:///ssh")  # of which it makes an adapter, mounts it, and asks for the engine's version

    def mount(self, prefix: str | bytes, adapter: BaseAdapter) -> None:
        super().mount(prefix, _Adapter(self._command) if prefix == "http+docker://" else adapter)


class Client(docker.DockerClient):
    """A client of the engine at `host`, as ssh://user@host:22. Raises DockerException with what ssh says."""

    def __init__(self, host: str) -> None:
        url = urlsplit(host)
        options = [*(["-l", url.username] if url.username else []), *(["-p", str(url.port)] if url.port else [])]
        self.api = _API(["ssh", *options, "--", str(url.hostname), ENGINE])
