#!/usr/bin/env bash
# Version:   LiteLLM 1.106.12 (openai 2.54.0)
# Behaviour: The reasons that DeepSeek and Anthropic give for an incomplete answer are reported as "stop", as if the
#            model had finished. LiteLLM 1.55.0 passed them on.
# Expected:  Anything but "stop": "length", or the provider's word. In DeepSeek's API reference
#            "insufficient_system_resource" means that generation was interrupted. In Anthropic's "Handling stop
#            reasons" "model_context_window_exceeded" means that the answer was truncated, and "pause_turn" that it must
#            be resumed.
# Seen:
#   > deepseek insufficient_system_resource -> stop
#   > anthropic model_context_window_exceeded -> stop
#   > anthropic pause_turn -> stop
#   > anthropic max_tokens -> length
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


def answer(path):
    if "messages" in path:
        text = [{"type": "text", "text": "The first half"}]
        return {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": text, "stop_reason": reason,
                "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    message = {"role": "assistant", "content": "The first half"}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer(self.path)).encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()

for provider, path, reason in [
    ("deepseek", "/v1", "insufficient_system_resource"),
    ("anthropic", "/v1/messages", "model_context_window_exceeded"),
    ("anthropic", "/v1/messages", "pause_turn"),
    ("anthropic", "/v1/messages", "max_tokens"),
]:
    done = litellm.completion(
        f"{provider}/m", [{"role": "user", "content": "Tell me all."}],
        api_key="none", api_base=f"http://127.0.0.1:{server.server_port}{path}",
    )
    print(provider, reason, "->", done.choices[0].finish_reason)
EOF

export no_proxy=127.0.0.1 LITELLM_LOCAL_MODEL_COST_MAP=True HF_HUB_OFFLINE=1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
