"""The lane for streams beside LiteLLM's own way: the same streams through both, and what a caller makes of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState

import app
from benchmarks.containers import container, network
from infra import gateway
from infra.images import stand_ins
from tests.stack_config import KEY, PROJECT
from tests.stacks import free_port, image_of
from tests.stream_provider import HEAD, STREAMS
from tests.swarm.cluster import until
from toolchain import engine as engines
from toolchain import images, recipes
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

PROVIDER_PORT = 8000
READY_SECONDS = 400
AT_ONCE = 8
PROVIDER = f"http://provider:{PROVIDER_PORT}"
RETRIES = yaml.safe_load((PROJECT / "litellm/config.yaml").read_text())["router_settings"]["retry_policy"][
    "AuthenticationErrorRetries"
]
KEYS = [
    *(("several", key) for key in ("refused-1", "none", "refused-2")),
    *(("all-refused", key) for key in ("refused-1", "refused-2")),
]
"""The deployments of two models."""
CONFIG: dict[str, Any] = {
    "model_list": [
        {"model_name": name, "litellm_params": {"api_key": "none", **parameters}}
        for name, parameters in [
            ("openai", {"model": "openai/gpt-4o", "api_base": f"{PROVIDER}/v1"}),
            ("vllm", {"model": "hosted_vllm/llama", "api_base": f"{PROVIDER}/v1"}),
            ("azure", {"model": "azure/deployed", "api_base": PROVIDER, "api_version": "2024-10-21"}),
            ("spoken", {"model": "openai/gpt-4o-audio-preview", "api_base": f"{PROVIDER}/v1"}),
            *(
                (name, {"model": f"openai/{name}", "api_base": f"{PROVIDER}/v1", "api_key": key})
                for name, key in KEYS
            ),
        ]
    ],
    "litellm_settings": {"callbacks": ["recorder.recorder"], "request_timeout": 60},
    "router_settings": {
        "num_retries": 0,
        "disable_cooldowns": True,
        "retry_policy": {"AuthenticationErrorRetries": RETRIES},
    },
    "general_settings": {"master_key": KEY},
}
RECORDER = """
import json

from litellm.integrations.custom_logger import CustomLogger


