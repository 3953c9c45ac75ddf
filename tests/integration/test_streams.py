"""The lane for streams compared with LiteLLM's own way: the same streams through both, as a caller sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState

import app
from benchmarks.containers import LABELS
from engine.connection import connect
from tests.certificates import certify
from tests.stack_config import KEY, PROJECT
from tests.stacks import Deployment, image_of
from tests.stream_gateways import Gateway, Pair, pair_of
from tests.stream_provider import HEAD, MUTE, STREAMS, USAGE
from tests.swarm.cluster import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

AT_ONCE = 8
ENOUGH = 6
"""Chunks of a stream, after which a caller leaves."""
ASKED_AGAIN = 5
"""How often a stream whose callback got something else is repeated: LiteLLM 1.55.0's threads race."""
BROKEN = ("an end without an end", "a page of HTML", "an empty answer")
"""Half an answer, or none, which LiteLLM says ended well."""
WITH_USAGE = (
    "text",
    "tools in parallel",
    "usage",
    "usage with the last chunk",
    "usage with each chunk",
    "a filter's chunk first",
    "an end without [DONE]",
)
GAINS = {
    "several choices": "LiteLLM drops the finish_reason and the role of each choice but the first",
    "refusal": "LiteLLM drops the text of a refusal",
    "a reasoning field that LiteLLM does not know": "LiteLLM drops it",
    "a bare data line": "LiteLLM ends the answer with an error",
    "no JSON": "another text of the same error; hosted_vllm's chunk is skipped by 1.106, and its text lost",
    **dict.fromkeys(BROKEN, "LiteLLM says that it ended well"),
}
"""The streams that differ through the lane, and why."""
GAINS_OF_1_55 = {
    "tools in parallel": "LiteLLM gives each piece a role, and the SDK makes 'assistantassistant' of them",
    "reasoning": "LiteLLM drops it",
    "names, ids and retries": "the SDK that it takes holds an event with a name for one of another API",
}
GAINS_OF_1_106_VLLM = {"several data lines": "LiteLLM's own reader takes each line for an event"}
NOT_SO = {("1.108.14", "vllm"): {"a bare data line"}}
"""Listed differences that do not exist."""
EVENT = 'data: {"choices": []}\n\n'
"""That of tests/transport_pair.py."""
ERRORS_OF_HTTPX = {
    "an end too soon": "RemoteProtocolError",
    "no last chunk": "RemoteProtocolError",
    "half a chunk": "RemoteProtocolError",
    "no HTTP": "RemoteProtocolError",
    "no answer": "RemoteProtocolError",
    "half a head": "RemoteProtocolError",
    "cut off": "ReadError",
    "cut off at once": "ReadError",
    "silent": "ReadTimeout",
    "silent in the middle": "ReadTimeout",
    "nobody listens": "ConnectError",
    "no such host": "ConnectError",
    "no TLS": "ConnectError",
    "an authority that nobody knows": "ConnectError",
}
"""By the name of a case of tests/transport_pair.py."""
COUNTED_OTHERWISE = {*BROKEN, "a bare data line", "no JSON", "names, ids and retries"}
COUNTED_OTHERWISE_IN_1_106 = {
    "several choices": "the answer that callbacks get has the text of all choices; its usage is the same",
}


