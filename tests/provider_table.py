"""Each provider of the page, asked through a gateway: the results, and who got which key.

The gateway reaches tests/provider_stub.py for all of them. The result is the table of docs/providers.md.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import re
from base64 import urlsafe_b64decode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.certificates import Certified, certify
from toolchain.maintenance import providers_page as page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from infra.providers import Provider

AT_ONCE = 4
HOSTS = (
    "*.openai.com", "*.openai.azure.com", "*.anthropic.com", "*.eu-central-1.amazonaws.com", "*.googleapis.com",
    "*.mistral.ai", "*.groq.com", "*.deepseek.com", "*.x.ai", "openrouter.ai", "*.together.xyz", "*.together.ai",
    "*.fireworks.ai", "*.cohere.ai", "*.cohere.com",
)  # fmt: skip
"""Everything that any release requests for the providers of the page."""
TEXT, VECTOR = "Good morning.", [0.25, -0.5, 0.75]
CALL = ("get_weather", {"city": "Paris"})
COUNTED = (19, 10)
"""Tokens of the prompt and the answer, in each recorded answer that has them."""
SAID = {429: "You exceeded your current quota.", 401: "", 400: ""}
"""The part of the provider's error that callers must get, by its status."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": CALL[0],
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
BUDGETED = ("budgeted", {"model": "anthropic/claude-sonnet-4-5"})
"""A model of Anthropic that is told how many tokens it may think for."""
ENDS = (
    ("anthropic", "fill the context", "length"),
    ("anthropic", "take a break", "pause_turn"),
    ("bedrock", "fill the context", "length"),
)
"""Why answers end that end neither normally nor at their limit, by the message that requests one."""
TOKEN = "ya29.the-token-that-was-exchanged"
REGION = "eu-central-1"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A provider of the page, as models of a gateway."""

    name: str
    """That of its model for chat; the one for vectors has `-vectors` behind."""
    prefix: str
    provider: Provider

    @property
    def host(self) -> str:
        """How to recognize the provider to which a recorded request was sent."""
        if self.provider.server:
            return rf"proxy/{self.name}/"
        return OF.get(self.prefix, rf"[\w.-]*{self.prefix.replace('_ai', '').replace('_chat', '')}[\w.-]*/")

    def entries(self, own: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Its models, by name, as the page has them; `own` is where servers of a team's own are."""
        it = self.provider
        parameters = {**it.needs, **it.parameters}
        if it.server:
            parameters["api_base"] = f"{own}/{self.name}{urlsplit(it.server).path}"
        yield self.name, {"model": f"{self.prefix}/{it.example}", **parameters}
        if it.embedding:
            yield f"{self.name}-vectors", {"model": it.embedding, **parameters}


OF = {
    "vertex_ai": r"(europe-west4-aiplatform|oauth2)\.googleapis\.com/",
    "gemini": r"generativelanguage\.googleapis\.com/",
    "openai": r"api\.openai\.com/",
    "azure": r"name\.openai\.azure\.com/",
    "xai": r"api\.x\.ai/",
    "bedrock": rf"bedrock-runtime\.{REGION}\.amazonaws\.com/",
}
ROWS = tuple(
    Row(name="compatible" if provider.server and prefix == "openai" else prefix, prefix=prefix, provider=provider)
    for prefix, provider in page.listed()
)
KEYS = {
    name: f"the-key-of-{name.lower().replace('_', '-')}"
    for row in ROWS
    for name in (row.provider.key, *row.provider.variables)
    if name
}
"""Every variable that the page names, each with another value."""


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """What the providers are known by, and what a gateway asks them with."""

    authority: Certified
    certificate: Certified
    account: str
    """Google's file of a service account."""
    public: rsa.RSAPublicKey

    @classmethod
    def made(cls) -> Secrets:
        authority, key = certify("a private authority"), rsa.generate_private_key(65537, 2048)
        form = serialization.PrivateFormat.PKCS8
        pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
        account = {
            "type": "service_account",
            "project_id": "PROJECT",
            "private_key_id": "1",
            "private_key": pem,
            "client_email": "gateway@project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": "https://oauth2.googleapis.com/token",
        }
        return cls(
            authority=authority,
            certificate=certify("providers", authority, names=HOSTS),
            account=json.dumps(account),
            public=key.public_key(),
        )


