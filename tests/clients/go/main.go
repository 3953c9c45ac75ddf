// Go's net/http, with a body whose length is known and one that is a pipe.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
)

func ask(method, path string, body io.Reader) (int, string) {
	request, err := http.NewRequest(method, os.Getenv("GATEWAY_URL")+path, body)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("GATEWAY_KEY"))
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	var text strings.Builder
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 10_000_000)
	for lines.Scan() {
		text.WriteString(lines.Text() + "\n")
	}
	if lines.Err() != nil {
		log.Fatal(lines.Err())
	}
	return answer.StatusCode, text.String()
}

func chat(model string, stream bool) []byte {
	message := map[string]string{"role": "user", "content": "hello"}
	body, _ := json.Marshal(map[string]any{"model": model, "messages": []any{message}, "stream": stream})
	return body
}

func want(operation string, right bool, status int, text string) {
	if !right {
		log.Fatalf("%s: %d %s", operation, status, text)
	}
	fmt.Println(operation, "ok")
}

func main() {
	const path = "/v1/chat/completions"
	status, text := ask("POST", path, bytes.NewReader(chat("gpt-4o", false)))
	want("chat", status == 200 && strings.Contains(text, "You said: hello"), status, text)

	status, text = ask("POST", path, bytes.NewReader(chat("gpt-4o", true)))
	want("stream", status == 200 && strings.HasSuffix(text, "data: [DONE]\n\n"), status, text)

	from, into := io.Pipe()
	go func() { into.Write(chat("gpt-4o", false)); into.Close() }()
	status, text = ask("POST", path, from)
	want("unknown-length", status == 200 && strings.Contains(text, "You said: hello"), status, text)

	body := `{"model":"text-embedding-3-small","input":"hello"}`
	status, text = ask("POST", "/v1/embeddings", strings.NewReader(body))
	want("embeddings", status == 200 && strings.Contains(text, `"embedding"`), status, text[:min(200, len(text))])

	status, text = ask("GET", "/v1/models", nil)
	want("models", status == 200 && strings.Contains(text, "gpt-4o"), status, text)

	status, text = ask("POST", path, bytes.NewReader(chat("gpt4o", false)))
	want("unknown-model", status == 404 && strings.Contains(text, "model_not_found"), status, text)
}
