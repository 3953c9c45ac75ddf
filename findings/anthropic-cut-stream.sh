#!/usr/bin/env bash
# Version:   anthropic (Python) 2.14.0
# Behaviour: If the stream breaks off in mid-sentence, get_final_message() returns half the text, with stop_reason None
#            and without an error. Anthropic's SDK for Node (1.14.0) raises one.
# Expected:  An error. According to Anthropic's "Streaming messages" each stream ends with a message_delta, which has
#            the stop_reason, and a message_stop; the SDK's helpers.md says that this method reads the stream to
#            completion.
# Seen:
#   > whole: 'The answer is 42.' end_turn
#   > broken off: 'The answer is' None
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
{
    python3 -m venv venv &&
        venv/bin/pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: \
            --constraint "${script%/*}/pins.txt" anthropic==2.14.0
} >&2 || exit 2

cat > finding.py <<'EOF'
import http.server
import json
import threading

import anthropic

MESSAGE = {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
           "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
EVENTS = [
    {"type": "message_start", "message": MESSAGE},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "The answer is"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " 42."}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
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

client = anthropic.Anthropic(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}", max_retries=0)
for name, events in {"whole": EVENTS, "broken off": EVENTS[:3]}.items():
    answer = "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events)
    with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "?"}]) as stream:
        message = stream.get_final_message()
    print(f"{name}: {message.content[0].text!r} {message.stop_reason}")
EOF

export no_proxy=127.0.0.1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
