#!/usr/bin/env bash
# Version:   openai (Node) 6.49.0
# Behaviour: If an error's body is JSON without a member "error", the message is "404 status code (no body)". LiteLLM and
#            other gateways made with FastAPI send such a body, {"detail": …}, for a path that they do not have. A body
#            that is not JSON is quoted.
# Expected:  The body's text, as with a body that is not JSON, and as in openai (Python) 1.57.0. According to FastAPI's
#            page "Handling errors" every HTTPException is sent as detail.
# Seen:
#   > {"error":{"message":"Not Found"}} => 404 Not Found
#   > Not Found => 404 Not Found
#   > {"detail":"Not Found"} => 404 status code (no body)
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
{ npm install --silent --no-audit --no-fund --ignore-scripts openai@6.49.0; } >&2 || exit 2

cat > finding.mjs <<'EOF'
import http from 'node:http'
import OpenAI from 'openai'

const bodies = ['{"error":{"message":"Not Found"}}', 'Not Found', '{"detail":"Not Found"}']
let body
const server = http.createServer((request, response) => {
  request.resume()
  response.writeHead(404, { 'content-type': 'application/json' })
  response.end(body)
})
await new Promise((done) => server.listen(0, '127.0.0.1', done))

const client = new OpenAI({
  apiKey: 'none', baseURL: `http://127.0.0.1:${server.address().port}/v1`, maxRetries: 0,
})
for (body of bodies) {
  try {
    await client.responses.create({ model: 'm', input: 'hello' })
  } catch (error) {
    console.log(`${body} => ${error.message}`)
  }
}
server.close()
server.closeAllConnections()
EOF

export no_proxy=127.0.0.1
diff <(sed -n 's/^#   > //p' "$script") <(node finding.mjs)
