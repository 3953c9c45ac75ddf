#!/usr/bin/env bash
# Version:   openai (Python) 3.57.0
# Behaviour: Before it sends a chat completion, the SDK makes 50 calls of its own functions for each message: it tries
#            each type that a message may have, though no type of a chat completion changes anything. A conversation of
#            100 messages takes it some 300 times as long as to write the same request as JSON.
# Expected:  A request that is a dict of JSON values, as the README's "Using types" has it, goes out without a look at
#            each message: the answer is the same for all of them.
# Seen:
#   > 1 message: 61 calls, sent as it was given
#   > 51 messages: 2561 calls, sent as it was given
#   > 101 messages: 5061 calls, sent as it was given
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
{
    python3 -m venv venv &&
        venv/bin/pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: \
            --constraint "${script%/*}/pins.txt" openai==3.57.0
} >&2 || exit 2

cat > finding.py <<'EOF'
import http.server
import json
import sys
import threading

import openai
from openai._utils import _transform

ANSWER = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
seen = []
calls = 0


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        seen.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(ANSWER).encode())

    def log_message(self, *_):
        pass


def count(frame, event, _):
    global calls
    code = frame.f_code
    calls += event == "call" and code.co_filename == _transform.__file__ and code.co_name.isidentifier()


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}", max_retries=0)
for number in (1, 51, 101):
    request = {"model": "m", "messages": [{"role": "user", "content": "Hello"}] * number}
    client.chat.completions.create(**request)  # what it looks up once is not counted
    calls = 0
    sys.setprofile(count)
    client.chat.completions.create(**request)
    sys.setprofile(None)
    sent = "as it was given" if seen[-1] == request else "changed"
    print(f"{number} message{'s' if number > 1 else ''}: {calls} calls, sent {sent}")
EOF

export no_proxy=127.0.0.1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
