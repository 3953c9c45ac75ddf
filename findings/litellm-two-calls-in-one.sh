#!/usr/bin/env bash
# Version:   LiteLLM 1.55.0 (openai 1.57.0)
# Behaviour: Two tool calls arrive, each complete in one chunk, as many providers send them. stream_chunk_builder appends
#            the arguments of both to the first call, where they are no longer JSON. The second call has none.
# Expected:  Each call keeps its own arguments: the chunks have an index and an id for each. LiteLLM's page "Streaming +
#            Async" recommends this helper to get the complete response.
# Seen:
#   > chunk 1: weather {"city": "Oslo"}
#   > chunk 2: clock {"zone": "CET"}
#   > rebuilt: weather {"city": "Oslo"}{"zone": "CET"}
#   > rebuilt: clock {}
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


def chunk(delta, finish_reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def call(index, name, arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]}


CHUNKS = [
    chunk({"role": "assistant", "content": None}),
    chunk(call(0, "weather", {"city": "Oslo"})),
    chunk(call(1, "clock", {"zone": "CET"})),
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

chunks = list(
    litellm.completion(
        "openai/m", [{"role": "user", "content": "Rain? What time?"}], stream=True,
        api_key="none", api_base=f"http://127.0.0.1:{server.server_port}/v1",
    )
)
with_calls = [each for each in chunks if each.choices[0].delta.tool_calls]
for number, each in enumerate(with_calls, 1):
    function = each.choices[0].delta.tool_calls[0].function
    print(f"chunk {number}: {function.name} {function.arguments}")
for each in litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls:
    print(f"rebuilt: {each.function.name} {each.function.arguments}")
EOF

export no_proxy=127.0.0.1 LITELLM_LOCAL_MODEL_COST_MAP=True HF_HUB_OFFLINE=1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
