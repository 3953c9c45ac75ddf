"""Anthropic's SDK for Python, as its documentation has it."""

import os

import anthropic

HELLO = [{"role": "user", "content": "hello"}]
client = anthropic.Anthropic(api_key=os.environ["GATEWAY_KEY"], base_url=os.environ["GATEWAY_URL"], max_retries=0)

for model, operation in (("claude-3-5-sonnet", "chat"), ("gpt-4o", "chat-openai")):
    answer = client.messages.create(model=model, max_tokens=50, messages=HELLO)
    assert "You said: hello" in answer.content[0].text
    print(operation, "ok")

with client.messages.stream(model="claude-3-5-sonnet", max_tokens=50, messages=HELLO) as stream:
    assert "You said: hello" in stream.get_final_text()
print("stream ok")

broken = [{"role": "user", "content": "[[demo cut=6]] hello"}]
try:
    with client.messages.stream(model="claude-3-5-sonnet", max_tokens=50, messages=broken) as stream:
        stream.get_final_text()
except anthropic.APIError:
    print("broken-stream ok")

try:
    client.messages.create(model="claude", max_tokens=50, messages=HELLO)
except anthropic.NotFoundError as error:
    assert "claude-3-5-sonnet" in str(error)
    print("unknown-model ok")
