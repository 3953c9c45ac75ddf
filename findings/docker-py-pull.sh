#!/usr/bin/env bash
# Version:   docker (Python) 7.2.0
# Behaviour: If a pull fails halfway, images.pull() returns the older image that has the tag locally, without an error:
#            a deployment goes on with the image that it meant to replace. images.load() raises for the same message.
# Expected:  docker.errors.APIError, which the documentation of pull() promises if the server returns an error. The
#            Engine API reports one during a pull as error and errorDetail.
# Seen:
#   > load: ImageLoadError, no space left on device
#   > pull: <Image: 'app:stable'> created in 2020
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
{
    python3 -m venv venv &&
        venv/bin/pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: \
            --constraint "${script%/*}/pins.txt" docker==7.2.0
} >&2 || exit 2

cat > finding.py <<'EOF'
import http.server
import json
import threading

import docker

STARTED = b'{"status": "Pulling from library/app", "id": "stable"}\r\n'
FAILED = b'{"errorDetail": {"message": "no space left on device"}, "error": "no space left on device"}\r\n'
OLD = {"Id": "sha256:" + "a" * 64, "RepoTags": ["app:stable"], "Created": "2020-01-01T00:00:00Z"}


class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, *pieces):
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in (*pieces, b""):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.answer(STARTED, FAILED)

    def do_GET(self):
        self.answer(json.dumps(OLD).encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
threading.Thread(target=server.serve_forever, daemon=True).start()

images = docker.DockerClient(f"tcp://127.0.0.1:{server.server_port}", version="1.44").images
for name, call in {"load": lambda: images.load(b""), "pull": lambda: images.pull("app", tag="stable")}.items():
    try:
        image = call()
        print(f"{name}: {image} created in {image.attrs['Created'][:4]}")
    except docker.errors.DockerException as error:
        print(f"{name}: {type(error).__name__}, {error}")
EOF

export no_proxy=127.0.0.1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
