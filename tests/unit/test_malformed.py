"""Whatever the answer is, a call ends with a result or an LLMError; an organization's call with its fallback's."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import app
from tests.unit.test_app import HELLO, ORGANIZATION, USAGE, Gateway, chunk, completion, face, gateway, sse

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faces import Face

__all__ = ["face", "gateway"]  # fixtures

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["\ud83d", "[DONE]", "stop", "\0", "400"])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "content", "code"]), inner),
    max_leaves=5,
)
CHUNKS = [json.loads(each.removeprefix("data: ")) for each in (chunk("a"), chunk(None, "stop"), chunk(usage=USAGE))]
VECTORS = {"data": [{"index": 0, "embedding": [0.5, 1]}], "usage": {"prompt_tokens": 1, "total_tokens": 1}}
FAILURES = [{"error": {"message": "no", "type": "x", "code": "429"}}]
DEEP = b"[" * 100_000
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def spoiled(draw: st.DrawFn, documents: list[Any]) -> bytes:
    """A document of which one part, somewhere, is something else or missing; or no document at all."""
    document = json.loads(json.dumps(draw(st.sampled_from(documents))))
    holder: Any = None
    key: Any = None
    inside: Any = document
    while isinstance(inside, (dict, list)) and inside and draw(st.booleans()):
        holder = inside
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        inside = holder[key]
    if holder is None:
        return draw(st.binary(max_size=20) | JSON.map(lambda each: json.dumps(each).encode()) | st.just(DEEP))
    if draw(st.booleans()):
        holder[key] = draw(JSON)
    else:
        del holder[key]
    return json.dumps(document).encode()


def ends(ask: Callable[[], object]) -> None:
    """A call ends as it should: an error has a line of its own, and quotes nothing."""
    failed = None
    try:
        ask()
    except app.LLMError as error:
        failed = str(error)
    assert failed is None or len(failed.splitlines()) == 1


@QUICK
@given(body=spoiled([completion(), *FAILURES]), status=st.sampled_from([200, 200, 200, 201, 302, 400, 401, 429, 500]))
def test_a_whole_answer_of_any_shape(face: Face, gateway: Gateway, body: bytes, status: int) -> None:
    gateway.answer = lambda _: httpx2.Response(status, content=body)
    ends(lambda: face.chat(HELLO))


@QUICK
@given(events=st.lists(spoiled([*CHUNKS, *FAILURES]), max_size=4), noise=st.binary(max_size=5))
def test_a_streamed_answer_of_any_shape(face: Face, gateway: Gateway, events: list[bytes], noise: bytes) -> None:
    content = b"".join(b"data: " + each + b"\n\n" for each in events)
    gateway.answer = lambda _: httpx2.Response(200, content=noise + content)
    ends(lambda: face.stream(HELLO))
    ends(lambda: face.chat(HELLO, app.ChatCompletionOptions(stream=True)))


@QUICK
@example(body=b'{"data": [{"index": 0, "embedding": "stop"}]}', status=200)  # base64, of three bytes
@given(body=spoiled([VECTORS, *FAILURES]), status=st.sampled_from([200, 200, 400, 500]))
def test_vectors_of_any_shape(face: Face, gateway: Gateway, body: bytes, status: int) -> None:
    gateway.answer = lambda _: httpx2.Response(status, content=body)
    ends(lambda: face.embed("a"))


@QUICK
@given(broken=spoiled([completion()]), event=spoiled(CHUNKS))
def test_the_fallback_is_asked_if_the_answer_is_not_one(
    face: Face, gateway: Gateway, broken: bytes, event: bytes
) -> None:
    """Unless it can still be read, or is the start of an answer."""

    def answer(body: dict[str, Any]) -> httpx2.Response:
        if body["model"] == "gpt-4o":
            return httpx2.Response(200, content=b"data: " + event + b"\n\n" if body.get("stream") else broken)
        if body.get("stream"):
            return sse(chunk("ok"), chunk(None, "stop"))
        return httpx2.Response(200, json=completion("ok"))

    gateway.answer = answer
    result = face.chat_for_org(ORGANIZATION.id, HELLO)
    assert result.used_fallback == (result.content == "ok")
    with suppress(app.StreamInterruptedError):
        _, streamed = face.stream_for_org(ORGANIZATION.id, HELLO)
        assert streamed.used_fallback == (streamed.content == "ok")


@pytest.mark.parametrize("usage", [None, {}, 1, [], {"prompt_tokens": "x"}, {"prompt_tokens": 1}])
def test_an_answer_without_a_proper_count_is_an_answer(face: Face, gateway: Gateway, usage: object) -> None:
    gateway.answer = lambda _: httpx2.Response(200, json=completion("hi", usage=usage))
    assert (face.chat(HELLO).content, face.chat(HELLO).usage) == ("hi", None)
