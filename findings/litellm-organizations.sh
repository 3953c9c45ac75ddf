#!/usr/bin/env bash
# Version:   LiteLLM 1.106.12 (openai 2.54.0)
# Behaviour: A Router with a list of two OpenAI organizations makes two deployments with the same id. If one reaches its
#            rate limit, both are taken out: the next call fails without a request, although the other organization
#            would answer.
# Expected:  Two ids, and the other organization is asked. LiteLLM's page on proxy configs, "Multiple OpenAI
#            Organizations", says that a list under `organization` makes a separate deployment of each; its page on
#            routing says that a cooldown is of one deployment.
# Seen:
#   > organizations: ['org-a', 'org-b']
#   > different ids: 1
#   > after a 429 of org-a alone: RouterRateLimitError, requests sent: 0
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
LIMITED = {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}}
asked = []


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        asked.append(self.headers["openai-organization"])
        limited = asked[-1] == "org-a"
        self.send_response(429 if limited else 200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(LIMITED if limited else ANSWER).encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()

deployment = {
    "model": "openai/m", "api_key": "none", "api_base": f"http://127.0.0.1:{server.server_port}/v1",
    "organization": ["org-a", "org-b"],
}
router = litellm.Router(
    [{"model_name": "m", "litellm_params": deployment}], num_retries=0, allowed_fails=0, cooldown_time=3600
)


def ask():
    try:
        router.completion("m", [{"role": "user", "content": "hello"}])
    except Exception as error:
        return type(error).__name__


while "org-a" not in asked:  # which is asked first is chance
    ask()
print("organizations:", [each["litellm_params"]["organization"] for each in router.model_list])
print("different ids:", len({each["model_info"]["id"] for each in router.model_list}))
before = len(asked)
print(f"after a 429 of org-a alone: {ask()}, requests sent: {len(asked) - before}")
EOF

export no_proxy=127.0.0.1 LITELLM_LOCAL_MODEL_COST_MAP=True HF_HUB_OFFLINE=1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