@pytest.fixture(scope="module", params=["1.55.0", "1.108.14"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both ways of a release."""
    with pair_of(request.param, tmp_path_factory.mktemp("images")) as made:
        yield made


async def outcome(client: AsyncOpenAI, model: str, name: str, *, usage: bool) -> dict[str, Any]:
    """What the OpenAI SDK makes of a stream."""
    state = ChatCompletionStreamState()
    made: dict[str, Any] = {"models": set(), "ids": set(), "usage": None, "error": None}
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}
    try:
        async for chunk in await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": name}],
            stream=True,
            user=f"{model} {usage}",
            **options,
        ):
            state.handle_chunk(chunk)
            made["models"].add((chunk.model or "").removeprefix("hosted_vllm/"))  # 1.55.0 adds that to the last one
            made["ids"].add(chunk.id)
            if chunk.usage:
                made["usage"] = chunk.usage.model_dump(exclude_none=True)
    except openai.APIError as error:
        made["error"] = type(error), error.message.partition("\n")[0]  # some go on with a traceback
    with contextlib.suppress(AssertionError):  # there is nothing
        made["choices"] = [
            choice.model_dump(exclude_none=True) for choice in state.current_completion_snapshot.choices
        ]
    return made


ROWS = [
    (name, usage)
    for name in STREAMS
    for usage in ([False, True] if name in WITH_USAGE else [False])
    if name not in {"endless", "silent"}
]


async def both(
    pair: Pair, model: str, rows: Sequence[tuple[str, bool]] = ROWS
) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Rows through the lane and LiteLLM's own way."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with (
        AsyncOpenAI(base_url=pair.lane.url, api_key=KEY, max_retries=0) as lane,
        AsyncOpenAI(base_url=pair.own.url, api_key=KEY, max_retries=0) as own,
    ):

        async def row(name: str, *, usage: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
            async with gate:
                return (
                    name,
                    *await asyncio.gather(
                        outcome(lane, model, name, usage=usage), outcome(own, model, name, usage=usage)
                    ),
                )

        return await asyncio.gather(*(row(name, usage=usage) for name, usage in rows))


@pytest.mark.parametrize("model", ["openai", "vllm", "azure"])
def test_what_a_caller_gets_is_the_same_but_for_what_is_listed(pair: Pair, model: str) -> None:
    """So is what callbacks get, and with them LiteLLM's spend."""
    listed = {*GAINS} - NOT_SO.get((pair.release, model), set())
    if pair.release == "1.55.0":
        listed |= {*GAINS_OF_1_55}
    elif model == "vllm":
        listed |= {*GAINS_OF_1_106_VLLM}
    results = asyncio.run(both(pair, model))
    assert {name for name, lane, own in results if lane != own} == listed
    for name, lane, _ in results:
        assert (lane["error"] is not None) == (
            name in {*BROKEN, "no JSON", "100 equal chunks"}
            or name.startswith(("an error", "a connection that breaks"))
        ) or name == "a connection that breaks after the end", name

    asked = {(name, f"{model} {usage}") for name, usage in ROWS}
    told = asked - {(name, who) for name, who in asked if name in {"a page of HTML", "an empty answer"}}
    until(lambda: told <= pair.lane.events().keys() & pair.own.events().keys(), "each stream was reported")
    allowed = {*COUNTED_OTHERWISE, *(COUNTED_OTHERWISE_IN_1_106 if pair.release != "1.55.0" else ())}
    if pair.release != "1.55.0":
        allowed |= {"several data lines"}
        several = "several choices", f"{model} False"
        assert pair.lane.events()[several][0][:2] == pair.own.events()[several][0][:2]
    for _ in range(ASKED_AGAIN if pair.release == "1.55.0" else 0):
        otherwise = _told_otherwise(pair, told, allowed)
        if not otherwise:
            break
        asyncio.run(both(pair, model, [(name, who.endswith("True")) for name, who in otherwise]))
        time.sleep(1)  # what callbacks are told comes after the answer
    otherwise = _told_otherwise(pair, told, allowed)
    assert not otherwise, otherwise
    for name in BROKEN:
        assert {event[0] for event in pair.lane.events()[name, f"{model} False"]} == {"failed"}


def _told_otherwise(
    pair: Pair, told: set[tuple[str, str]], allowed: set[str]
) -> dict[tuple[str, str], tuple[list[Any], list[Any]]]:
    """The streams for which the lane's callback never got what the callback gets in LiteLLM's own way."""
    lane, own = pair.lane.events(), pair.own.events()
    return {
        (name, who): (lane[name, who], own[name, who])
        for name, who in told
        if name not in allowed and all(event not in own[name, who] for event in lane[name, who])
    }


def ask(gateway_: Gateway, model: str, name: str, **more: Any) -> list[Any]:
    with OpenAI(base_url=gateway_.url, api_key=KEY, max_retries=0) as client:
        return list(
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": name}], stream=True, **more
            )
        )


def test_the_lane_is_on_where_it_should_be_and_off_where_it_should_be(pair: Pair) -> None:
    """The lane's chunks have the provider's timestamp; in LiteLLM's own way they have LiteLLM's."""
    assert {chunk.created for chunk in ask(pair.lane, "openai", "text")} == {HEAD["created"]}
    assert HEAD["created"] not in {chunk.created for chunk in ask(pair.own, "openai", "text")}


def test_a_request_that_needs_every_chunk_takes_litellms_own_way(pair: Pair) -> None:
    """And a broken answer is an error there too."""
    spoken: dict[str, Any] = {
        "modalities": ["text", "audio"],
        "extra_body": {"audio": {"voice": "a", "format": "wav"}},
    }
    chunks = ask(pair.lane, "spoken", "text", **spoken)
    assert HEAD["created"] not in {chunk.created for chunk in chunks}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "The quick brown fox"
    for name in BROKEN:
        with pytest.raises(openai.APIError, match="The provider"):
            ask(pair.lane, "spoken", name, **spoken)


def test_half_an_answer_is_the_apps_stream_interrupted_error(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_URL", pair.lane.url)
    monkeypatch.setenv("LITELLM_API_KEY", KEY)
    options = app.ChatCompletionOptions(model="openai")
    try:
        with pytest.raises(app.StreamInterruptedError, match="broke off after 19 characters") as caught:
            list(app.stream_chat_completion([app.ChatMessage("user", "an end without an end")], options))
    finally:
        app.close()
    assert caught.value.content == "The quick brown fox"


@pytest.mark.parametrize("way", ["lane", "own"])
@pytest.mark.parametrize("name", ["endless", "silent"])
def test_a_caller_who_leaves_ends_the_providers_stream(pair: Pair, way: str, name: str) -> None:
    """While words arrive, and while none do."""
    before = pair.left()
    with OpenAI(base_url=getattr(pair, way).url, api_key=KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="openai", messages=[{"role": "user", "content": name}], stream=True
        )
        assert any(chunk.choices and chunk.choices[0].delta.content for chunk in stream)
        stream.close()
    until(lambda: pair.left() == before + 1, "the provider is left")


@pytest.mark.parametrize("model", ["openai", "vllm", "azure"])
@pytest.mark.parametrize("way", ["lane", "own"])
def test_a_caller_who_leaves_before_the_answer_begins_ends_the_providers_work(
    pair: Pair, way: str, model: str
) -> None:
    """Whether it asked for a stream or for one piece: nobody waits for the answer, and nobody should bill it."""
    with OpenAI(base_url=getattr(pair, way).url, api_key=KEY, max_retries=0, timeout=1) as client:
        for stream in (False, True):
            before = pair.left()
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": MUTE}], stream=stream
                )
            until(lambda: pair.left() == before + 1, "the provider is left")  # noqa: B023 -- in this round


@pytest.mark.parametrize("way", ["lane", "own"])
@pytest.mark.parametrize(
    ("name", "status"), [("usage", "success"), ("a connection that breaks", "failure"), ("endless", "left")]
)
def test_a_line_tells_what_a_stream_took(pair: Pair, way: str, name: str, status: str) -> None:
    """One line, whether the stream ended, broke off or was left; with the provider's count if LiteLLM uses that."""
    asked: Gateway = getattr(pair, way)
    call = f"{way} {name}"
    headers = {"x-llm-gateway-client": "team", "x-llm-gateway-call": call, "x-llm-organization": "acme"}
    with (
        OpenAI(base_url=asked.url, api_key=KEY, max_retries=0, default_headers=headers) as client,
        contextlib.suppress(openai.APIError),  # which 1.108.14 may answer with in place of a stream
        client.chat.completions.create(
            model="openai", messages=[{"role": "user", "content": name}], stream=True
        ) as stream,
    ):
        for number, _ in enumerate(stream):
            if number == ENOUGH:
                break
    until(lambda: bool(asked.usage(call)), "the stream is reported")
    (line,) = asked.usage(call)
    known = {key: line[key] for key in ("client", "organization", "model", "provider", "status", "stream")}
    assert known == {
        "client": "team",
        "organization": "acme",
        "model": "openai",
        "provider": "openai",
        "status": status,
        "stream": True,
    }
    tokens = (line["prompt_tokens"], line["completion_tokens"])
    if status == "failure":
        assert (tokens, line["cost"], line["error"] is None) == ((None, None), None, False)
        return
    # LiteLLM 1.55.0 has the cost of its own streams by chance: two of its threads race.
    assert (line["cost"] is None and (pair.release, way) == ("1.55.0", "own")) or line["cost"] > 0
    assert line["estimated"] == (pair.release == "1.55.0" or status == "left")
    if not line["estimated"]:
        assert tokens == (USAGE["prompt_tokens"], USAGE["completion_tokens"])
    assert tokens[1] > (ENOUGH if status == "left" else 0)


@pytest.mark.parametrize("way", ["lane", "own"])
def test_a_refused_key_of_one_deployment_is_seen_by_nobody(pair: Pair, way: str) -> None:
    """Its deployment is asked once, and then not for a while. If the model has no other, callers see the error."""
    url, before = getattr(pair, way).url, {model: pair.refused(model) for model in ("several", "all-refused")}
    for _ in range(10):
        assert ask(getattr(pair, way), "several", "text")
    with OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        for _ in range(2):
            with pytest.raises(openai.AuthenticationError, match="no such key"):
                client.chat.completions.create(model="all-refused", messages=[{"role": "user", "content": "text"}])
    assert pair.refused("several") - before["several"] <= 2
    assert 2 <= pair.refused("all-refused") - before["all-refused"] <= 3


def test_httpx_through_aiohttp_is_as_httpx_itself() -> None:
    """Answers, errors, what is sent, kept connections, certificates; in the image of the pinned release."""
    authority = certify("an authority")
    own = certify("a provider", authority, address="127.0.0.1")
    engine = connect("")
    made = engine.containers.create(
        image_of("litellm"),
        ["/pair.py", "/modules", "/certificate", "/key", "/authority"],
        entrypoint=["python3"],
        network_mode="none",
        labels=LABELS,
    )
    try:
        for path, text in {
            "/pair.py": (PROJECT / "tests/transport_pair.py").read_text(),
            "/modules/transport.py": (PROJECT / "litellm/transport.py").read_text(),
            "/certificate": own.certificate_pem,
            "/key": own.key_pem,
            "/authority": authority.certificate_pem,
        }.items():
            Deployment.put(made, path, text, mode=0o644)
        made.start()
        ended = made.wait(timeout=300)
        assert ended["StatusCode"] == 0, made.logs(stdout=False).decode()
        both = json.loads(made.logs(stderr=False))
    finally:
        made.remove(force=True)
        engine.close()
    assert len(both) > len(ERRORS_OF_HTTPX)
    differing = {name: tuple(it.values()) for name, it in both.items() if it["httpx"] != it["aiohttp"]}
    cut_off = ([200, "ReadError", EVENT], [200, "RemoteProtocolError", EVENT])
    assert differing == dict.fromkeys(("cut off", "cut off, read late"), cut_off)
    assert {name: it["httpx"][1] for name, it in both.items() if name in ERRORS_OF_HTTPX} == ERRORS_OF_HTTPX
    assert both["connections of three requests"]["aiohttp"] == [1]
    assert both["an authority that SSL_CERT_FILE names"]["aiohttp"][0] == httpx2.codes.OK
