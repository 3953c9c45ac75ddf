#!/usr/bin/env bash
# Version:   openai (Python) 1.57.0, which LiteLLM 1.55.0 uses; newer releases read the stream correctly
# Behaviour: If the events of a chat stream have the line "event: message", the SDK treats them as events of the
#            Assistants API: the chunks have no choices, and the answer is in attributes that their type does not
#            declare.
# Expected:  The same chunks. WHATWG's HTML standard, "Server-sent events", gives an event without a name the type
#            "message": saying so changes nothing.
# Seen:
#   > no name: choices ['hello', None], more []
#   > event: message: choices None, more ['data', 'event']
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
{
    python3 -m venv venv &&
        venv/bin/pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: \
            --constraint "${script%/*}/pins.txt" openai==1.57.0 httpx==0.27.2
} >&2 || exit 2

cat > finding.py <<'EOF'
import http.server
import json
import threading

import openai

CHUNKS = [
    {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
     "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    for delta, reason in [({"role": "assistant", "content": "hello"}, None), ({}, "stop")]
]


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()

client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_retries=0)
for name in ("", "event: message\n"):
    answer = "".join(f"{name}data: {json.dumps(each)}\n\n" for each in CHUNKS) + "data: [DONE]\n\n"
    messages = [{"role": "user", "content": "Say hello."}]
    chunks = list(client.chat.completions.create(model="m", messages=messages, stream=True))
    choices = [each.choices[0].delta.content for each in chunks] if chunks[0].choices else chunks[0].choices
    print(f"{name.strip() or 'no name'}: choices {choices}, more {list(chunks[0].model_extra)}")
EOF

export no_proxy=127.0.0.1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
