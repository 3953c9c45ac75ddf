#!/usr/bin/env bash
# Version:   LiteLLM 1.106.12 (openai 2.54.0)
# Behaviour: A complete answer from Groq without a service_tier is lost: LiteLLM raises APIConnectionError about a
#            missing attribute of its own object. deepseek/ accepts the same answer.
# Expected:  The answer. OpenAI's API reference, whose format Groq's API has, makes service_tier optional in a response.
# Seen:
#   > deepseek/m: hi
#   > groq/m: APIConnectionError, no attribute 'service_tier'
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
ANSWER = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(ANSWER).encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()

for model in ("deepseek/m", "groq/m"):
    try:
        done = litellm.completion(
            model, [{"role": "user", "content": "hello"}], max_retries=0,
            api_key="none", api_base=f"http://127.0.0.1:{server.server_port}/v1",
        )
        print(f"{model}: {done.choices[0].message.content}")
    except Exception as error:
        print(f"{model}: {type(error).__name__}, {str(error)[str(error).find('no attribute'):]}")
EOF

export no_proxy=127.0.0.1 LITELLM_LOCAL_MODEL_COST_MAP=True HF_HUB_OFFLINE=1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
