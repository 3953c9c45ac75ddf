#!/usr/bin/env bash
# Version:   opentelemetry-instrumentation-openai 0.62.4 with openai 3.57.0
# Behaviour: If the provider sends an error in the middle of a stream, the SDK raises, but the span has the status OK.
#            If the request fails at once it has ERROR. So dashboards count failed streams as good.
# Expected:  ERROR. OpenTelemetry's semantic conventions, "Recording errors", ask for that status, and for error.type,
#            when an operation ends with an error.
# Seen:
#   > at once: InternalServerError, span ERROR
#   > in mid-stream: APIError, span OK
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
{
    python3 -m venv venv &&
        venv/bin/pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: \
            --constraint "${script%/*}/pins.txt" opentelemetry-instrumentation-openai==0.62.4 opentelemetry-sdk==1.45.2 openai==3.57.0
} >&2 || exit 2

cat > finding.py <<'EOF'
import http.server
import threading

import openai
from opentelemetry.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

CHUNK = """data: {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices":
data: [{"index": 0, "delta": {"role": "assistant", "content": "The answer"}, "finish_reason": null}]}

"""
ERROR = '{"error": {"message": "Overloaded", "type": "server_error"}}'
ANSWERS = {
    "at once": (503, "application/json", ERROR),
    "in mid-stream": (200, "text/event-stream", f"{CHUNK}data: {ERROR}\n\n"),
}


class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
threading.Thread(target=server.serve_forever, daemon=True).start()
spans = InMemorySpanExporter()
tracing = TracerProvider()
tracing.add_span_processor(SimpleSpanProcessor(spans))
OpenAIInstrumentor().instrument(tracer_provider=tracing)

client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_retries=0)
for name, (status, kind, text) in ANSWERS.items():
    spans.clear()
    try:
        list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}], stream=True))
    except openai.APIError as error:
        raised = type(error).__name__
    print(f"{name}: {raised}, span {spans.get_finished_spans()[0].status.status_code.name}")
EOF

export no_proxy=127.0.0.1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
