#!/bin/sh
# Make the database client that the LiteLLM of this image wants, while the image is built.
set -eu
# Without npm's packages, LiteLLM has no database here (litellm/schema.py says so).
[ -e /opt/prisma/node_modules ] || exit 0
python3 -c 'import prisma; print(prisma.__version__)' >/opt/prisma/python-client
cd /usr/local/lib/python3*/dist-packages
schema=litellm/proxy/schema.prisma
[ ! -e litellm_proxy_extras/schema.prisma ] || schema=litellm_proxy_extras/schema.prisma
prisma generate --schema "$schema"
python3 -m compileall -q prisma