def asked(url: str, key: str, stub: str, secrets: Secrets) -> dict[str, dict[str, str]]:
    """What in the table is not true, by provider and column, each with what was seen."""
    httpx2.get(f"{stub}/recorded")
    with (
        httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120) as client,
        ThreadPoolExecutor(AT_ONCE) as threads,
    ):
        wrong = dict(zip((row.name for row in ROWS), threads.map(lambda row: _asked(client, row), ROWS), strict=True))
    recorded = httpx2.get(f"{stub}/recorded").json()
    for row in ROWS:
        if found := _keys(row, recorded, secrets):
            wrong[row.name]["key"] = found
    return wrong


def _asked(client: httpx2.Client, row: Row) -> dict[str, str]:
    messages = [{"role": "user", "content": "hello"}]
    thought = [{"role": "user", "content": "think it over"}]
    streamed = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    columns: dict[str, list[Callable[[], str]]] = {
        "chat": [lambda: _whole(client, row, messages=messages)],
        "stream": [lambda: _stream(client, row, **streamed)],
        "tools": [
            lambda: _whole(client, row, messages=messages, tools=TOOLS),
            lambda: _stream(client, row, **streamed, tools=TOOLS),
        ],
        "reasoning": [
            lambda: _whole(client, row, messages=thought),
            lambda: _stream(client, row, **{**streamed, "messages": thought}),
        ],
        "embedding": [lambda: _vector(client, row)] if row.provider.embedding else [],
        "broken off": [lambda: _half(client, row)],
        "error": [lambda status=status: _error(client, row, status) for status in SAID],  # type: ignore[misc]
    }
    found = {name: next(filter(None, (check() for check in checks)), "") for name, checks in columns.items()}
    return {name: wrong for name, wrong in found.items() if wrong}


def _whole(client: httpx2.Client, row: Row, **body: Any) -> str:
    answer = client.post("/v1/chat/completions", json={"model": row.name, **body})
    if answer.status_code != httpx2.codes.OK:
        return f"{answer.status_code} {answer.text[:300]}"
    content = answer.json()
    message = content["choices"][0]["message"]
    calls = [
        (it["function"]["name"], json.loads(it["function"]["arguments"])) for it in message.get("tool_calls") or ()
    ]
    usage = content["usage"]["prompt_tokens"], content["usage"]["completion_tokens"]
    right = calls == [CALL] if "tools" in body else message["content"] == TEXT
    return "" if right and usage == COUNTED else json.dumps(content)[:300]


def _stream(client: httpx2.Client, row: Row, **body: Any) -> str:
    answer = client.post("/v1/chat/completions", json={"model": row.name, **body})
    text, name, arguments, end, usage = "", "", "", None, None
    for line in answer.text.splitlines():
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            return line[:300]
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            end = choice.get("finish_reason") or end
            text += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls") or ():
                name += call["function"].get("name") or ""
                arguments += call["function"].get("arguments") or ""
    tools = "tools" in body
    right = (name, json.loads(arguments or "{}")) == CALL if tools else text == TEXT
    return "" if right and usage and end == ("tool_calls" if tools else "stop") else answer.text[:600]


def _half(client: httpx2.Client, row: Row) -> str:
    """What is wrong with how half a stream ends: it must be an error, and no "stop"."""
    body = {"model": row.name, "messages": [{"role": "user", "content": "half of it"}], "stream": True}
    answer = client.post("/v1/chat/completions", json=body)
    ended = re.search(r'"finish_reason": ?"', answer.text) is not None
    return "" if '"error"' in answer.text and not ended else answer.text[:600]


def changed(url: str, key: str, stub: str) -> list[str]:
    """Where an answer's end, a blank message or a limit is not what the provider or the caller sent."""
    with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120) as client:

        def sent(model: str, *contents: str, **body: Any) -> dict[str, Any]:
            """What the provider got for messages of a user, an assistant, a user, and so on."""
            roles = itertools.cycle(("user", "assistant"))
            messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
            httpx2.get(f"{stub}/recorded")
            client.post("/v1/chat/completions", json={"model": model, "messages": messages, **body})
            (request,) = httpx2.get(f"{stub}/recorded").json()
            return dict(json.loads(request["body"]))

        def texts(*contents: str) -> list[str]:
            return re.findall(r'"text": ?"([^"]*)"', json.dumps(sent("anthropic", *contents)["messages"]))

        found = [
            f"{model}: {words}: {ends}"
            for model, words, reason in ENDS
            for stream in (False, True)
            if (ends := _ends(client, model, words, stream=stream)) != [reason]
        ]
        found += [f"{blank!r} became {got}" for blank in ("", " ") if (got := texts(blank)) != [blank]]
        if (got := texts("one", "", "two")) != ["one", "two"]:
            found.append(f"a blank answer became {got}")
        model, _ = BUDGETED
        most, least = (sent(model, "hello", **how)["max_tokens"] for how in ({}, {"reasoning_effort": "low"}))
        return [*found, *([] if most == least else [f"{most} tokens became {least}"])]


