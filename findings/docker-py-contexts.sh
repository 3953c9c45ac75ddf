#!/usr/bin/env bash
# Version:   docker (Python) 7.2.0
# Behaviour: If there is no config.json yet, as on a new machine or in CI, ContextAPI.create_context() writes the
#            context to "contexts" in the current directory, and does not find it from any other.
# Expected:  In $DOCKER_CONFIG/contexts, by default ~/.docker/contexts. Docker's command line reference, "Configuration
#            files", says that DOCKER_CONFIG is the folder of all client files.
# Seen:
#   > made in one: ['default', 'builder']
#   > files in one: contexts/meta/NAME/meta.json
#   > files in settings: none
#   > seen from another: ['default']
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
import os
import pathlib

from docker.context import ContextAPI

for name in ("settings", "one", "another"):
    pathlib.Path(name).mkdir()
start = pathlib.Path.cwd()


def contexts():
    return [each.name for each in ContextAPI.contexts()]


def files(folder):
    found = sorted(each.relative_to(start / folder) for each in (start / folder).rglob("*.json"))
    # The folder of a context is named by a hash of the context's name.
    return ", ".join(str(each.parents[1] / "NAME" / each.name) for each in found) or "none"


os.chdir(start / "one")
ContextAPI.create_context("builder", host="tcp://127.0.0.1:2375")
print("made in one:", contexts())
print("files in one:", files("one"))
print("files in settings:", files("settings"))
os.chdir(start / "another")
print("seen from another:", contexts())
EOF

export no_proxy=127.0.0.1 DOCKER_CONFIG="$folder/settings"
diff <(sed -n 's/^#   > //p' "$script") <(venv/bin/python finding.py)
