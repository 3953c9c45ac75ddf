"""What the LiteLLM of this process is like: which fields of a request are settings of its own, and what it serves.

The names come from LiteLLM: its lists, its models of a deployment, what its functions take, and what the modules that
a request goes through read from it. Fields that it does not know go to the provider, for example new fields of an
API.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

GEMINI = "Gemini's own, sent on"
ALLOWED = {
    "metadata": "the caller's own labels; its entries are checked by name too",
    "tags": "labels for the logs",
    **dict.fromkeys(("user_id", "request_id", "client_metadata"), "labels for the provider: zai, vLLM, Codex"),
    **dict.fromkeys(("format", "images", "keep_alive", "think"), "Ollama's own, sent on"),
    **dict.fromkeys(("input_type", "document", "method"), "Cohere's and Voyage's own, sent on"),
    **dict.fromkeys(("cached_content", "contents", "labels", "response_schema", "safety_settings"), GEMINI),
    **dict.fromkeys(("generationConfig", "systemInstruction", "toolConfig"), GEMINI),
    **dict.fromkeys(("system_instruction", "tool_config", "video"), GEMINI),
    **dict.fromkeys(("imageGenerationConfig", "negativeText", "taskType"), "Amazon's own, sent on"),
    **dict.fromkeys(("after", "before", "limit", "order"), "which part of a list is asked for"),
    **dict.fromkeys(("filter", "index", "name", "text_format"), "words of many APIs; LiteLLM reads them elsewhere"),
}
"""What LiteLLM reads and clients may send, with the reason. What OpenAI and Anthropic publish comes on top."""

ALLOWED_IN_METADATA = {
    "tags": ALLOWED["tags"],
    "user_id": "Anthropic's own field, sent on",
    "session_id": "a label that groups requests",
    "trace_id": "a label that groups requests",
    "trace_name": "a label",
    "generation_name": "a label",
    "name": "a label",
    "id": "a label",
    "type": "a label",
    "status": "a label",
    "project_name": "a label",
    "version": "a label",
    "user": "a label",
}
"""The same, within `metadata`."""
REFUSED_EVERYWHERE = {"api_base", "api_key", "base_url", "custom_llm_provider", "fallbacks", "user_config"}
"""Names that are found in each release. A release without them works differently, and is refused."""

READERS = (
    "main.py",
    "router.py",
    "utils.py",
    "router_utils",
    "router_strategy",
    "litellm_core_utils",
    "caching",
    "images/*.py",
    "responses/*.py",
    "rerank_api",
    "proxy/*.py",
    "proxy/auth",
    "proxy/common_utils",
    "proxy/hooks",
    "proxy/*_endpoints/endpoints.py",
)
"""The parts of LiteLLM that a request goes through before a provider's own."""
REQUEST = r"(?:kwargs|data|request_data|request_body|request_kwargs|litellm_params|passed_params)"
"""What LiteLLM calls a request there."""
READS = re.compile(
    rf"""\b{REQUEST}(?:\.get\(|\.pop\(|\[)\s*["']([\w-]+)["']|["']([\w-]+)["']\s+(?:not\s+)?in\s+{REQUEST}\b"""
)
METADATA_READS = re.compile(r"""\b_?(?:litellm_)?metadata(?:\.get\(|\.pop\(|\[)\s*["']([\w-]+)["']""")
ID = re.compile(r"[\w=-]{1,2000}")
OF_A_PROVIDER = re.compile(
    r"(aws|azure|bedrock|databricks|gcs|oci|predibase|s3|sagemaker|snowflake|vertex|watsonx|wx|zen)_"
    r"|\w+_(api_base|api_key|base_url|credentials|access_token|secret|secret_key)$|_|litellm_"
)
"""Names that say where a provider is, or who asks it, and LiteLLM's internal ones. They are refused even if not
found."""
KEPT = re.compile(r"""\boptional_params\.pop\(\s*["']([\w-]+)["']""")
"""What a provider's part of LiteLLM takes out of the fields that it sends on, to use it itself."""
CONNECTION = re.compile(
    r"""\boptional_params(?:\.get\(|\[)\s*["']((?:aws|azure|vertex|api|base)_\w+|\w+_(?:url|base))["']"""
)
"""How such a part names where to connect to, and as whom."""
CALLS = (
    "anthropic_messages", "completion", "embedding", "image_edit", "image_generation", "moderation", "rerank",
    "responses", "speech", "text_completion", "transcription",
)  # fmt: skip
"""LiteLLM's functions, and its router's, that a request becomes the arguments of."""
PUBLISHED = (
    "audio.speech_create_params", "audio.transcription_create_params", "audio.translation_create_params",
    "chat.completion_create_params", "completion_create_params", "embedding_create_params", "image_edit_params",
    "image_generate_params", "moderation_create_params", "responses.response_create_params",
)  # fmt: skip
"""The modules of OpenAI's SDK that list the fields of its API."""


