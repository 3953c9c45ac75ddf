"""OpenAI's SDK for Python, as its documentation has it."""

import asyncio
import os

import openai

KEY, BASE_URL = os.environ["GATEWAY_KEY"], os.environ["GATEWAY_URL"] + "/v1"
HELLO = [{"role": "user", "content": "hello"}]
client = openai.OpenAI(api_key=KEY, base_url=BASE_URL, max_retries=0)

answer = client.chat.completions.create(model="gpt-4o", messages=HELLO)
assert "You said: hello" in answer.choices[0].message.content
print("chat ok")

chunks = client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
assert "You said: hello" in "".join(it.choices[0].delta.content or "" for it in chunks if it.choices)
print("stream ok")


async def ask() -> str:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=BASE_URL, max_retries=0) as waiting:
        return (await waiting.chat.completions.create(model="gpt-4o", messages=HELLO)).choices[0].message.content


assert "You said: hello" in asyncio.run(ask())
print("async ok")

tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
assert client.chat.completions.create(model="gpt-4o", messages=HELLO, tools=tools).choices
print("tools ok")

vector = client.embeddings.create(model="text-embedding-3-small", input="hello").data[0].embedding
assert len(vector) == 1536
assert any(vector)
print("embeddings ok")

names = [model.id for model in client.models.list()]
assert names == sorted(names)
assert client.models.retrieve("gpt-4o").id == "gpt-4o"
print("models ok")

try:
    client.chat.completions.create(model="gpt4o", messages=HELLO)
except openai.NotFoundError as error:
    assert error.code == "model_not_found"
    assert "gpt-4o" in error.message
    print("unknown-model ok")

azure = openai.AzureOpenAI(
    api_key=KEY, azure_endpoint=os.environ["GATEWAY_URL"], api_version="2024-10-21", max_retries=0
)
assert azure.chat.completions.create(model="gpt-4o", messages=HELLO).choices
print("azure ok")
