"""The gateway, asked through the edge as its callers do."""

from __future__ import annotations

import json
import secrets
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import docker
import httpx2
import openai
import pytest
import yaml

from infra import demo, gateway
from infra.workload import LIVE
from tests.deploy.conftest import STACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.deploy.stack import DeployedStack, Instance

SECONDS = 60.0
CALLERS_PATHS = {
    *(
        f"{prefix}/{name}"
        for prefix in ("", "/v1", "/openai", "/openai/v1", "/openai/deployments/{model}")
        for name in (
            *("chat/completions", "completions", "embeddings", "moderations", "rerank", "responses", "models"),
            *("messages", "messages/count_tokens", "images/generations", "images/edits"),
            *("audio/speech", "audio/transcriptions", "audio/translations"),
        )
    ),
    *("/health/liveliness", "/health/readiness"),
}
"""All of LiteLLM's paths that are for callers; the others administer it, show its configuration, or cost money."""
REFUSED = 401
NOT_ALLOWED = "parameter_not_allowed"
"""The error code for a field that a request cannot set (litellm/guard.py)."""
CLOSED = 404
LIST_PATHS = (
    "import urllib.request\n"
    f"print(urllib.request.urlopen('http://127.0.0.1:{gateway.PORT}/openapi.json', timeout=30).read().decode())"
)


def connections(stack: DeployedStack, url: str) -> httpx2.Client:
    """Connections to an edge. Of its certificate only that it is the configured one: the name is the callers'."""
    verify: ssl.SSLContext | bool = True
    if stack.settings.tls_certificate is not None:
        verify = ssl.create_default_context(cadata=stack.settings.tls_certificate.get_secret_value())
        verify.check_hostname = False
        verify.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return httpx2.Client(base_url=url, verify=verify, trust_env=False, timeout=SECONDS)


@pytest.fixture(scope="module")
def edge_(stack: DeployedStack) -> Iterator[httpx2.Client]:
    """Connections to where callers reach the gateway."""
    with connections(stack, stack.outputs["litellmUrl"]) as client:
        yield client


def alive(client: httpx2.Client) -> str:
    """Why the gateway is not alive; empty when it is."""
    try:
        answer = client.get(gateway.LIVELINESS)
    except httpx2.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    return "" if answer.status_code == httpx2.codes.OK else f"{answer.status_code}: {answer.text}"


@pytest.fixture
def client(edge_: httpx2.Client) -> httpx2.Client:
    """The edge of a gateway that is alive."""
    if why := alive(edge_):
        pytest.skip(f"the gateway is not alive ({why}): see test_it_is_alive_through_the_edge")
    return edge_


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_it_is_alive_through_the_edge(stack: DeployedStack, edge_: httpx2.Client) -> None:
    why = alive(edge_)
    assert not why, (
        f"the gateway does not answer at {edge_.base_url}: {why}. See the checks of the containers, and: "
        f"{stack.look_into(stack.part('edge'))}. Then: {stack.up}"
    )


def not_clients_keys(stack: DeployedStack, kind: str) -> list[str | None]:
    """Keys of a kind that must not be accepted."""
    master = stack.rotating("master-key")
    match kind:
        case "none":
            return [None]
        case "a random one":
            return [f"sk-{secrets.token_hex(32)}"]
        case "the master key":
            return [master["value"], *filter(None, [master["previous"]])]
        case _:
            # The edge keeps those before the last change.
            container = stack.engine.containers.get(stack.part("edge").runs_as)
            code, before = container.exec_run(["cat", f"{LIVE}/old/clients.map"])
            assert isinstance(before, bytes)
            keys = [line.split()[0] for line in before.decode().splitlines()] if code == 0 else []
            valid = {key for keys in stack.client_keys().values() for key in keys}
            return [key for key in keys if key not in valid]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        # On a Swarm nothing keeps the keys that were valid before the last change.
        kept = metafunc.config.stash[STACK].settings.placement == "docker"
        kinds = ["none", "a random one", "the master key"]
        metafunc.parametrize("kind", [*kinds, "one that was retired"] if kept else kinds)


