"""The edge as callers see it: TLS, who is accepted, for what, how much, and what refusals look like."""

from __future__ import annotations

import itertools
import json
import random
import re
import socket
import ssl
import string
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import docker
import httpx2
import openai
import pytest
import yaml
from openai import OpenAI

from infra import gateway
from tests import paths
from tests.edge_log import edge_log
from tests.stack_config import PROJECT
from tests.stacks import POLL_SECONDS, REPLICAS, deployed, free_port, paused
from tests.swarm.cluster import until
from toolchain import recipes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from openai.types.chat import ChatCompletion

    from tests.stacks import Deployment

MAX_BODY_MB = 1
RPM = 3
REPLICA_CONNECTIONS = 8
"""Used here instead of the edge's own number: this many streams fill it."""
ORIGIN = "https://app.example"
PART = 10_000
REQUEST_TIMEOUT_SECONDS = 5
"""LiteLLM's own; the edge waits a little longer."""
CONNECT_SECONDS = 60
RECOVERY_SECONDS = 60
FUZZED = 3000
ROUND_TRIPS = 50
HELD_SECONDS = 0.2
"""How long the kernel holds data back if it expects more."""
TICK_SECONDS = 1
"""LiteLLM gives up a provider that is silent for longer than REQUEST_TIMEOUT_SECONDS."""
NOBODY = 'server="nobody"'
"""The edge's last server, for requests that find no replica."""
FROM_A_REPLICA = b"server: uvicorn"
CONFIG = (PROJECT / "edge/haproxy.cfg").read_text()
REFUSALS = [
    *((int(status), body) for status, body in re.findall(r"status (\d{3}) .* (?:lf-)?string '([^']+)'", CONFIG)),
    *((413, body) for body in re.findall(r"proc.too_large '([^']+)'", CONFIG)),
    *((400, body.replace('\\"', '"')) for body in re.findall(r"status 400 .* lf-string .*'(\{[^'\n]+)'", CONFIG)),
]
"""What the edge says when it does not let a request through, or has no answer to it, with the status."""
ERRORS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
    **dict.fromkeys((500, 502, 503, 504), openai.InternalServerError),
    **dict.fromkeys((408, 413), openai.APIStatusError),
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, signed by itself, with its key beside it."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost -keyout gateway.key -out gateway.crt"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "gateway.crt"


class Provider(ThreadingHTTPServer):
    """A provider in this process that sends the next word of a stream once the caller has the previous one."""

    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), Answer)
        self.acknowledged = threading.Semaphore(0)


