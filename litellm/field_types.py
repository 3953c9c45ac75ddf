"""The types that fields of a request may have, where LiteLLM would fail on another type or lose the content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from answers import SINCE, Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

TEXT, NUMBER, LIST, OBJECT, FLAG = "a string", "a number", "a list", "an object", "true or false"
NUMBERS = (
    "dimensions", "frequency_penalty", "max_completion_tokens", "max_output_tokens", "max_tokens", "n",
    "presence_penalty", "seed", "speed", "temperature", "top_k", "top_logprobs", "top_n", "top_p",
)  # fmt: skip
IS = {
    TEXT: lambda value: isinstance(value, str),
    NUMBER: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    LIST: lambda value: isinstance(value, list),
    OBJECT: lambda value: isinstance(value, dict),
    FLAG: lambda value: isinstance(value, bool),
}
NEEDED = {
    "/chat/completions": ("messages",),
    "/completions": ("prompt",),
    "/embeddings": ("input",),
    "/images/generations": ("prompt",),
    "/messages": ("messages",),
    "/moderations": ("input",),
    "/rerank": ("query", "documents"),
    "/speech": ("input",),
}
"""The fields that a request to a path requires, beside `model`."""
SHAPES: Mapping[str, tuple[str, ...]] = {
    "model": (TEXT,),
    "messages": (LIST,),
    "system": (TEXT, LIST),
    "input": (TEXT, LIST),
    "prompt": (TEXT, LIST, OBJECT),
    "query": (TEXT, OBJECT),
    "documents": (LIST,),
    "stream": (FLAG,),
    "stream_options": (OBJECT,),
    "metadata": (OBJECT,),
    "user": (TEXT,),
    "tags": (LIST,),
    "tools": (LIST,),
    "functions": (LIST,),
    "tool_choice": (TEXT, OBJECT),
    "function_call": (TEXT, OBJECT),
    "response_format": (TEXT, OBJECT),
    "logit_bias": (OBJECT,),
    "stop": (TEXT, LIST),
    "stop_sequences": (LIST,),
    "modalities": (LIST,),
    "voice": (TEXT, OBJECT),
    "encoding_format": (TEXT,),
    **dict.fromkeys(NUMBERS, (NUMBER,)),
}
"""The allowed types of published fields that LiteLLM uses. It fails on others, or only after it asked the
provider."""


def check_shapes(path: str, fields: Mapping[str, Any]) -> None:
    """Refuse published fields of a type that no release of LiteLLM works with, and fields without a type."""
    check_needed(path, fields)
    for name, value in fields.items():
        shapes = SHAPES.get(name)
        if shapes and value is not None and not any(IS[shape](value) for shape in shapes):
            raise Refusal(f"`{name}` must be {' or '.join(shapes)}.", param=name, code="invalid_type")
    check_inputs(fields)
    messages = fields.get("messages")
    for number, message in enumerate(messages or ()):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refusal(f"`{where}` must be an object with a role.", param=where, code="invalid_type")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            check_parts(content, f"{where}.content")
    if messages is not None and not messages:
        raise Refusal("`messages` is empty.", param="messages")
    for name in ("tools", "functions"):
        check_parts(fields.get(name) or [], name, typed=False)


def check_needed(path: str, fields: Mapping[str, Any]) -> None:
    """Refuse a request without what its path needs."""
    for name in next((names for end, names in NEEDED.items() if path.rstrip("/").endswith(end)), ()):
        if fields.get(name) is None:
            raise Refusal(f"`{name}` is missing.", param=name, code="missing_required_parameter")
    if isinstance(fields.get("prompt"), dict) and not path.rstrip("/").endswith("/responses"):
        raise Refusal("`prompt` must be a string or a list.", param="prompt", code="invalid_type")


def check_inputs(fields: Mapping[str, Any]) -> None:
    """Refuse inputs that are empty, or that no provider's API accepts."""
    for name in ("input", "prompt"):
        parts = fields.get(name)
        if parts == []:
            raise Refusal(f"`{name}` is empty.", param=name)
        if isinstance(parts, list) and not all(isinstance(it, str | dict) or is_tokens(it) for it in parts):
            raise Refusal(f"`{name}` must be a string, or a list of strings, items or tokens.", param=name)


def is_tokens(part: object) -> bool:
    """Whether part of a prompt is a token, or a list of tokens."""
    parts = part if isinstance(part, list) else [part]
    return all(isinstance(it, int) and not isinstance(it, bool) for it in parts)


def check_parts(parts: object, where: str, *, typed: bool = True) -> None:
    """Refuse a list whose elements are not all objects, or have no type."""
    if not isinstance(parts, list):
        raise Refusal(f"`{where}` must be a string or a list.", param=where, code="invalid_type")
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or (typed and not isinstance(part.get("type"), str)):
            raise Refusal(
                f"`{where}[{number}]` must be an object{' with a type' if typed else ''}.",
                param=f"{where}[{number}]",
                code="invalid_type",
            )
        if part.get("type") == "text" and not isinstance(part.get("text"), str):
            raise Refusal(
                f"`{where}[{number}].text` must be a string.", param=f"{where}[{number}]", code="invalid_type"
            )


def check_text_only(fields: Mapping[str, Any], version: str) -> None:
    """Refuse what a release would lose or mangle between Anthropic's form and a provider's."""
    blocks = [
        (f"{where}[{number}]", block)
        for where, content in (
            ("system", fields.get("system")),
            *(
                (f"messages[{number}].content", message.get("content"))
                for number, message in enumerate(fields.get("messages") or ())
            ),
        )
        if isinstance(content, list)
        for number, block in enumerate(content)
    ]
    lost = [name for name in ("tools", "tool_choice", "thinking", "mcp_servers", "container") if fields.get(name)]
    for where, block in blocks:
        if not isinstance(block, dict) or block.get("type") != "text":
            lost.append(where)
        elif block.get("cache_control"):
            lost.append(f"{where}.cache_control")
    if lost:
        raise Refusal(
            f"LiteLLM {version}, which this gateway runs, answers /v1/messages with text only: `{lost[0]}` needs "
            f"{SINCE} or later, or /v1/chat/completions.",
            param=lost[0],
            code="not_supported_by_release",
        )