def test_without_a_clients_key_it_is_closed(stack: DeployedStack, client: httpx2.Client, kind: str) -> None:
    """401 without one, with one that nobody has, with the key that only the edge uses, and with a retired one."""
    keys = not_clients_keys(stack, kind)
    if not keys:
        pytest.skip("the last change of the edge's files retired no key, and earlier ones are not kept anywhere")
    for key in keys:
        answer = client.get("/v1/models", headers=bearer(key) if key else {})
        assert answer.status_code == REFUSED, (
            f"the edge answers {answer.status_code} instead of {REFUSED} to a request whose key is {kind}. "
            f"Give it its files again: {stack.recreate(stack.part('edge'))}"
        )


def test_each_key_of_each_client_opens_it(stack: DeployedStack, client: httpx2.Client) -> None:
    """The previous key too, until it is retired. Each sees the models of the outputs, or those of its limits."""
    for name, keys in stack.client_keys().items():
        limits = stack.settings.client_limits.get(name)
        for age, key in enumerate(keys):
            answer = client.get("/v1/models", headers=bearer(key))
            if answer.status_code == httpx2.codes.TOO_MANY_REQUESTS:
                continue  # the key is known: its rate or its budget is used up
            assert answer.status_code == httpx2.codes.OK, (
                f"key {age + 1} of client {name} gets {answer.status_code}. Give the edge its files again: "
                f"{stack.recreate(stack.part('edge'))}"
            )
            served = {model["id"] for model in answer.json()["data"]}
            deployed = set(stack.outputs["models"])
            expected = deployed & set(limits.models) if limits and limits.models else deployed
            assert served == expected, f"other models are served than deployed. Fix it: {stack.up}"


def test_what_administers_it_is_closed(stack: DeployedStack, client: httpx2.Client) -> None:
    """The edge knows none of the running LiteLLM's paths that callers do not need, whatever the method."""
    replicas = [instance for instance in stack.instances if instance.part.kind == "litellm"]
    reached = [instance for instance in replicas if instance.host is not None]
    if replicas and not reached:
        pytest.skip("it takes a replica to list the paths: see test_each_container_can_be_looked_into")
    description = next(filter(None, (listed_paths(stack, replica) for replica in reached)), None)
    assert description, f"no replica lists its paths. See: {look_into_a_replica(stack)}"
    paths = sorted({*json.loads(description)["paths"], "/docs", "/ui", "/metrics"} - CALLERS_PATHS)
    headers = bearer(stack.outputs["litellmApiKey"])
    # No JSON, so that LiteLLM refuses it where the edge does not, and this changes nothing.
    answers = {
        f"{method} {path}": client.request(
            method, path, headers=headers, content=b"{" if method == "POST" else None
        ).status_code
        for path in paths
        for method in ("GET", "POST")
    }
    opened = {request: status for request, status in answers.items() if status != CLOSED}
    assert not opened, (
        f"the edge accepts what is not for callers: {opened}. Remove it from edge/haproxy.cfg, then: {stack.up}"
    )


def test_a_request_sets_nothing(stack: DeployedStack, client: httpx2.Client) -> None:
    """A field that LiteLLM would read as its own setting is refused by name, and no provider is asked."""
    names = ("api_base", "fallbacks", "user_config")
    headers = bearer(stack.outputs["litellmApiKey"])
    bodies = [*({name: {}} for name in names), *({"metadata": {name: {}}} for name in names)]
    answers = [client.post("/v1/chat/completions", headers=headers, json=body) for body in bodies]
    let_in = [body for body, answer in zip(bodies, answers, strict=True) if NOT_ALLOWED not in answer.text]
    assert not let_in, f"clients can set {let_in}: no guard runs in the replicas. Fix it: {stack.up}"


def listed_paths(stack: DeployedStack, replica: Instance) -> str:
    """LiteLLM's description of its API; empty if the replica does not return one."""
    try:
        container = stack.engine_of(replica).containers.get(replica.container)
        code, printed = container.exec_run(["python3", "-ISc", LIST_PATHS], stderr=False)
    except docker.errors.APIError:
        return ""
    assert isinstance(printed, bytes)
    return printed.decode() if code == 0 else ""