class Answer(BaseHTTPRequestHandler):
    """Streams as many words as the test acknowledges."""

    server: Provider

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for number in range(ROUND_TRIPS):
            self.chunk({"role": "assistant", "content": f"word{number} "})
            while not self.server.acknowledged.acquire(timeout=TICK_SECONDS):
                self.wfile.write(b": more is coming\n\n")
        self.chunk({}, "stop")
        self.wfile.write(b"data: [DONE]\n\n")

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        data = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "own", "choices": [choice]}
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    """Listens where replicas reach this machine, and nobody else does."""
    with closing(docker.from_env()) as engine:
        (settings,) = engine.networks.get("bridge").attrs["IPAM"]["Config"]
    with Provider(str(ip_network(settings["Subnet"])[1])) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def deployment(
    certificate: Path, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A stack with all features of the edge on, and shorter timeouts than usual."""

    def configure(made: Deployment) -> None:
        config = made.folder / "litellm/config.yaml"
        text, changes = re.subn(
            r"(?<=request_timeout: )\d+", str(REQUEST_TIMEOUT_SECONDS), config.read_text(), count=1
        )
        assert changes == 1
        config.write_text(text)
        program = made.folder / "infra/edge.py"
        text, changes = re.subn(
            r"(?<=^REPLICA_CONNECTIONS = )\d+", str(REPLICA_CONNECTIONS), program.read_text(), flags=re.MULTILINE
        )
        assert changes == 1
        program.write_text(text)
        made.set_path("corsOrigins[0]", ORIGIN)
        made.set_path("tlsCertificate", certificate.read_text(), secret=True)
        made.set_path("tlsKey", certificate.with_suffix(".key").read_text(), secret=True)
        made.set_path("clientKeys.batch", "", secret=True)
        made.set_path("clientRpm.batch", RPM)
        made.set_path("models[0].name", "own")
        made.set_path("models[0].model", "openai/own")
        made.set_path("models[0].apiBase", f"http://{gateway.HOST_NAME}:{provider.server_port}/v1")
        made.set(maxBodyMb=MAX_BODY_MB, metricsPort=free_port())

    with deployed(tmp_path_factory.mktemp("edge"), configure) as made:
        yield made


@pytest.fixture(scope="module")
def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


@pytest.fixture(scope="module")
def client(deployment: Deployment, trusting: ssl.SSLContext) -> Iterator[Callable[..., OpenAI]]:
    """Make clients of the OpenAI SDK, for any key."""
    with httpx2.Client(verify=trusting, timeout=60) as connections:

        def make(key: str | None = None) -> OpenAI:
            outputs = deployment.outputs
            return OpenAI(
                base_url=f"{outputs['litellmUrl']}/v1",
                api_key=key or outputs["litellmApiKey"],
                max_retries=0,
                http_client=connections,
            )

        yield make


def raw(deployment: Deployment, trusting: ssl.SSLContext, request: bytes, *, seconds: float = 5) -> bytes:
    """What the edge answers to some bytes, until it closes the connection or sends nothing more."""
    port = int(deployment.outputs["litellmUrl"].rsplit(":", 1)[1])
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", port), CONNECT_SECONDS) as plain,
        trusting.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.settimeout(seconds)
        try:
            connection.sendall(request)
            while part := connection.recv(65536):
                answer += part
                head, end, body = answer.partition(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if end and length and len(body) >= int(length[0].split(b":")[1]):
                    break
        except (TimeoutError, ConnectionError, ssl.SSLError):
            pass
    return answer


def in_parts(deployment: Deployment, trusting: ssl.SSLContext, size: int) -> httpx2.Response:
    """The answer to a prompt that is sent in parts, as a file or a pipe is."""

    def parts() -> Iterator[bytes]:
        yield b'{"model":"gpt-4o","messages":[{"role":"user","content":"'
        for start in range(0, size, PART):
            yield (b"hello " * PART)[: min(PART, size - start)]
        yield b'"}]}'

    return httpx2.post(
        f"{deployment.outputs['litellmUrl']}/v1/chat/completions",
        headers={
            "authorization": f"Bearer {deployment.outputs['litellmApiKey']}",
            "content-type": "application/json",
        },
        content=parts(),
        verify=trusting,
        timeout=60,
    )


def ask(client: OpenAI, text: str = "hello") -> ChatCompletion:
    return client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": text}])


def await_answers(client: OpenAI) -> None:
    """Wait until the gateway answers again."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while True:
        try:
            ask(client)
        except openai.InternalServerError:
            assert time.monotonic() < deadline
            time.sleep(POLL_SECONDS)
        else:
            return


def at_replicas(deployment: Deployment, what: str, labels: str = r'server="replica\d+"') -> int:
    """A metric of the edge, over all replicas or whatever else has such labels."""
    port = deployment.stack.get_config("metricsPort").value
    metrics = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
    values = re.findall(rf"^haproxy_server_{what}{{.*{labels}.*}} (\d+)", metrics, re.MULTILINE)
    assert values
    return sum(map(int, values))


@pytest.mark.parametrize(("status", "refusal"), REFUSALS)
def test_each_refusal_is_in_openais_form(status: int, refusal: str) -> None:
    """The SDK raises its class for the status, with a code and a message."""
    answer = httpx2.Response(status, text=refusal, headers={"content-type": "application/json"})
    with httpx2.Client(transport=httpx2.MockTransport(lambda _: answer)) as connections:
        client = OpenAI(base_url="http://edge/v1", api_key="sk-", max_retries=0, http_client=connections)
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client)
    assert type(caught.value) is ERRORS[status]
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.code
    assert caught.value.body["message"].endswith(".")


