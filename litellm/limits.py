"""LiteLLM's refusals because of a key's limits, as callers see them: one answer for each, on every release."""

from __future__ import annotations

import math
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Headers = list[tuple[bytes, bytes]]

UNKNOWN = "The API key is missing or not one of this gateway."
"""The edge's words for it (edge/haproxy.cfg)."""
AWAY = "The gateway's database cannot be reached, so this key cannot be looked up now. Try again."
USED_UP = (
    "The budget of this key, or of its team, is used up or held by requests that are open{numbers}. Ask the "
    "gateway's operator for more."
)
NUMBERS = re.compile(r"[Cc]urrent cost: ?([\d.e+-]+), ?[Mm]ax budget: ?([\d.e+-]+)")
NOT_FOR_KEY = "This model is not served here for this key. GET /v1/models lists those that are."
TOO_FAST = "This key has used its requests or tokens per minute, or has reached its limit of open requests."
NOT_ITS_MODEL = re.compile(r"not allowed to (access|call) (this )?model|can only access models", re.IGNORECASE)
RETRY_AFTER_SECONDS = 5
FRACTION = re.compile(rb"\d+\.\d+")


def not_for_key() -> dict[str, Any]:
    """The refusal of a model that a key may not use."""
    return {
        "status": HTTPStatus.NOT_FOUND,
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
        "message": NOT_FOR_KEY,
    }


def unknown_key() -> dict[str, Any]:
    """The edge's refusal of a key."""
    return {
        "status": HTTPStatus.UNAUTHORIZED,
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
        "message": UNKNOWN,
    }


def away() -> dict[str, Any]:
    """The refusal of a key that cannot be looked up. Not 401, which SDKs report as a wrong key."""
    return {
        "status": HTTPStatus.SERVICE_UNAVAILABLE,
        "type": "server_error",
        "param": None,
        "code": "database_unavailable",
        "message": AWAY,
    }


def read(status: int, known: Mapping[str, Any], *, database_away: bool) -> dict[str, Any]:
    """How one of LiteLLM's own refusals is changed for a caller with a key: the parts that change, maybe none.

    `known` is the error as LiteLLM tells it.
    """
    kind, message = str(known.get("type")), str(known.get("message"))
    if kind == "budget_exceeded":
        return used_up(message)
    if kind == "no_db_connection" or (database_away and status == HTTPStatus.UNAUTHORIZED):
        return away()
    if kind.endswith("model_access_denied") or (
        status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN} and NOT_ITS_MODEL.search(message)
    ):
        return not_for_key()
    if status == HTTPStatus.UNAUTHORIZED or kind in {"expired_key", "token_not_found_in_db"}:
        return unknown_key()
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return {"type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded", "message": TOO_FAST}
    return {}


def used_up(message: str) -> dict[str, Any]:
    """The refusal of a key whose budget is used up.

    OpenAI has 429 and this code for it, by which its SDKs raise RateLimitError and LangChain gives up. LiteLLM's type
    tells it from a provider's own.
    """
    numbers = NUMBERS.search(message)
    told = f" (${float(numbers[1]):.6f} of ${float(numbers[2].rstrip('.')):.6f})" if numbers else ""
    return {
        "status": HTTPStatus.TOO_MANY_REQUESTS,
        "type": "budget_exceeded",
        "param": None,
        "code": "insufficient_quota",
        "message": USED_UP.format(numbers=told),
    }


def headers_of(problem: Mapping[str, Any]) -> Headers:
    """The headers by which an SDK decides whether to ask again."""
    if problem.get("type") == "budget_exceeded":
        return [(b"x-should-retry", b"false")]  # SDKs repeat each 429 otherwise
    if problem.get("code") == "database_unavailable":
        return [(b"retry-after", str(RETRY_AFTER_SECONDS).encode())]
    return []


def in_whole_seconds(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers whose Retry-After is a whole number, as RFC 9110 has it (10.2.3): LiteLLM 1.55.0 sends `47.49`."""
    return [
        (name, str(math.ceil(float(value))).encode())
        if name == b"retry-after" and FRACTION.fullmatch(value)
        else (name, value)
        for name, value in headers
    ]