TOLD = ("shutdown_date", "successor", "replaces", "owned_by", "price", "refuses")
"""Fields of a model's `model_info` (infra/model_table.py)."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """What the guard knows of the LiteLLM that runs."""

    version: str
    settings: frozenset[str]
    """The fields of a request that are LiteLLM's own."""
    metadata_settings: frozenset[str]
    """Those within `metadata`."""
    key_headers: frozenset[bytes]
    text_only: bool
    """Whether its /v1/messages loses what is not text."""
    served: Callable[[str], bool] = field(repr=False)
    """Whether a model is served."""
    models: Callable[[], Iterable[str]] = field(repr=False)
    told: Callable[[], dict[str, dict[str, Any]]] = field(repr=False)
    """What is known of the provider's model behind a name, by TOLD."""
    refused: Callable[[object], dict[str, str]] = field(repr=False)
    """The parameters that the provider of a model refuses, and what becomes of each (infra/model_list.py)."""
    gave: Callable[[str], bool] = field(repr=False)
    """Whether an answer of that id can be one that a deployment of this gateway gave."""
    moderates: Callable[[], bool] = field(repr=False)
    """Whether a moderation without a model finds its provider's key."""
    loads: Callable[[bytes], Any] = field(repr=False)


def told(deployments: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is known of the models of a router's list, by name: as at the edge, of its first deployment."""
    return {
        each["model_name"]: {it: each["model_info"][it] for it in TOLD if each["model_info"].get(it)}
        for each in reversed(deployments)
    }


def refused(router: Any, model: object) -> dict[str, str]:
    """What becomes of each parameter that a deployment of a router's model refuses."""
    if router is None or not isinstance(model, str):
        return {}
    alias = (router.model_group_alias or {}).get(model, model)
    name = alias.get("model") if isinstance(alias, dict) else alias
    of = [each["model_info"].get("refuses") or {} for each in router.model_list if each["model_name"] == name]
    return {parameter: fate for each in of for parameter, fate in each.items()}


def running() -> Release:
    """What the guard must know about the LiteLLM in this process. Raises if it cannot find out."""
    litellm, proxy = importlib.import_module("litellm"), importlib.import_module("litellm.proxy.proxy_server")
    orjson = importlib.import_module("orjson")
    settings, metadata_settings = settings_of(litellm)
    if not settings >= REFUSED_EVERYWHERE:
        raise RuntimeError("LiteLLM's settings cannot be told from the fields that go to a provider")

    def names() -> set[str]:
        router = proxy.llm_router
        return set() if router is None else {*router.model_names, *(router.model_group_alias or ())}

    def served(model: str) -> bool:
        """A model of the list, or what one of its patterns is for; a list of models with commas is none."""
        if model in names():
            return True
        router = proxy.llm_router
        if router is None or "," in model:
            return False
        patterns = router.pattern_router
        return bool(router.default_deployment or (patterns.patterns and patterns.get_pattern(model)))

    def gave(answer: str) -> bool:
        """LiteLLM writes into an id which deployment to ask for the answer, and reads that from a caller's id."""
        if not importlib.util.find_spec("litellm.responses"):
            return True
        utilities = importlib.import_module("litellm.responses.utils").ResponsesAPIRequestUtils
        said = utilities.decode_responses_api_response_id(answer)
        if said["response_id"] == answer and ID.fullmatch(answer):
            return True
        router = proxy.llm_router
        deployment = router.get_deployment(model_id=str(said["model_id"])) if router is not None else None
        if deployment is None or not ID.fullmatch(str(said["response_id"])):
            return False
        of = litellm.get_llm_provider(model=deployment.litellm_params.model)[1]
        return bool(said["custom_llm_provider"] in {of, deployment.litellm_params.custom_llm_provider})

    return Release(
        gave=gave,
        version=importlib.metadata.version("litellm"),
        settings=settings,
        metadata_settings=metadata_settings,
        key_headers=frozenset(
            str(header.value).lower().encode()
            for header in importlib.import_module("litellm.proxy._types").SpecialHeaders
            if str(header.value).lower() != "authorization"
        ),
        text_only=importlib.util.find_spec("litellm.proxy.anthropic_endpoints") is None,
        served=served,
        models=names,
        refused=lambda model: refused(proxy.llm_router, model),
        told=lambda: told(proxy.llm_router.model_list if proxy.llm_router else ()),
        moderates=lambda: bool(os.environ.get("OPENAI_API_KEY")),
        loads=orjson.loads,
    )


def settings_of(litellm: Any) -> tuple[frozenset[str], frozenset[str]]:
    """The names of a request's fields that are LiteLLM's own: at its top, and within `metadata`."""
    types, deployment = (
        importlib.import_module("litellm.types.utils"),
        importlib.import_module("litellm.types.router"),
    )
    names: set[str] = set(types.all_litellm_params) | set(types.StandardCallbackDynamicParams.__annotations__)
    for model in ("LiteLLM_Params", "GenericLiteLLMParams"):
        names |= set(getattr(deployment, model).model_fields)
    for call in CALLS:
        for owner in (litellm, litellm.Router):
            for function in (getattr(owner, call, None), getattr(owner, f"a{call}", None)):
                if callable(function):
                    names |= set(inspect.signature(function).parameters)
    root = Path(litellm.__file__).parent
    inner: set[str] = set()
    for text in sources(root, READERS):
        names |= {first or second for first, second in READS.findall(text)}
        inner |= set(METADATA_READS.findall(text))
    for text in sources(root, ("llms", *READERS)):
        names |= set(KEPT.findall(text)) | set(CONNECTION.findall(text))
    for text in sources(root, ("llms/watsonx",)):  # works on a copy by another name
        names |= set(KEPT.findall(text.replace(" params.", " optional_params.")))
    create = importlib.import_module("openai.resources.chat.completions").AsyncCompletions.create
    names |= set(inspect.signature(create).parameters)  # the SDK's own options among its API's fields
    names -= published()
    return frozenset(names - ALLOWED.keys()), frozenset((names | inner) - ALLOWED_IN_METADATA.keys())


def sources(root: Path, parts: Iterable[str]) -> Iterable[str]:
    """The source texts of some parts of LiteLLM."""
    for part in parts:
        for file in root.glob(part):
            for source in (file,) if file.is_file() else file.rglob("*.py"):
                yield source.read_text(encoding="utf-8")


def published() -> set[str]:
    """The fields that OpenAI and Anthropic publish, as the SDK and LiteLLM list them."""
    names: set[str] = set()
    for module in PUBLISHED:
        try:
            listed = importlib.import_module(f"openai.types.{module}")
        except ModuleNotFoundError:  # newer than this SDK, and then than this LiteLLM
            continue
        for name, kind in vars(listed).items():
            if "Params" in name:
                names |= set(getattr(kind, "__annotations__", {}))
    anthropic = importlib.import_module("litellm.types.llms.anthropic")
    for name, kind in vars(anthropic).items():
        if name.startswith(("AnthropicMessagesRequest", "AnthropicMessageRequestBase")):
            names |= set(getattr(kind, "__annotations__", {}))
    rerank = importlib.import_module("litellm.types.rerank")
    return (names | set(rerank.RerankRequest.model_fields)) - {"litellm_metadata"}