def test_no_other_refusal_is_made_by_the_edge() -> None:
    assert {status for status, _ in REFUSALS} == set(ERRORS)


def test_the_gateway_speaks_tls_and_http_2(deployment: Deployment, trusting: ssl.SSLContext) -> None:
    assert deployment.outputs["litellmUrl"].startswith("https://localhost:")
    port = int(deployment.outputs["litellmUrl"].rsplit(":", 1)[1])
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        trusting.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        assert connection.selected_alpn_protocol() == "h2"
        assert connection.version() in {"TLSv1.2", "TLSv1.3"}
    trusting.set_alpn_protocols(["http/1.1"])


def test_a_chat_passes_over_http_2(deployment: Deployment, certificate: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"oauth2-bearer = {deployment.outputs['litellmApiKey']}\n")
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]})
    asked = subprocess.run(
        [
            *("curl", "--silent", "--http2", "--cacert", str(certificate), "--config", str(tmp_path / "key")),
            *("--json", body, "--write-out", "%{http_version}"),
            f"{deployment.outputs['litellmUrl']}/v1/chat/completions",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert asked.stdout.endswith("}2")
    assert "You said: hello" in asked.stdout


def test_each_chunk_of_a_stream_goes_on_at_once(client: Callable[..., OpenAI], provider: Provider) -> None:
    """The provider waits for the caller before each chunk, so an edge that held chunks back would hold every one.

    On a busy machine not every chunk is that quick, but some are.
    """
    words, times = [], [time.monotonic()]
    for chunk in client().chat.completions.create(
        model="own", messages=[{"role": "user", "content": "hello"}], stream=True
    ):
        if chunk.choices and chunk.choices[0].delta.content:
            words.append(chunk.choices[0].delta.content)
            times.append(time.monotonic())
            provider.acknowledged.release()
    assert words == [f"word{number} " for number in range(ROUND_TRIPS)]
    trips = sorted(after - before for before, after in itertools.pairwise(times[1:]))
    print(f"\n{ROUND_TRIPS} round trips: {times[-1] - times[0]:.1f} s")
    assert trips[len(trips) // 10] < HELD_SECONDS / 2


def test_clients_chat_and_embed(client: Callable[..., OpenAI], deployment: Deployment) -> None:
    for key in deployment.outputs["clientKeys"].values():
        assert ask(client(key)).choices
    assert client().embeddings.create(model="text-embedding-3-small", input="hello", encoding_format="float").data


def test_a_key_that_no_client_has_is_an_authentication_error(
    client: Callable[..., OpenAI], deployment: Deployment
) -> None:
    """This includes the master key: the edge never accepts it."""
    for key in ("sk-" + "0" * 64, deployment.secret("master-key"), "no-key"):
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(client(key))
        assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    "path",
    [
        *("/model/info", "/v1/model/info", "/key/generate", "/config/yaml", "/health", "/routes", "/", "/docs"),
        *("/v1/models/../model/info", "/v1//models", "/v1/models//", "/v1/models%2f..%2fmodel/info", "/V1/models"),
        *(
            "/v1/v1/models",
            "/openai/key/generate",
            "/openai/deployments/../../key/generate",
            "/v1/responses/../key/list",
        ),
        *("/openai/deployments/x/../../key/embeddings", "/v1/responses/a%2fb", "/v1/responses/x/y", "/v1/messages/x"),
        *("/openapi.json", "/metrics", "/spend/logs", "/user/new", "/v1/chat/completions/../../key/list"),
    ],
)
def test_a_path_that_callers_do_not_need_is_not_found(
    path: str, deployment: Deployment, trusting: ssl.SSLContext
) -> None:
    key = deployment.outputs["litellmApiKey"]
    for method in ("GET", "POST"):
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        answer = raw(deployment, trusting, f"{head}Content-Length: 0\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404 "), answer
        assert b"unknown_url" in answer or b"model_not_found" in answer


def test_a_body_that_is_too_large_is_refused(client: Callable[..., OpenAI]) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client(), "x" * MAX_BODY_MB * 1_000_000)
    assert caught.value.status_code == 413
    assert f"{MAX_BODY_MB} MB" in caught.value.message


@pytest.mark.parametrize("size", [1, 200_000])
def test_a_body_of_unknown_length_is_answered(deployment: Deployment, trusting: ssl.SSLContext, size: int) -> None:
    """Just like one with a known length."""
    answer = in_parts(deployment, trusting, size)
    assert answer.status_code == 200, answer.text
    assert "You said: h" in answer.text


def test_a_body_of_unknown_length_that_grows_too_large_is_refused(
    deployment: Deployment, trusting: ssl.SSLContext
) -> None:
    """By the edge, and a replica gets no more of it than the largest accepted body."""
    sent = at_replicas(deployment, "bytes_in_total")
    answer = in_parts(deployment, trusting, 5 * MAX_BODY_MB * 1_000_000)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert at_replicas(deployment, "bytes_in_total") - sent < MAX_BODY_MB * 1_100_000


def test_a_body_of_unknown_length_passes_over_http_2(
    deployment: Deployment, certificate: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(f"oauth2-bearer = {deployment.outputs['litellmApiKey']}\n")
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]})
    asked = subprocess.run(
        [
            *("curl", "--silent", "--http2", "--cacert", str(certificate), "--config", str(tmp_path / "key")),
            *("--upload-file", "-", "--request", "POST", "--header", "content-type: application/json"),
            f"{deployment.outputs['litellmUrl']}/v1/chat/completions",
        ],
        check=True,
        input=body,
        capture_output=True,
        text=True,
    )
    assert "You said: hello" in asked.stdout


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat/completions/", "/chat/completions", "/openai/v1/chat/completions/"),
        "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
    ],
)
def test_a_path_may_be_written_otherwise(path: str, deployment: Deployment, trusting: ssl.SSLContext) -> None:
    """With a slash at its end, without /v1, or as Azure has it; the key too."""
    answer = httpx2.post(
        deployment.outputs["litellmUrl"] + path,
        headers={"api-key": deployment.outputs["litellmApiKey"]},
        json={"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]},
        verify=trusting,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


def test_the_page_says_what_this_release_serves(deployment: Deployment, trusting: ssl.SSLContext) -> None:
    """In docs/clients.md."""
    outputs = deployment.outputs
    version = recipes.STAND_INS["litellm"].version
    assert paths.served(outputs["litellmUrl"], outputs["litellmApiKey"], trusting) == paths.told(version)


def test_azures_sdk_asks(deployment: Deployment, trusting: ssl.SSLContext) -> None:
    with httpx2.Client(verify=trusting, timeout=60) as connections:
        client = openai.AzureOpenAI(
            azure_endpoint=deployment.outputs["litellmUrl"],
            api_key=deployment.outputs["litellmApiKey"],
            api_version="2024-10-21",
            max_retries=0,
            http_client=connections,
        )
        assert ask(client).choices
        assert client.embeddings.create(model="text-embedding-3-small", input="hello", encoding_format="float").data


def test_a_model_is_found_by_its_name(client: Callable[..., OpenAI]) -> None:
    """With every release of LiteLLM. A model that is not served is not found."""
    told = {model.id: model for model in client().models.list()}
    assert client().models.retrieve("gpt-4o") == told["gpt-4o"]
    with pytest.raises(openai.NotFoundError) as caught:
        client().models.retrieve("gpt4o")
    assert caught.value.code == "model_not_found"


def test_pages_of_an_allowed_origin_may_ask(deployment: Deployment, trusting: ssl.SSLContext) -> None:
    """The edge answers the browser's preflight request. Answers have one set of headers; other origins get none."""
    url = f"{deployment.outputs['litellmUrl']}/v1/chat/completions"
    key = {"authorization": f"Bearer {deployment.outputs['litellmApiKey']}"}
    before = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-other"}
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
    with httpx2.Client(verify=trusting, timeout=60) as browser:
        for origin, allowed in ((ORIGIN, [ORIGIN]), ("https://other.example", [])):
            asked = browser.options(url, headers={"origin": origin, **before})
            assert asked.status_code == (200 if allowed else 401)
            assert asked.headers.get("access-control-allow-headers") == (
                before["access-control-request-headers"] if allowed else None
            )
            for answer in (
                asked,
                browser.post(url, headers={"origin": origin, **key}, json=body),
                browser.post(url, headers={"origin": origin}, json=body),
            ):
                assert answer.headers.get_list("access-control-allow-origin") == allowed


def test_a_client_that_used_its_rate_is_told_when_to_come_back(
    client: Callable[..., OpenAI], deployment: Deployment
) -> None:
    """Only that client, and refused requests do not count. It may ask again when the clock's next minute begins."""
    batch = client(deployment.outputs["clientKeys"]["batch"])
    times = []

    def use_rate() -> None:
        for _ in range(2 * RPM + 1):
            times.append(int(time.time()))
            ask(batch)

    with pytest.raises(openai.RateLimitError) as caught:
        use_rate()
    seconds = int(caught.value.response.headers["retry-after"])
    assert f"may make {RPM} requests a minute, and has made them. Ask again in {seconds} s." in str(caught.value)
    assert 0 in {(now + seconds) % 60 for now in range(times[-1], int(time.time()) + 1)}
    assert ask(client()).choices


def test_a_caller_without_a_key_keeps_no_connection(deployment: Deployment, trusting: ssl.SSLContext) -> None:
    answer = raw(deployment, trusting, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer.lower()


def test_a_caller_who_leaves_before_the_answer_is_waited_for_no_longer(
    client: Callable[..., OpenAI], deployment: Deployment
) -> None:
    """The replica is free at once, and the log says who left."""
    path = "/v1/chat/completions/"  # by which nobody else leaves: callers of other tests do, during an answer
    with pytest.raises(openai.APITimeoutError):
        client().with_options(timeout=1).post(
            path.removeprefix("/v1"),
            cast_to=object,
            body={
                "model": "gpt-4o",
                "messages": [{"role": "user", "content": f"[[demo delay={REQUEST_TIMEOUT_SECONDS - 1}]]"}],
            },
        )
    while not (left := [it for it in edge_log(deployment) if it["client_left"] and it["path"] == path]):
        time.sleep(POLL_SECONDS)
    assert [entry["client"] for entry in left] == ["app"]
    assert left[0]["ms_first_byte"] < 0


def test_as_many_streams_as_there_is_room_for_and_no_more(
    client: Callable[..., OpenAI], deployment: Deployment, provider: Provider
) -> None:
    """None of those is refused or cut. A further one is refused at once, with the time when it may ask again."""
    room = REPLICA_CONNECTIONS * len(REPLICAS)

    def stream() -> int:
        chunks = client().chat.completions.create(
            model="own", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        return sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks)

    with ThreadPoolExecutor(room) as others:
        streams = [others.submit(stream) for _ in range(room)]
        while at_replicas(deployment, "current_sessions") < room:
            assert not any(each.done() for each in streams)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client())
        provider.acknowledged.release(room * ROUND_TRIPS)
        assert [each.result() for each in streams] == [ROUND_TRIPS] * room
    assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert ask(client()).choices


def test_a_client_that_is_slow_is_cut_off(deployment: Deployment, trusting: ssl.SSLContext) -> None:
    """It gets 408 in OpenAI's form when its request has not arrived in time."""
    key = deployment.outputs["litellmApiKey"]
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 100"
    answer = raw(deployment, trusting, f"{head}\r\n\r\n{{".encode(), seconds=60)
    assert answer.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 400 "))
    assert b'{"error":' in answer


def test_what_is_not_http_is_refused(deployment: Deployment, trusting: ssl.SSLContext) -> None:
    """With HAProxy's own message, because it reads no further and does not know the API's format."""
    answer = raw(deployment, trusting, b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_nothing_gets_through_that_should_not(deployment: Deployment, trusting: ssl.SSLContext) -> None:
    """Thousands of broken, tricky and forged requests: no replica gets one of them."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    key = deployment.outputs["litellmApiKey"]
    forged = [
        "Bearer sk-" + "0" * 64,
        f"Basic {key}",
        f"Bearer  {key}x",
        f"{key[:-1]}",
        "Bearer",
        "",
        f"bearer\t{key}z",
    ]
    methods = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "CONNECT", "get", "X" * 40]
    paths = [
        "/v1/chat/completions",
        "/v1/models",
        "/key/generate",
        "/model/info",
        "/health",
        "*",
        "http://litellm:4000/key/list",
    ]
    tricks = [
        "",
        "/..",
        "/%2e%2e/key/list",
        ";x",
        "//",
        "\\",
        "%00",
        "?x=/health/liveliness",
        "#",
        "/./",
        "%",
        "\t",
        "é",
    ]
    headers = [
        "Content-Length: -1",
        "Content-Length: 5\r\nContent-Length: 6",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Transfer-Encoding: xchunked",
        "Host: litellm\r\nHost: x",
        "X-Litellm-Api-Key: {key}",
        "Api-Key: {key}x",
        "X-Original-Url: /health/liveliness",
        "X-Http-Method-Override: GET",
        "Connection: authorization",
        "Upgrade: h2c\r\nConnection: upgrade, http2-settings",
        " folded: x",
        "\x00: y",
        "A" * 9000 + ": b",
    ]
    statuses: dict[str, int] = {}
    before = at_replicas(deployment, "sessions_total")
    for _ in range(FUZZED):
        lines = [
            f"{chance.choice(methods)} {chance.choice(paths)}{chance.choice(tricks)} HTTP/1.{chance.choice('0112')}"
        ]
        lines.append(f"Authorization: {chance.choice(forged)}")
        lines += [each.replace("{key}", key) for each in chance.sample(headers, chance.randrange(4))]
        request = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")
        if chance.random() < 0.3:
            position = chance.randrange(len(request))
            request = request[:position] + chance.choice(string.printable).encode() + request[position + 1 :]
        answer = raw(deployment, trusting, request, seconds=0.3)
        assert FROM_A_REPLICA not in answer.lower(), (seed, request, answer)
        status = answer[9:12].decode() if answer else "closed"
        statuses[status] = statuses.get(status, 0) + 1
    print(f"\n{FUZZED} fuzzed requests, seed {seed}: {dict(sorted(statuses.items()))}")
    assert not statuses.keys() & {"200", "500", "502", "503"}
    assert at_replicas(deployment, "sessions_total") == before


def test_the_access_log_names_client_and_model_and_no_key(
    client: Callable[..., OpenAI], deployment: Deployment
) -> None:
    client().chat.completions.create(
        model="claude-3-5-sonnet", messages=[{"role": "user", "content": "a secret prompt"}]
    )

    def last() -> dict[str, Any]:
        return [entry for entry in edge_log(deployment) if entry["client"] == "app"][-1]

    until(lambda: last()["model"] == "claude-3-5-sonnet", "it is logged")
    assert (last()["status"], last()["path"]) == (200, "/v1/chat/completions")
    assert last()["ms_total"] >= 0
    log = deployment.container("edge").logs().decode()
    for secret in (*deployment.outputs["clientKeys"].values(), deployment.secret("master-key"), "a secret prompt"):
        assert secret not in log


def test_metrics_are_on_a_loopback_port_of_their_own(deployment: Deployment) -> None:
    port = deployment.stack.get_config("metricsPort").value
    metrics = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'haproxy_frontend_http_responses_total{proxy="gateway",code="2xx"}' in metrics
    assert "gateway" in httpx2.get(f"http://127.0.0.1:{port}/").text


def test_alert_rules_and_the_dashboard_query_metrics_that_exist(
    client: Callable[..., OpenAI], deployment: Deployment, provider: Provider
) -> None:
    """Each metric, label and value, because Prometheus accepts a query for others and silently finds nothing."""
    provider.acknowledged.release(ROUND_TRIPS)
    unpriced = client().chat.completions.create(
        model="own", messages=[{"role": "user", "content": "hello"}], stream=True
    )
    assert list(unpriced)
    with pytest.raises(openai.InternalServerError):
        ask(client(), "[[demo status=500]]")
    ask(client())
    port = deployment.stack.get_config("metricsPort").value

    def samples() -> list[tuple[str, dict[str, str]]]:
        pages = [httpx2.get(f"http://127.0.0.1:{port}/metrics{path}").text for path in ("", "/usage")]
        lines = re.findall(r"^(\w+)\{(.*)\} \S+$", "\n".join(pages), re.MULTILINE)
        return [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels))) for name, labels in lines]

    usage = re.findall(r'"(llm_gateway_\w+_total)"', (PROJECT / "litellm/usage.py").read_text(encoding="utf-8"))
    until(lambda: set(usage) <= {name for name, _ in samples()}, "each counter of usage has counted")
    groups = yaml.safe_load((PROJECT / "monitoring/alerts.yaml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    board = json.loads((PROJECT / "monitoring/dashboard.json").read_text(encoding="utf-8"))
    queries = [rule["expr"] for rule in rules]
    queries += [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    queries += [variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    there = samples()
    assert len(queries) > len(rules) > 0
    assert [query for query in queries if missing(query, there)] == []
    assert [rule for rule in rules if not (PROJECT / rule["annotations"].get("runbook", "README.md")).exists()] == []


def missing(query: str, samples: list[tuple[str, dict[str, str]]]) -> set[str]:
    """The parts of a PromQL query that samples do not have: a metric with such labels, or a label to group by."""
    of_prometheus = {"job", "instance"}
    lost = set()
    groups = {label.strip() for each in re.findall(r"\bby \(([^)]*)\)", query) for label in each.split(",")}
    for name, selector in re.findall(r"\b((?:haproxy|llm_gateway)_\w+)(?:\{([^}]*)\})?", query):
        wanted = {
            label: ".*" if value.startswith("$") else value if operator == "=~" else re.escape(value)
            for label, operator, value in re.findall(r'(\w+)(=~?)"([^"]*)"', selector)
            if label not in of_prometheus
        }
        found = [
            labels
            for metric, labels in samples
            if metric == name
            and all(label in labels and re.fullmatch(value, labels[label]) for label, value in wanted.items())
        ]
        if not found:
            lost.add(name)
        elif not groups - of_prometheus <= set.intersection(*map(set, found)):
            lost.add(f"{name} by {groups}")
    return lost


def test_the_replicas_counters_are_in_one_place(client: Callable[..., OpenAI], deployment: Deployment) -> None:
    """By client and model, however often they are read, and not on the gateway's own port."""
    port = deployment.stack.get_config("metricsPort").value
    of = 'client="app",model="gpt-4o"'

    def sample(name: str, labels: str) -> float:
        text = httpx2.get(f"http://127.0.0.1:{port}/metrics/usage").text
        assert 'llm_gateway_replicas{state="counted"} 2' in text
        assert 'llm_gateway_replicas{state="silent"} 0' in text
        assert text.count(f"# TYPE {name} counter") == 1
        return sum(map(float, re.findall(rf"^{name}{{.*{labels}.*}} (\S+)$", text, re.MULTILINE)))

    before = sample("llm_gateway_tokens_total", f'{of}.*type="prompt"')
    usage = ask(client()).usage
    assert usage
    wanted = before + usage.prompt_tokens
    until(lambda: sample("llm_gateway_tokens_total", f'{of}.*type="prompt"') >= wanted, "the answer is counted")
    assert sample("llm_gateway_calls_total", f'{of}.*status="success"') > 0
    assert sample("llm_gateway_cost_usd_total", of) > 0
    for path in ("/metrics/usage", "/llm-gateway/metrics"):
        with pytest.raises(openai.NotFoundError):
            client().get(f"{deployment.outputs['litellmUrl']}{path}", cast_to=object)


def test_a_gateway_without_a_replica_says_so(client: Callable[..., OpenAI], deployment: Deployment) -> None:
    """503 in OpenAI's form, after it has looked for one for some seconds."""
    replicas = [deployment.container(part) for part in REPLICAS]
    for replica in replicas:
        replica.stop(timeout=30)
    looked = at_replicas(deployment, "connection_attempts_total", NOBODY)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client())
    assert caught.value.status_code == 503
    assert caught.value.code == "service_unavailable"
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert at_replicas(deployment, "connection_attempts_total", NOBODY) - looked > 1
    for replica, part in zip(replicas, REPLICAS, strict=True):
        replica.start()
        deployment.await_restart(part, 0)
    await_answers(client())


@pytest.mark.parametrize("words", [1, 20_000], ids=["small", "more than 64 KB"])
def test_a_request_that_finds_no_replica_waits_for_one(
    client: Callable[..., OpenAI], deployment: Deployment, words: int
) -> None:
    """A replica that is there within seconds answers it."""
    replicas = [deployment.container(part) for part in REPLICAS]
    ((name, attached),) = replicas[0].attrs["NetworkSettings"]["Networks"].items()
    network = deployment.engine.networks.get(name)

    def attach() -> None:
        for replica in replicas:
            replica.reload()
            if name not in replica.attrs["NetworkSettings"]["Networks"]:
                network.connect(replica, aliases=attached["Aliases"])

    try:
        for replica in replicas:
            network.disconnect(replica)
        while at_replicas(deployment, "status", r'server="replica\d+",state="UP"'):
            time.sleep(POLL_SECONDS)
        with ThreadPoolExecutor() as others:
            looked = at_replicas(deployment, "connection_attempts_total", NOBODY)
            asked = others.submit(ask, client(), "hello " * words)
            while at_replicas(deployment, "connection_attempts_total", NOBODY) == looked:
                assert not asked.done(), asked.result()
            attach()
            assert asked.result().choices
    finally:
        attach()
    await_answers(client())


def test_a_request_that_cannot_be_repeated_fails_with_the_replica_that_had_it(
    client: Callable[..., OpenAI], deployment: Deployment
) -> None:
    """502 in OpenAI's form, for a request of more than 64 KB."""
    pids = {part: deployment.container(part).attrs["State"]["Pid"] for part in REPLICAS}
    large = f"[[demo delay={REQUEST_TIMEOUT_SECONDS - 1}]]" + " hello" * 20_000
    with ThreadPoolExecutor() as others:
        asked = others.submit(ask, client(), large)
        while not at_replicas(deployment, "current_sessions"):
            assert not asked.done(), asked.result()
        for part in REPLICAS:
            deployment.kill(part)
        with pytest.raises(openai.InternalServerError) as caught:
            asked.result()
    assert caught.value.status_code == 502
    assert caught.value.code == "bad_gateway"
    for part, pid in pids.items():
        deployment.await_restart(part, pid)
    await_answers(client())


def test_a_provider_that_hangs_is_given_up_by_litellm(client: Callable[..., OpenAI]) -> None:
    """The provider is asked once, and LiteLLM's answer arrives: the edge waits only a little longer."""
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client(), f"[[demo delay={REQUEST_TIMEOUT_SECONDS * 10}]]")
    assert caught.value.status_code == 408


def test_a_replica_that_hangs_is_not_waited_for_without_end(
    client: Callable[..., OpenAI], deployment: Deployment, trusting: ssl.SSLContext
) -> None:
    """504 in OpenAI's form, a little after LiteLLM's own time is up, and within seconds to a load balancer.

    It may only be busy, so it is not removed.
    """
    with paused(*(deployment.container(part) for part in REPLICAS)):
        url = f"{deployment.outputs['litellmUrl']}/health/liveliness"
        alive = httpx2.get(url, verify=trusting, timeout=REQUEST_TIMEOUT_SECONDS * 4)
        assert alive.status_code == 504
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client())
        assert at_replicas(deployment, "status", r'server="replica\d+",state="UP"') == len(REPLICAS)
    assert caught.value.status_code == 504
    assert caught.value.code == "gateway_timeout"
    await_answers(client())
