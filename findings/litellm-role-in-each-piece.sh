#!/usr/bin/env bash
# Version:   LiteLLM 1.55.0 (openai 1.57.0)
# Behaviour: LiteLLM puts "role": "assistant" on every piece of a streamed tool call, although the provider sent it
#            once. OpenAI's ChatCompletionStreamState concatenates deltas, so the final role is that word three times.
# Expected:  The role "assistant", the only one that the type ChatCompletionMessage allows. LiteLLM's "Getting Started"
#            promises OpenAI's format, and OpenAI sends the role in the first chunk only.
# Seen:
#   > provider's roles: ['assistant', None, None]
#   > LiteLLM's roles: ['assistant', 'assistant', 'assistant']
#   > role of the message: assistantassistantassistant
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
{
    python3 -m venv venv &&
        venv/bin/pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: \
            --constraint "${script%/*}/pins.txt" litellm==1.55.0 openai==1.57.0 httpx==0.27.2
} >&2 || exit 2

cat > finding.py <<'EOF'
import http.server
import json
import threading

import litellm
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk


def chunk(delta, finish_reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def piece(arguments, **first):
    name = {"name": "weather"} if first else {}
    return {"tool_calls": [{"index": 0, **first, "function": {**name, "arguments": arguments}}]}


CHUNKS = [
    chunk({"role": "assistant", "content": None, **piece("", id="call_1", type="function")}),
    chunk(piece('{"city":')),
    chunk(piece('"Oslo"}')),
    chunk({}, "tool_calls"),
]


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for chunk in CHUNKS:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()

stream = litellm.completion(
    "openai/m", [{"role": "user", "content": "Is it raining?"}], stream=True,
    api_key="none", api_base=f"http://127.0.0.1:{server.server_port}/v1",
)
chunks = [ChatCompletionChunk.model_validate(each.model_dump()) for each in stream]
state = ChatCompletionStreamState()
for each in chunks:
    state.handle_chunk(each)
print("provider's roles:", [each["choices"][0]["delta"].get("role") for each in CHUNKS[:3]])
print("LiteLLM's roles:", [each.choices[0].delta.role for each in chunks[:3]])
print("role of the message:", state.get_final_completion().choices[0].message.role)
EOF

export no_proxy=127.0.0.1 LITELLM_LOCAL_MODEL_COST_MAP=True HF_HUB_OFFLINE=1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