def look_into_a_replica(stack: DeployedStack) -> str:
    return stack.look_into(next(part for part in stack.parts if part.kind == "litellm"))


def models_to_ask(stack: DeployedStack, *, embeds: bool, spend: bool) -> list[str]:
    """The models to ask: each that is served where that may `spend`, else one that costs nothing."""
    kind = "embeddings" if embeds else "chats"
    served: list[dict[str, Any]] = yaml.safe_load(stack.outputs["litellmConfig"])["model_list"]
    named = [model for model in served if "*" not in model["model_name"]]  # a pattern is for any of them
    fitting = [model for model in named if ("embed" in model["model_name"]) == embeds]
    if not fitting:
        pytest.skip(f"the stack serves no model for {kind}, as far as their names tell")
    names = list(dict.fromkeys(str(model["model_name"]) for model in fitting))
    if spend:
        return names
    free = [str(model["model_name"]) for model in fitting if _is_free(stack, model)]
    if not free:
        all_of_them = ", ".join(names)
        pytest.skip(
            f"it would cost money: all models for {kind} ({all_of_them}) are a provider's. "
            "To ask each: make check-deploy SPEND=1"
        )
    return free[:1]


def _is_free(stack: DeployedStack, model: dict[str, Any]) -> bool:
    """Whether the demo provider answers, or a server of the stack config that is said to cost nothing."""
    demos = {demo.NETWORK_NAME, *(part.runs_as for part in stack.parts if part.kind == demo.NETWORK_NAME)}
    if urlsplit(model["litellm_params"].get("api_base", "")).hostname in demos:
        return True
    parameters = model["litellm_params"]
    own = model["model_name"] in {it.name for it in stack.settings.models} and "api_base" in parameters
    return own and all(parameters.get(f"{kind}_cost_per_token") == 0 for kind in ("input", "output"))


@pytest.fixture
def spend(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("spend", default=False))


def sdk(stack: DeployedStack, client: httpx2.Client) -> openai.OpenAI:
    url = f"{stack.outputs['litellmUrl']}/v1"
    return openai.OpenAI(base_url=url, api_key=stack.outputs["litellmApiKey"], max_retries=0, http_client=client)


def test_a_chat_completion_is_answered(stack: DeployedStack, client: httpx2.Client, *, spend: bool) -> None:
    def ask(model: str) -> bool:
        answer = sdk(stack, client).chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Say hello."}]
        )
        return bool(answer.choices[0].message.content)

    _ask_each(stack, models_to_ask(stack, embeds=False, spend=spend), ask)


def test_an_embedding_is_made(stack: DeployedStack, client: httpx2.Client, *, spend: bool) -> None:
    def ask(model: str) -> bool:
        answer = sdk(stack, client).embeddings.create(model=model, input="hello", encoding_format="float")
        return any(answer.data[0].embedding)

    _ask_each(stack, models_to_ask(stack, embeds=True, spend=spend), ask)


def _ask_each(stack: DeployedStack, models: list[str], ask: Callable[[str], bool]) -> None:
    """Ask all, so that one that fails hides no other. `ask` says whether there is something in the answer."""
    wrong = []
    for model in models:
        try:
            wrong += [] if ask(model) else [f"{model} answers nothing"]
        except openai.OpenAIError as error:
            wrong.append(f"{model} does not answer: {error}")
    if wrong:
        pytest.fail(f"{'; '.join(wrong)}. {_advice(stack)}", pytrace=False)


def test_no_model_has_ended(stack: DeployedStack) -> None:
    """Its provider would refuse requests for it; litellm/retirements.yaml has the dates."""
    today = datetime.now(UTC).date().isoformat()
    gone = [
        f"{model['model_name']} ({model['litellm_params']['model']}, on {info['shutdown_date']})"
        for model in yaml.safe_load(stack.outputs["litellmConfig"])["model_list"]
        if (info := model.get("model_info", {})).get("shutdown_date", today + "-") <= today
    ]
    assert not gone, (
        f"their providers have ended {', '.join(gone)}. See what takes their place, then do it: {stack.up}"
    )


def _advice(stack: DeployedStack) -> str:
    return f"See what the provider said: {look_into_a_replica(stack)}"