class Recorder(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        self.note("succeeded", kwargs)

    async def async_log_failure_event(self, kwargs, response_obj, start_time, end_time):
        self.note("failed", kwargs)

    def note(self, how, kwargs):
        it = kwargs.get("standard_logging_object") or {}
        response = it.get("response")
        if isinstance(response, dict):
            response = {key: value for key, value in response.items() if key not in ("id", "created")}
        usage = [it.get(key) for key in ("prompt_tokens", "completion_tokens", "total_tokens", "response_cost")]
        text = kwargs["messages"][-1]["content"]
        print("EVENT", json.dumps([text, it.get("end_user"), how, usage, response]), flush=True)


recorder = Recorder()
"""
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
"""The streams that are not the same through the lane, and why."""
GAINS_OF_1_55 = {
    "tools in parallel": "LiteLLM gives each piece a role, and the SDK makes 'assistantassistant' of them",
    "reasoning": "LiteLLM drops it",
    "names, ids and retries": "the SDK that it takes holds an event with a name for one of another API",
}
GAINS_OF_1_106_VLLM = {"several data lines": "LiteLLM's own reader takes each line for an event"}
NOT_SO = {("1.106.12", "vllm"): {"a bare data line"}}
"""What there is no difference in after all."""
COUNTED_OTHERWISE = {*BROKEN, "a bare data line", "no JSON", "names, ids and retries"}
COUNTED_OTHERWISE_IN_1_106 = {
    "several choices": "the answer that callbacks get has the text of all choices; its usage is the same",
}


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A LiteLLM that asks the table's provider."""

    release: str
    url: str
    container: Any

    def events(self) -> dict[tuple[str, str], Any]:
        """What its callback was told, by stream and by who asked."""
        lines = self.container.logs().decode().splitlines()
        events = [json.loads(line.removeprefix("EVENT ")) for line in lines if line.startswith("EVENT ")]
        return {(text, asked): self._certain(*rest) for text, asked, *rest in events}

    def _certain(self, how: str, usage: list[Any], response: dict[str, Any] | None) -> list[Any]:
        """Without what LiteLLM 1.55.0 tells by chance, as its threads race: the cost or 0, one of two models."""
        if self.release == "1.55.0":
            return [how, usage[:-1], {**(response or {}), "model": None}]
        return [how, usage, response]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A release of LiteLLM twice: with the lane, and in its own way."""

    release: str
    lane: Gateway
    own: Gateway
    provider: str

    def refused(self, model: str) -> int:
        """How often the provider was asked for a model with a key that it refuses."""
        return list(httpx2.get(f"{self.provider}/refused").json()).count(model)

    def left(self) -> int:
        """How many callers left the provider before the end."""
        return len(httpx2.get(f"{self.provider}/left").json())


@pytest.fixture(scope="module", params=["1.55.0", "1.106.12"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both ways of a release."""
    engine = engines.connect("")
    with contextlib.ExitStack() as stack:
        stack.callback(engine.close)
        image = _image(engine, request.param, tmp_path_factory)
        on = stack.enter_context(network(engine))
        port = free_port()
        stack.enter_context(
            container(
                engine,
                image,
                on=on,
                name="provider",
                entrypoint=("python3", "/provider.py"),
                command=(str(PROVIDER_PORT),),
                port=PROVIDER_PORT,
                published=port,
                files={"/provider.py": (PROJECT / "tests/stream_provider.py").read_text()},
            )
        )
        made = {}
        for way, environment in {"lane": gateway.FAST_STREAMS, "own": {}}.items():
            own_port = free_port()
            running = stack.enter_context(
                container(
                    engine,
                    image,
                    on=on,
                    name=way,
                    entrypoint=("python3", f"{gateway.PROGRAMS}/server.py"),
                    command=("--config", "/config/config.yaml", "--port", str(gateway.PORT)),
                    environment={**gateway.ENVIRONMENT, **environment},
                    port=gateway.PORT,
                    published=own_port,
                    files={
                        **{
                            f"{gateway.PROGRAMS}/{file.name}": file.read_text()
                            for file in PROJECT.glob("litellm/*.py")
                        },
                        "/config/config.yaml": json.dumps(CONFIG),
                        "/config/recorder.py": RECORDER,
                    },
                )
            )
            made[way] = Gateway(release=request.param, url=f"http://127.0.0.1:{own_port}", container=running)
        for each in made.values():
            _await_ready(each)
        yield Pair(release=request.param, provider=f"http://127.0.0.1:{port}", **made)


def _image(engine: Any, release: str, folder: pytest.TempPathFactory) -> str:
    if recipes.STAND_INS["litellm"].version == release:
        return image_of("litellm")
    reference = f"127.0.0.1:1/litellm:v{release}"  # which no registry has: what is built here stands in for it
    record = folder.mktemp("images") / ".images.yaml"
    with Steps() as steps:
        images.ensure(steps, engine, {"litellm": reference}, stack="any", ask=None, record=record)
    return stand_ins(record)[reference]


def _await_ready(made: Gateway) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(f"{made.url}{gateway.LIVELINESS}").status_code == httpx2.codes.OK:
                return
        made.container.reload()
        if made.container.status != "running" or time.monotonic() > deadline:
            raise RuntimeError(made.container.logs().decode()[-4000:])
        time.sleep(0.2)


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


async def both(pair: Pair, model: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every row through the lane and LiteLLM's own way."""
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

        return await asyncio.gather(*(row(name, usage=usage) for name, usage in ROWS))


@pytest.mark.parametrize("model", ["openai", "vllm", "azure"])
def test_what_a_caller_gets_is_the_same_but_for_what_is_listed(pair: Pair, model: str) -> None:
    """And what callbacks, and with them LiteLLM's spend, are told of it."""
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
    until(lambda: told <= pair.lane.events().keys() & pair.own.events().keys(), "each stream was told of")
    lane_events, own_events = pair.lane.events(), pair.own.events()
    otherwise = {name for name, who in told if lane_events[name, who] != own_events[name, who]}
    allowed = {*COUNTED_OTHERWISE, *(COUNTED_OTHERWISE_IN_1_106 if pair.release != "1.55.0" else ())}
    if pair.release != "1.55.0":
        allowed |= {"several data lines"}
        for who in (f"{model} False",):
            assert lane_events["several choices", who][:2] == own_events["several choices", who][:2]
    assert otherwise <= allowed, [
        (lane_events[key], own_events[key]) for key in told if key[0] in otherwise - allowed
    ]
    for name in BROKEN:
        assert lane_events[name, f"{model} False"][0] == "failed"


def ask(gateway_: Gateway, model: str, name: str, **more: Any) -> list[Any]:
    with OpenAI(base_url=gateway_.url, api_key=KEY, max_retries=0) as client:
        return list(
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": name}], stream=True, **more
            )
        )


def test_the_lane_is_on_where_it_should_be_and_off_where_it_should_be(pair: Pair) -> None:
    """Its chunks have the provider's time, those of LiteLLM's own way LiteLLM's."""
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
    """While words come, and while none does."""
    before = pair.left()
    with OpenAI(base_url=getattr(pair, way).url, api_key=KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="openai", messages=[{"role": "user", "content": name}], stream=True
        )
        assert any(chunk.choices and chunk.choices[0].delta.content for chunk in stream)
        stream.close()
    until(lambda: pair.left() == before + 1, "the provider is left")


@pytest.mark.parametrize("way", ["lane", "own"])
def test_a_refused_key_of_one_deployment_is_seen_by_nobody(pair: Pair, way: str) -> None:
    """Its deployment is asked once, and then not for a while; a model without another one tells its callers."""
    url, before = getattr(pair, way).url, {model: pair.refused(model) for model in ("several", "all-refused")}
    for _ in range(10):
        assert ask(getattr(pair, way), "several", "text")
    with OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        for _ in range(2):
            with pytest.raises(openai.AuthenticationError, match="no such key"):
                client.chat.completions.create(model="all-refused", messages=[{"role": "user", "content": "text"}])
    assert pair.refused("several") - before["several"] <= 2
    assert 2 <= pair.refused("all-refused") - before["all-refused"] <= 3
