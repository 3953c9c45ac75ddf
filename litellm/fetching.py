"""What LiteLLM may fetch itself: the URLs in a request, for providers that take no URLs of images and documents.

Nothing, unless the stack config's `fetchUrls` allows it, and then only what is on the public internet. This module
resolves a name and connects to exactly the address that it checked, again for each redirect.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import ipaddress
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from answers import current
from patching import put_in_place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ALLOWED = os.environ.get("LLM_GATEWAY_FETCH_URLS") == "true"
SECONDS = 15
"""For all of it."""
MAX_BYTES = 50 * 1024 * 1024
"""As much as a provider takes."""
MAX_REDIRECTS = 3
REDIRECTS = {301, 302, 303, 307, 308}
NAT64 = ipaddress.ip_network("64:ff9b::/96")

FETCHING = ("litellm.litellm_core_utils.", "litellm.utils", "litellm.rag.", "litellm.llms.gigachat.file_handler")
"""The modules of LiteLLM whose GET requests are for a caller's URLs. All others ask a provider's own address."""
IMAGES = "litellm.litellm_core_utils.prompt_templates.image_handling"
MEASURING, MEASURE = ("litellm.utils", "litellm.litellm_core_utils.token_counter"), "get_image_dimensions"
UNKNOWN_SIZE = (300, 300)
"""Width and height of an image in pixels where LiteLLM does not know better; its own default."""
CONVERSIONS = ("convert_url_to_base64", "async_convert_url_to_base64")
NOT_ALLOWED = "this gateway does not fetch URLs. Send the content itself, as a data: URL in base64."


class NotFetchedError(Exception):
    """A URL that is not fetched, in words for the caller."""


def public(address: str) -> bool:
    """Whether an address is one of the public internet, and not of a machine, a network or a cloud's metadata."""
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = (
            ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        )
        if inner is not None:
            return public(str(inner))
        if ip.teredo:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def address_of(host: str, port: int) -> str:
    """The address to connect to for a host. Raises NotFetchedError unless all that it has are public."""
    try:
        addresses = list(
            dict.fromkeys(str(it[4][0]) for it in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        )
    except OSError:
        raise NotFetchedError(f"{host} has no address.") from None
    if not addresses or not all(public(address) for address in addresses):
        raise NotFetchedError(f"{host} is not on the public internet.")
    return addresses[0]


def fetch(url: str, headers: Mapping[str, str] | None = None, *, follow_redirects: bool | None = None) -> Any:
    """Fetch a caller's URL, as an httpx response. Raises NotFetchedError, and has the caller told why."""
    try:
        return _fetched(url, dict(headers or {}), 0 if follow_redirects is False else MAX_REDIRECTS)
    except NotFetchedError as problem:
        tell(url, str(problem))
        raise


def _fetched(url: str, headers: dict[str, str], redirects: int) -> Any:
    if not ALLOWED:
        raise NotFetchedError(NOT_ALLOWED)
    httpx, httpcore = importlib.import_module("httpx"), importlib.import_module("httpcore")

    class Pinned(httpcore.SyncBackend):  # type: ignore[misc, name-defined]
        def connect_tcp(self, host: str, port: int, **options: Any) -> Any:
            return super().connect_tcp(address_of(host, port), port, **options)

    asked, until = url, time.monotonic() + SECONDS
    limits = dict.fromkeys(("connect", "read", "write", "pool"), SECONDS)
    failures = (OSError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)
    with httpcore.ConnectionPool(network_backend=Pinned()) as pool:
        for left in range(redirects, -1, -1):
            parts = urlsplit(url)
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
                raise NotFetchedError("only http and https URLs without a user name are fetched.")
            content = b""
            try:
                with pool.stream("GET", url, headers=headers, extensions={"timeout": limits}) as answer:
                    for part in answer.iter_stream():
                        content += part
                        if len(content) > MAX_BYTES or time.monotonic() > until:
                            raise NotFetchedError(
                                f"it is larger than {MAX_BYTES >> 20} MB or takes longer than {SECONDS} seconds."
                            )
            except failures as problem:
                raise NotFetchedError(f"it cannot be reached ({type(problem).__name__}).") from None
            location = dict(answer.headers).get(b"location", b"").decode("latin-1")
            if answer.status not in REDIRECTS or not location or not redirects:
                request = httpx.Request("GET", asked)
                return httpx.Response(answer.status, headers=answer.headers, content=content, request=request)
            url, headers = urljoin(url, location), {}
            if not left:
                break
    raise NotFetchedError("it redirects too often.")


def tell(url: str, why: str) -> None:
    """Tell the caller why a URL was not used."""
    exchange = current.get()
    if exchange is not None and not exchange.reason:
        exchange.reason = f"{url[:200]!r} cannot be used: {why}"


def is_a_callers(depth: int) -> bool:
    """Whether the code that asks is one that fetches what a caller named."""
    return str(sys._getframe(depth + 1).f_globals.get("__name__", "")).startswith(FETCHING)  # noqa: SLF001


def install() -> None:
    """Make LiteLLM fetch with this module. Raises if its ways to fetch are not found, so that it does not start."""
    handlers = importlib.import_module("litellm.llms.custom_httpx.http_handler")
    images, litellm = importlib.import_module(IMAGES), importlib.import_module("litellm")
    whole, later = handlers.HTTPHandler.get, handlers.AsyncHTTPHandler.get

    @functools.wraps(whole)
    def get(self: object, url: str, *args: Any, **kwargs: Any) -> Any:
        if is_a_callers(1):
            return fetch(url, kwargs.get("headers"), follow_redirects=kwargs.get("follow_redirects"))
        return whole(self, url, *args, **kwargs)

    @functools.wraps(later)
    def get_later(self: object, url: str, *args: Any, **kwargs: Any) -> Any:
        if is_a_callers(1):
            redirects = kwargs.get("follow_redirects")
            return asyncio.to_thread(fetch, url, kwargs.get("headers"), follow_redirects=redirects)
        return later(self, url, *args, **kwargs)

    handlers.HTTPHandler.get, handlers.AsyncHTTPHandler.get = get, get_later
    for name in CONVERSIONS:
        original = getattr(images, name)
        put_in_place(name, original, told(original, litellm.BadRequestError))
    if not ALLOWED:  # else tokens of an image that the provider fetches are counted by fetching it here too
        (measure,) = filter(None, (getattr(importlib.import_module(it), MEASURE, None) for it in MEASURING))
        put_in_place(MEASURE, measure, lambda *_, **__: UNKNOWN_SIZE)


def told(convert: Callable[..., Any], error: Callable[..., Exception]) -> Callable[..., Any]:
    """A conversion whose failure is the caller's mistake: if LiteLLM tried again, it would fail the same way."""

    def mistake(url: str) -> Exception:
        tell(url, "it is not what it should be." if ALLOWED else NOT_ALLOWED)
        return error(message="The URL cannot be used.", model="", llm_provider="")

    @functools.wraps(convert)
    def whole(url: str, *args: Any, **kwargs: Any) -> Any:
        if not ALLOWED:
            raise mistake(url)
        try:
            return convert(url, *args, **kwargs)
        except Exception:  # noqa: BLE001 -- whatever it is, the URL is the reason
            raise mistake(url) from None

    @functools.wraps(convert)
    async def later(url: str, *args: Any, **kwargs: Any) -> Any:
        if not ALLOWED:
            raise mistake(url)
        try:
            return await convert(url, *args, **kwargs)
        except Exception:  # noqa: BLE001 -- as above
            raise mistake(url) from None

    return later if asyncio.iscoroutinefunction(convert) else whole
