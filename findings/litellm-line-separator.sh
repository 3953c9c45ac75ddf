#!/usr/bin/env bash
# Version:   LiteLLM 1.106.12 (openai 2.54.0)
# Behaviour: An event whose text contains U+2028 (line separator) is silently dropped from the stream of each provider
#            that LiteLLM parses itself; openai/ goes through the SDK and keeps it. From Anthropic the rest of the
#            answer is lost too. All of them end with "stop".
# Expected:  All of the text. RFC 8259 allows the character in a JSON string as it is, and WHATWG's HTML standard,
#            "Server-sent events", ends a line at CR, LF or CRLF only.
# Seen:
#   > openai/m 'one\u2028two three' stop
#   > hosted_vllm/m ' three' stop
#   > deepseek/m ' three' stop
#   > anthropic/m '' stop
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
{
    python3 -m venv venv &&
        venv/bin/pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: \
            --constraint "${script%/*}/pins.txt" litellm==1.106.12 openai==2.54.0 httpx==0.28.1
} >&2 || exit 2

cat > finding.py <<'EOF'
import http.server
import json
import threading

import litellm

litellm.suppress_debug_info = True
TEXTS = ["one\u2028two", " three"]


def openai_events():
    for delta, reason in [*(({"content": text}, None) for text in TEXTS), ({}, "stop")]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        yield {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def anthropic_events():
    message = {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
               "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    yield {"type": "message_start", "message": message}
    yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    for text in TEXTS:
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    yield {"type": "content_block_stop", "index": 0}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": 3}}
    yield {"type": "message_stop"}


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in anthropic_events() if "messages" in self.path else openai_events():
            name = f"event: {event['type']}\n" if "type" in event else ""
            self.wfile.write(f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()

for model in ("openai/m", "hosted_vllm/m", "deepseek/m", "anthropic/m"):
    path = "/v1/messages" if model == "anthropic/m" else "/v1"
    stream = litellm.completion(
        model, [{"role": "user", "content": "Count."}], stream=True,
        api_key="none", api_base=f"http://127.0.0.1:{server.server_port}{path}",
    )
    choices = [each.choices[0] for each in stream]
    print(model, ascii("".join(each.delta.content or "" for each in choices)), choices[-1].finish_reason)
EOF

export no_proxy=127.0.0.1 LITELLM_LOCAL_MODEL_COST_MAP=True HF_HUB_OFFLINE=1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
