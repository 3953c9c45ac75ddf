#!/usr/bin/env bash
# Version:   openai (Python) 3.57.0
# Behaviour: A call with timeout=3 takes four minutes if the gateway answers 429 with "Retry-After: 120": the SDK sleeps
#            that long before each of two retries, whatever the timeout.
# Expected:  An error within seconds. The README says under "Timeouts" that the option limits how long a request takes,
#            and under "Retries" that there are two, with a short exponential backoff.
# Seen:
#   > requests 3, seconds asleep [120.0, 120.0], RateLimitError
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
import threading
import time

import openai

requests = []
asleep = []
time.sleep = asleep.append  # nobody waits for this


class Gateway(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        requests.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(429)
        self.send_header("content-type", "application/json")
        self.send_header("retry-after", "120")
        self.end_headers()
        self.wfile.write(b'{"error": {"message": "Slow down.", "type": "rate_limit_error"}}')

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
threading.Thread(target=server.serve_forever, daemon=True).start()

client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1", timeout=3)
try:
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
except openai.APIError as error:
    print(f"requests {len(requests)}, seconds asleep {asleep}, {type(error).__name__}")
EOF

export no_proxy=127.0.0.1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
