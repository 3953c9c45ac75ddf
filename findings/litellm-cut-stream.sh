#!/usr/bin/env bash
# Version:   LiteLLM 1.106.12 (openai 2.54.0)
# Behaviour: If the provider breaks off a stream in mid-sentence, with neither a finish_reason nor [DONE], it ends with
#            finish_reason "stop". If a streamed call gets a page of HTML, as from a captive portal, the result is an
#            empty answer with "stop".
# Expected:  An error, or no finish_reason. OpenAI's reference says that "stop" is for a natural stopping point or a
#            stop sequence, and that a stream ends with data: [DONE].
# Seen:
#   > broken off: 'The answer is' stop
#   > HTML: '' stop
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

CHUNKS = [
    {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
     "choices": [{"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": None}]}
    for content in ("The answer", " is")
]
ANSWERS = {
    "broken off": ("text/event-stream", "".join(f"data: {json.dumps(each)}\n\n" for each in CHUNKS)),
    "HTML": ("text/html", "<html><title>Sign in to the network</title></html>"),
}


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", answer[0])
        self.end_headers()
        self.wfile.write(answer[1].encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()

for name, answer in ANSWERS.items():
    chunks = list(
        litellm.completion(
            "openai/m", [{"role": "user", "content": "What is the answer?"}], stream=True, max_retries=0,
            api_key="none", api_base=f"http://127.0.0.1:{server.server_port}/v1",
        )
    )
    text = "".join(each.choices[0].delta.content or "" for each in chunks)
    print(f"{name}: {text!r} {chunks[-1].choices[0].finish_reason}")
EOF

export no_proxy=127.0.0.1 LITELLM_LOCAL_MODEL_COST_MAP=True HF_HUB_OFFLINE=1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
