"""The public face of `app` as its users' type checkers see it: checked by mypy, never run."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

import app
from app import aio, organizations

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

messages = [app.ChatMessage("user", "hello"), app.ChatMessage(role="system", content="be brief")]
options = app.ChatCompletionOptions(model="gpt-4o", stream=True, temperature=0.5, max_tokens=10, timeout=30)


def sync() -> None:
    client: OpenAI = app.create_llm_client()
    assert_type(client.max_retries, int)
    result = assert_type(app.chat_completion(messages, options), app.ChatCompletionResult)
    assert_type(app.chat_completion_for_org("id", messages), app.ChatCompletionResult)
    assert_type(result.content, str)
    assert_type(result.usage, app.Usage | None)
    assert_type(result.tool_calls, tuple[app.ToolCall, ...])
    assert_type(result.refusal, str | None)
    assert_type(result.used_fallback, bool)
    with app.stream_chat_completion(messages) as stream:
        for text in stream:
            assert_type(text, str)
        assert_type(stream.result, app.ChatCompletionResult)
    assert_type(app.generate_embedding("hello").embedding, tuple[float, ...])
    assert_type(app.generate_embeddings(["hello"], timeout=5), list[app.EmbeddingResult])
    assert_type(organizations.get("id"), organizations.Organization)
    try:
        app.stream_chat_completion_for_org("id", messages, options)
    except app.FallbackFailedError as error:
        assert_type(error.primary, app.RequestError)
        assert_type(error.fallback, app.LLMError)
    except app.StreamInterruptedError as error:
        assert_type(error.content, str)


async def asynchronous() -> None:
    client: AsyncOpenAI = aio.create_llm_client()
    assert_type(client.max_retries, int)
    assert_type(await aio.chat_completion(messages, options), app.ChatCompletionResult)
    async with await aio.stream_chat_completion_for_org("id", messages) as stream:
        async for text in stream:
            assert_type(text, str)
        assert_type(stream.result, app.ChatCompletionResult)
    assert_type(await aio.generate_embeddings(["hello"]), list[app.EmbeddingResult])


app.ChatMessage("user", [{"type": "text", "text": "hello"}])
app.ChatMessage("bot", "hello")  # type: ignore[arg-type]
app.ChatCompletionOptions("gpt-4o")  # type: ignore[call-arg]
messages[0].content = "changed"  # type: ignore[misc]
