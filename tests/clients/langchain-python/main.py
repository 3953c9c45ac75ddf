"""LangChain for Python with OpenAI's models."""

import os

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

GATEWAY = {"api_key": os.environ["GATEWAY_KEY"], "base_url": os.environ["GATEWAY_URL"] + "/v1", "max_retries": 0}
chat = ChatOpenAI(model="gpt-4o", **GATEWAY)

assert "You said: hello" in chat.invoke("hello").content
print("chat ok")

assert "You said: hello" in "".join(chunk.content for chunk in chat.stream("hello"))
print("stream ok")


def weather(city: str) -> str:
    """The weather of a city."""
    return city


assert chat.bind_tools([weather]).invoke("hello").content
print("tools ok")

vectors = OpenAIEmbeddings(model="text-embedding-3-small", check_embedding_ctx_length=False, **GATEWAY)
assert any(vectors.embed_query("hello"))
print("embeddings ok")

try:
    ChatOpenAI(model="gpt4o", **GATEWAY).invoke("hello")
except openai.NotFoundError as error:
    assert "gpt-4o" in str(error)
    print("unknown-model ok")
