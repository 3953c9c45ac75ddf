#!/usr/bin/env bash
# Version:   github.com/sashabaranov/go-openai v1.41.2
# Behaviour: If a gateway keeps a stream alive with comments before the first token, as OpenRouter does with ":
#            OPENROUTER PROCESSING", the client gives up after 150 of them, and the answer is lost.
# Expected:  The answer. WHATWG's HTML standard, "Server-sent events": lines that begin with a colon are ignored, and
#            servers are advised to send one every 15 seconds or so.
# Seen:
#   > 150 comments: hi
#   > 151 comments: stream has sent too many empty messages
set -euo pipefail
script=$(realpath "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
{ go mod init finding && go get github.com/sashabaranov/go-openai@v1.41.2; } >&2 || exit 2

cat > main.go <<'EOF'
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/sashabaranov/go-openai"
)

const answer = `data: {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}` + "\n\ndata: [DONE]\n\n"

func read(comments int) string {
	server := httptest.NewServer(http.HandlerFunc(func(response http.ResponseWriter, _ *http.Request) {
		response.Header().Set("content-type", "text/event-stream")
		fmt.Fprint(response, strings.Repeat(": still working\n\n", comments), answer)
	}))
	defer server.Close()
	config := openai.DefaultConfig("none")
	config.BaseURL = server.URL + "/v1"
	stream, err := openai.NewClientWithConfig(config).CreateChatCompletionStream(
		context.Background(), openai.ChatCompletionRequest{Model: "m"})
	if err != nil {
		return err.Error()
	}
	defer stream.Close()
	text := ""
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return text
		} else if err != nil {
			return err.Error()
		}
		text += chunk.Choices[0].Delta.Content
	}
}

func main() {
	for _, comments := range []int{150, 151} {
		fmt.Printf("%d comments: %s\n", comments, read(comments))
	}
}
EOF

export no_proxy=127.0.0.1
diff <(sed -n 's/^#   > //p' "$script") <(go run .)
