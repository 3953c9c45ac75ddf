#!/usr/bin/env bash
# Version:   LiteLLM 1.106.12 (openai 2.54.0)
# Behaviour: reasoning_effort="high" for an Anthropic model lowers max_tokens from 64,000 to 8,192, half of which is for
#            thinking. With max_tokens=1000 the thinking budget that is sent is four times as large.
# Expected:  No less room for the answer, and a budget below max_tokens: Anthropic's "Extended thinking" says that
#            budget_tokens must be less than max_tokens, and counts against it.
# Seen:
#   > neither: max_tokens 64000
#   > reasoning_effort=high: max_tokens 8192, budget_tokens 4096
#   > reasoning_effort=high, max_tokens=1000: max_tokens 1000, budget_tokens 4096
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

requests = []
ANSWER = {
    "id": "1", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
}


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(ANSWER).encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()

for options in ({}, {"reasoning_effort": "high"}, {"reasoning_effort": "high", "max_tokens": 1000}):
    litellm.completion(
        "anthropic/claude-sonnet-4-5", [{"role": "user", "content": "Think."}], **options,
        api_key="none", api_base=f"http://127.0.0.1:{server.server_port}/v1/messages",
    )
    said = ", ".join(f"{name}={value}" for name, value in options.items()) or "neither"
    sent = [f"max_tokens {requests[-1]['max_tokens']}"]
    if "thinking" in requests[-1]:
        sent.append(f"budget_tokens {requests[-1]['thinking']['budget_tokens']}")
    print(f"{said}: {', '.join(sent)}")
EOF

export no_proxy=127.0.0.1 LITELLM_LOCAL_MODEL_COST_MAP=True HF_HUB_OFFLINE=1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
