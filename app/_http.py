"""The one place that makes HTTP clients: one pool of connections for all threads, and one for each event loop.

As with OpenSSL, a private certificate authority is trusted if SSL_CERT_FILE names its file (or SSL_CERT_DIR a
folder); without these variables, the system's authorities are. Proxies (HTTPS_PROXY and the like) are not used: the
gateway is the team's own, and is asked directly.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import httpcore2
import httpx2

from app._deadline import within
from app._errors import NotConfiguredError
from app._made_once import PerLoop, PerProcess
from app._types import DEFAULT_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

CONNECT_SECONDS = 5.0
CONNECT_ATTEMPTS = 2
"""How often a failed connection is retried; a request that reached the gateway is not repeated."""
TIMEOUT = httpx2.Timeout(DEFAULT_TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
WRITE_BYTES = 65536


def _left(seconds: float | None, late: type[httpcore2.TimeoutException]) -> float | None:
    """How long to wait. Raises `late` if no time is left."""
    try:
        return within(seconds)
    except TimeoutError as error:
        raise late(str(error)) from None


class _Stream(httpcore2.NetworkStream):
    """A connection whose every read and write ends at the deadline."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]
        self.close = stream.close  # type: ignore[method-assign]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), WRITE_BYTES):
            self._stream.write(buffer[start : start + WRITE_BYTES], _left(timeout, httpcore2.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(timeout, httpcore2.ConnectTimeout)))


class _Backend(httpcore2.SyncBackend):
    """Connects by the deadline, however many addresses a name has and however long the lookup takes."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        failed: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in _addresses(host, port, _left(timeout, httpcore2.ConnectTimeout)):
            try:
                stream = super().connect_tcp(
                    address, port, _left(timeout, httpcore2.ConnectTimeout), local_address, socket_options
                )
                return _Stream(stream)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
        raise failed

    def sleep(self, seconds: float) -> None:
        super().sleep(_left(seconds, httpcore2.ConnectTimeout) or 0)


def _addresses(host: str, port: int, timeout: float | None) -> list[str]:
    """The addresses of a host, looked up in a thread that can be abandoned: a name server may take any time."""
    found: Future[list[str]] = Future()

    def look() -> None:
        try:
            found.set_result([str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except OSError as error:
            found.set_exception(error)

    threading.Thread(target=look, daemon=True).start()
    try:
        return found.result(timeout)
    except TimeoutError:
        raise httpcore2.ConnectTimeout(f"{host} was not resolved in time") from None
    except OSError as error:
        raise httpcore2.ConnectError(str(error)) from error


class _AsyncStream(httpcore2.AsyncNetworkStream):
    """As _Stream."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]
        self.aclose = stream.aclose  # type: ignore[method-assign]

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, _left(timeout, httpcore2.ReadTimeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, _left(timeout, httpcore2.WriteTimeout))

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return _AsyncStream(
            await self._stream.start_tls(ssl_context, server_hostname, _left(timeout, httpcore2.ConnectTimeout))
        )


class _AsyncBackend(httpcore2.AnyIOBackend):
    """As _Backend; what takes longer is cancelled."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        timeout = _left(timeout, httpcore2.ConnectTimeout)
        return _AsyncStream(await super().connect_tcp(host, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        await super().sleep(_left(seconds, httpcore2.ConnectTimeout) or 0)


@functools.lru_cache(maxsize=1)
def _trusted(*_changed: str | None) -> ssl.SSLContext:
    """The trusted authorities: read from disk once for all pools, because that takes longer than a request."""
    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        why = "it contains no certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise NotConfiguredError(f"SSL_CERT_FILE or SSL_CERT_DIR cannot be read ({why}): correct it") from None


def _options() -> dict[str, Any]:
    """The arguments for both kinds of pools."""
    return {
        "ssl_context": _trusted(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
        "max_connections": LIMITS.max_connections,
        "max_keepalive_connections": LIMITS.max_keepalive_connections,
        "keepalive_expiry": LIMITS.keepalive_expiry,
        "retries": CONNECT_ATTEMPTS,
    }


class _Transport(httpx2.HTTPTransport):
    """httpx2's transport over a pool that respects the deadline."""

    def __init__(self) -> None:
        # Not the base class's, which accepts no backend.
        self._pool = httpcore2.ConnectionPool(network_backend=_Backend(), **_options())


class _AsyncTransport(httpx2.AsyncHTTPTransport):
    """As _Transport."""

    def __init__(self) -> None:
        self._pool = httpcore2.AsyncConnectionPool(network_backend=_AsyncBackend(), **_options())


class Pool(httpx2.Client):
    """Connections that outlive every client that uses them: a TLS context and a connection per call cost 20 ms."""

    def __init__(self, transport: httpx2.BaseTransport | None = None) -> None:
        super().__init__(transport=transport or _Transport(), timeout=TIMEOUT, follow_redirects=True)

    def close(self) -> None:
        """Leave the pool open: `with create_llm_client() as client` must not close what others use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()


class AsyncPool(httpx2.AsyncClient):
    """As Pool."""

    def __init__(self, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        super().__init__(transport=transport or _AsyncTransport(), timeout=TIMEOUT, follow_redirects=True)

    async def aclose(self) -> None:
        """Leave the pool open."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


shared = PerProcess(Pool)
per_loop = PerLoop(AsyncPool, httpx2.AsyncClient.aclose)


def close() -> None:
    """Close the connections of all threads; the next call opens new ones."""
    if (pool := shared.take()) is not None:
        httpx2.Client.close(pool)