def _ends(client: httpx2.Client, model: str, words: str, *, stream: bool) -> list[str]:
    body = {"model": model, "messages": [{"role": "user", "content": words}], "stream": stream}
    answer = client.post("/v1/chat/completions", json=body)
    return re.findall(r'"finish_reason": ?"(\w+)"', answer.text)


def _vector(client: httpx2.Client, row: Row) -> str:
    answer = client.post("/v1/embeddings", json={"model": f"{row.name}-vectors", "input": ["hello"]})
    right = answer.status_code == httpx2.codes.OK and answer.json()["data"][0]["embedding"] == VECTOR
    return "" if right else f"{answer.status_code} {answer.text[:300]}"


def _error(client: httpx2.Client, row: Row, status: int) -> str:
    body = {"model": row.name, "messages": [{"role": "user", "content": f"status={status}"}]}
    answer = client.post("/v1/chat/completions", json=body)
    right = answer.status_code == status and SAID[status] in answer.json()["error"]["message"]
    return "" if right else f"{status} became {answer.status_code} {answer.text[:300]}"


def _keys(row: Row, recorded: list[dict[str, Any]], secrets: Secrets) -> str:
    """Keys that were sent to the wrong provider, or were missing."""
    own = [it for it in recorded if re.match(row.host, it["host"] + it["path"])]
    if not own:
        return "nothing was asked of it"
    mine = {name for name in (row.provider.key, *row.provider.variables) if name} - {""}
    for request in own:
        whole = json.dumps(request)
        foreign = [name for name, value in KEYS.items() if value in whole and name not in mine]
        if foreign or "PRIVATE KEY" in whole:
            return f"{foreign} in {whole[:300]}"
        if wrong := _authorized(row, request, secrets):
            return f"{wrong}: {whole[:600]}"
    if row.prefix == "bedrock" and KEYS["AWS_SECRET_ACCESS_KEY"] in json.dumps(own):
        return "the secret key was sent"
    return ""


def _authorized(row: Row, request: dict[str, Any], secrets: Secrets) -> str:
    """What is wrong with the credentials of one request."""
    headers = {name.lower(): value for name, value in request["headers"].items()}
    sent = headers.get("authorization", "")
    if row.prefix == "bedrock":
        return _signature(request, headers)
    if row.prefix == "vertex_ai":
        if request["path"] == "/token":
            return _exchange(request["body"], secrets.public)
        return "" if sent == f"Bearer {TOKEN}" else "no token"
    if row.provider.server:
        return "" if sent in {"", "Bearer none"} else "a key of another"
    key = KEYS[row.provider.key or ""]
    places = {
        "azure": headers.get("api-key"),
        "anthropic": headers.get("x-api-key"),
        "gemini": headers.get("x-goog-api-key") or parse_qs(urlsplit(request["path"]).query).get("key", [""])[0],
    }
    return "" if places.get(row.prefix, sent.removeprefix("Bearer ").removeprefix("bearer ")) == key else "no key"


def _signature(request: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """What is wrong with a request's signature, by AWS' Signature Version 4."""
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/bedrock/aws4_request, SignedHeaders=([^,]+), "
        r"Signature=(\w+)",
        headers.get("authorization", ""),
    )
    if not found:
        return "no signature"
    who, day, region, names, signature = found.groups()
    place = urlsplit(request["path"])
    canonical = "\n".join(
        [
            "POST",
            quote(place.path, safe="/-_.~"),
            place.query,
            *(f"{name}:{headers[name].strip()}" for name in names.split(";")),
            "",
            names,
            hashlib.sha256(request["body"].encode()).hexdigest(),
        ]
    )
    scope = f"{day}/{region}/bedrock/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{KEYS['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{digest}"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    right = (KEYS["AWS_ACCESS_KEY_ID"], REGION, signature) == (who, region, key.hex())
    return "" if right else "a wrong signature"


def _exchange(body: str, public: rsa.RSAPublicKey) -> str:
    """What is wrong with the request for a token: a text that the service account has signed (RFC 7523)."""
    asked_with = parse_qs(body)
    head, claims, signature = asked_with["assertion"][0].split(".")
    try:
        public.verify(_bytes(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return "a wrong signature"
    said = json.loads(_bytes(claims))
    right = said["aud"] == "https://oauth2.googleapis.com/token" and "cloud-platform" in said["scope"]
    return "" if right and asked_with["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"] else str(said)


def _bytes(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))
