"""OpenAI's protocol is read through aiohttp in LiteLLM 1.55.0, as newer releases do by themselves.

For each chunk of a stream, httpx's own transport takes three times the CPU time of aiohttp's. Limits, errors,
certificates, decoding and redirects stay httpx's: tests/transport_pair.py asks the same servers both ways.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies
from weakref import WeakKeyDictionary

import aiohttp
import httpx
import yarl
from aiohttp.http_exceptions import HttpProcessingError

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterator

CONNECTIONS = 1000
"""Most at once to one server: as OpenAI's SDK has it."""
KEPT_SECONDS = 3
"""How long an idle connection stays open. Many servers, such as uvicorn, close it after 5 seconds, and a request sent
at that moment is lost: httpx checks the socket before it uses a connection, aiohttp does not."""
HEADER_BYTES = 65_536
"""The most for one line of an answer's head. httpx accepts 100 KiB for the whole head."""
CLIENTS = "litellm.router_utils.client_initalization_utils"
"""Where LiteLLM's router makes a client for each deployment, by the name `httpx.AsyncClient`."""
OWN_TRANSPORT = "litellm.llms.custom_httpx.aiohttp_transport"
"""In releases that have it, LiteLLM reads through aiohttp by itself."""
ERRORS: dict[type[BaseException], type[httpx.TransportError]] = {
    aiohttp.ConnectionTimeoutError: httpx.ConnectTimeout,
    TimeoutError: httpx.ReadTimeout,
    aiohttp.ClientConnectorError: httpx.ConnectError,
    aiohttp.ServerDisconnectedError: httpx.RemoteProtocolError,
    aiohttp.ClientPayloadError: httpx.RemoteProtocolError,
    aiohttp.ClientResponseError: httpx.RemoteProtocolError,
    HttpProcessingError: httpx.RemoteProtocolError,
    OSError: httpx.ReadError,
    aiohttp.ClientError: httpx.NetworkError,
}
"""httpx's error for each of aiohttp's; the first that fits."""

INCOMPLETE = "peer closed connection without sending complete message body"
"""httpx's words, which callers are told."""


@contextmanager
def _errors_of_httpx(request: httpx.Request, answer: aiohttp.ClientResponse | None = None) -> Iterator[None]:
    try:
        yield
    except tuple(ERRORS) as error:
        known = next(known for kind, known in ERRORS.items() if isinstance(error, kind))
        text = str(error) or type(error).__name__
        if answer is not None and isinstance(error, aiohttp.ClientPayloadError):
            text = INCOMPLETE + (" (incomplete chunked read)" if "transfer-encoding" in answer.headers else "")
        raise known(text, request=request) from error


def _unread(content: aiohttp.StreamReader) -> bytes:
    """What had arrived before an answer broke: aiohttp raises the error first, and would drop it."""
    content.set_exception(None)  # type: ignore[arg-type] # there is no other way to it
    return content.read_nowait()


class _Body(httpx.AsyncByteStream):
    """The body of an answer; each wait lasts at most `seconds`.

    aiohttp has its own limit, but its release 3.14 forgets it after some answers that are not HTTP.
    """

    def __init__(self, answer: aiohttp.ClientResponse, request: httpx.Request, seconds: float | None) -> None:
        self._answer, self._request, self._seconds = answer, request, seconds
        self._loop = asyncio.get_running_loop()
        self._waits_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._answer.content
        self._watch()
        with _errors_of_httpx(self._request, self._answer):
            while True:
                self._waits_since = self._loop.time()
                try:
                    piece = await content.readany()
                except tuple(ERRORS):
                    if arrived := _unread(content):
                        yield arrived
                    raise
                self._waits_since = None
                if not piece:
                    return
                yield piece

    def _watch(self) -> None:
        """Check again when the present wait may be too long. A timer for each piece costs more than the piece."""
        if self._seconds is None:
            return
        now = self._loop.time()
        late = (self._waits_since or now) + self._seconds
        if late > now:
            self._timer = self._loop.call_at(late, self._watch)
        else:
            self._answer.content.set_exception(aiohttp.SocketTimeoutError("The provider sends no more."))

    async def aclose(self) -> None:
        """Give the connection back, or end it if there is more to come."""
        if self._timer is not None:
            self._timer.cancel()
        self._answer.close()


class Transport(httpx.AsyncBaseTransport):
    """Sends httpx's requests with aiohttp. Raises httpx's errors."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    limit_per_host=CONNECTIONS,
                    keepalive_timeout=KEPT_SECONDS,
                    resolver=aiohttp.ThreadedResolver(),  # the system's, as httpx
                    ssl=self._context,
                    use_dns_cache=False,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # httpx does
                skip_auto_headers=("user-agent", "content-type"),  # httpx has sent its own
                max_line_size=HEADER_BYTES,
                max_field_size=HEADER_BYTES,
            )
        return self._sessions[loop]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the answer once its head is there."""
        limits: dict[str, float | None] = request.extensions.get("timeout", {})
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in request.headers.raw
            if name.lower() != b"transfer-encoding"  # aiohttp is given the whole body
        ]
        with _errors_of_httpx(request):
            answer = await self._session().request(
                request.method,
                yarl.URL(str(request.url), encoded=True),
                headers=headers,
                data=await request.aread() or None,
                allow_redirects=False,  # httpx follows them
                timeout=aiohttp.ClientTimeout(
                    connect=limits.get("pool"), sock_connect=limits.get("connect"), sock_read=limits.get("read")
                ),
            )
        return httpx.Response(
            answer.status, headers=answer.raw_headers, stream=_Body(answer, request, limits.get("read"))
        )


@cache
def _context(verify: str | bool) -> ssl.SSLContext:  # noqa: FBT001 -- httpx's
    """As httpx makes it, and once: to read all authorities takes 20 ms."""
    return httpx.create_ssl_context(verify=verify)


_transport = cache(Transport)
"""One for all clients: LiteLLM drops them after an hour, open, and aiohttp logs each session that is dropped so."""


def client(*, verify: str | bool = True, **options: Any) -> httpx.AsyncClient:
    """A client of httpx that sends through aiohttp; `options` are httpx's."""
    return httpx.AsyncClient(transport=_transport(_context(verify)), **options)


class _Httpx:
    """The module httpx, whose asynchronous client is that one."""

    AsyncClient = staticmethod(client)

    def __getattr__(self, name: str) -> Any:
        return getattr(httpx, name)


def install() -> bool:
    """Make LiteLLM ask Azure and providers with OpenAI's protocol this way; return whether it does.

    Not if LiteLLM does so by itself, nor through a proxy: httpx supports kinds of proxies that aiohttp does not.
    """
    if importlib.util.find_spec(OWN_TRANSPORT) or getproxies():
        return False
    importlib.import_module(CLIENTS).httpx = _Httpx()
    return True
