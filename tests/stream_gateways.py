"""LiteLLM with and without the lane for streams, with the table's provider (tests/stream_provider.py)."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import yaml

from benchmarks.containers import container, network
from engine.connection import connect
from engine.image_names import stand_ins
from infra import gateway, programs
from tests.stack_config import KEY, PROJECT
from tests.stacks import free_port, image_of, stand_in_for
from toolchain import recipes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROVIDER_PORT = 8000
READY_SECONDS = 400
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


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A LiteLLM that asks the table's provider."""

    release: str
    url: str
    container: Any

    def events(self) -> dict[tuple[str, str], list[Any]]:
        """Everything that its callback got, by stream and caller."""
        told: dict[tuple[str, str], list[Any]] = {}
        for line in self.container.logs().decode().splitlines():
            if line.startswith("EVENT "):
                text, asked, *rest = json.loads(line.removeprefix("EVENT "))
                told.setdefault((text, asked), []).append(self._certain(*rest))
        return told

    def usage(self, call: str) -> list[dict[str, Any]]:
        """The lines that it wrote about a call."""
        lines = [line for line in self.container.logs().decode().splitlines() if line.startswith('{"event": "usage"')]
        return [event for event in map(json.loads, lines) if event["call_id"] == call]

    def _certain(self, how: str, usage: list[Any], response: dict[str, Any] | None) -> list[Any]:
        """Without what is random in LiteLLM 1.55.0, whose threads race: the cost or 0, one of two models."""
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


@contextlib.contextmanager
def pair_of(release: str, folder: Path) -> Iterator[Pair]:
    """Start both ways of a release; `folder` is for the record of its image."""
    engine = connect("")
    with contextlib.ExitStack() as stack:
        stack.callback(engine.close)
        image = _image(engine, release, folder)
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
                    entrypoint=("python3", programs.RUN, "server"),
                    command=("--config", "/config/config.yaml", "--port", str(gateway.PORT)),
                    environment={**gateway.ENVIRONMENT, **environment},
                    port=gateway.PORT,
                    published=own_port,
                    files={
                        **{path: file.read_text(encoding="utf-8") for path, file in programs.files().items()},
                        "/config/config.yaml": json.dumps(CONFIG),
                        "/config/recorder.py": RECORDER,
                    },
                )
            )
            made[way] = Gateway(release=release, url=f"http://127.0.0.1:{own_port}", container=running)
        for each in made.values():
            _await_ready(each)
        yield Pair(release=release, provider=f"http://127.0.0.1:{port}", **made)


def _image(engine: Any, release: str, folder: Path) -> str:
    if recipes.STAND_INS["litellm"].version == release:
        return image_of("litellm")
    record = folder / ".images.yaml"
    recipe = next(it for it in recipes.UPGRADES if it.version == release)
    reference = stand_in_for(recipe, engine, record)
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
