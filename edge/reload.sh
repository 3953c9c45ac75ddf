#!/usr/bin/env bash
# Have HAProxy load its files anew without dropping a connection. The new worker gets what the old one knows of the
# replicas, so that it serves its first request.
set -euo pipefail
state=$1 port=$2

master() {
    exec 3<>"/dev/tcp/127.0.0.1/$port"
    printf '%s;quit\n' "$1" >&3
    cat <&3
}

master '@1 show servers state' | grep -v ' replica[0-9]* - ' >"$state"
answer=$(master reload)
[[ $answer == *Success=1* ]] || { printf '%s\n' "$answer"; exit 1; }
