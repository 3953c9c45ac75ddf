// Streams at a pace: a provider that sends a chunk every so often, and callers that note when each arrives.
//
//	paced provider ADDRESS
//	paced callers < PLAN
//
// Both speak OpenAI's chat completions. A request's last message is how many chunks are asked for, and how many
// milliseconds apart: "100 20". PLAN and what callers saw are JSON: the types Plan and Seen.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	provider = "provider"
	callers  = "callers"
)

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == provider:
		log.Fatal(http.ListenAndServe(os.Args[2], http.HandlerFunc(answer)))
	case len(os.Args) == 2 && os.Args[1] == callers:
		var plan Plan
		if err := json.NewDecoder(os.Stdin).Decode(&plan); err != nil {
			log.Fatal(err)
		}
		if err := json.NewEncoder(os.Stdout).Encode(call(plan)); err != nil {
			log.Fatal(err)
		}
	default:
		log.Fatal("usage: paced provider ADDRESS | paced callers < PLAN")
	}
}

// The provider.

type asked struct {
	Model    string `json:"model"`
	Stream   bool   `json:"stream"`
	Messages []struct {
		Content string `json:"content"`
	} `json:"messages"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
}

const head = `"id":"chatcmpl-1","created":1,"model":"paced"`

func answer(w http.ResponseWriter, r *http.Request) {
	var request asked
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, &request)
	}
	chunks, milliseconds := 0, 0
	if err == nil && len(request.Messages) > 0 {
		_, err = fmt.Sscan(request.Messages[len(request.Messages)-1].Content, &chunks, &milliseconds)
	}
	if err != nil {
		http.Error(w, `{"error":{"message":"the last message is no number of chunks and milliseconds"}}`, http.StatusBadRequest)
		return
	}
	usage := fmt.Sprintf(`"usage":{"prompt_tokens":2,"completion_tokens":%d,"total_tokens":%d}`, chunks, chunks+2)
	if !request.Stream {
		w.Header().Set("content-type", "application/json")
		fmt.Fprintf(w, `{%s,"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],%s}`, head, usage)
		return
	}
	w.Header().Set("content-type", "text/event-stream")
	flusher := w.(http.Flusher)
	event := func(rest string) error {
		_, err := fmt.Fprintf(w, "data: {%s,\"object\":\"chat.completion.chunk\",%s}\n\n", head, rest)
		flusher.Flush()
		return err
	}
	pace := time.NewTicker(max(1, time.Duration(milliseconds)) * time.Millisecond)
	defer pace.Stop()
	for number := range chunks {
		// Each text is another one: LiteLLM ends a stream of a hundred equal chunks.
		if event(fmt.Sprintf(`"choices":[{"index":0,"delta":{"role":"assistant","content":" word%d"},"finish_reason":null}]`, number)) != nil {
			return
		}
		select {
		case <-pace.C:
		case <-r.Context().Done():
			return
		}
	}
	_ = event(`"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]`)
	if request.StreamOptions.IncludeUsage {
		_ = event(`"choices":[],` + usage)
	}
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

// The callers.

// Plan is who is asked for what.
type Plan struct {
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"`
	// AtOnce is how many callers there are, and Each how many streams each of them asks for, one after another.
	AtOnce int `json:"at_once"`
	Each   int `json:"each"`
	// Chunks is how many of a stream are content: fewer, and it is not whole.
	Chunks int `json:"chunks"`
	// LimitSeconds is after how long all that is still under way is given up.
	LimitSeconds float64 `json:"limit_seconds"`
}

// Seen is what all callers saw, in seconds.
type Seen struct {
	// First is how long each stream's first content took; of one that was given up without any, how long that was.
	First []float64 `json:"first"`
	// Gaps are the times between contents of one stream; of one that was given up also the one that had no end.
	Gaps []float64 `json:"gaps"`
	// Refused is how long each refusal took that says when to ask again.
	Refused []float64 `json:"refused"`
	// Failures is why each other stream that is not whole is not.
	Failures []string `json:"failures"`
	// Chunks is how many contents arrived.
	Chunks     int     `json:"chunks"`
	Streams    int     `json:"streams"`
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
}

func call(plan Plan) Seen {
	client := &http.Client{Transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		MaxIdleConnsPerHost: plan.AtOnce,
		DisableCompression:  true,
	}}
	limit := time.Now().Add(time.Duration(plan.LimitSeconds * float64(time.Second)))
	seen := make([]Seen, plan.AtOnce)
	began := time.Now()
	var group sync.WaitGroup
	for number := range seen {
		group.Go(func() {
			for range plan.Each {
				seen[number].stream(client, plan, limit)
			}
		})
	}
	group.Wait()
	all := Seen{First: []float64{}, Gaps: []float64{}, Refused: []float64{}, Failures: []string{}}
	all.Seconds = time.Since(began).Seconds()
	for _, each := range seen {
		all.First = append(all.First, each.First...)
		all.Gaps = append(all.Gaps, each.Gaps...)
		all.Refused = append(all.Refused, each.Refused...)
		all.Failures = append(all.Failures, each.Failures...)
		all.Chunks += each.Chunks
		all.Streams += each.Streams
	}
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) == nil {
		all.CPUSeconds = float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
	}
	return all
}

var (
	data    = []byte("data:")
	done    = []byte("[DONE]")
	failed  = []byte(`"error"`)
	content = []byte(`" word`)
)

func (seen *Seen) stream(client *http.Client, plan Plan, limit time.Time) {
	seen.Streams++
	began := time.Now()
	last, chunks, whole := began, 0, false
	why := func() string {
		request, err := http.NewRequest(http.MethodPost, plan.URL, bytes.NewReader(plan.Body))
		if err != nil {
			return err.Error()
		}
		for name, value := range plan.Headers {
			request.Header.Set(name, value)
		}
		request.Header.Set("content-type", "application/json")
		ctx, cancel := context.WithDeadline(context.Background(), limit)
		defer cancel()
		response, err := client.Do(request.WithContext(ctx))
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		if response.Header.Get("retry-after") != "" {
			seen.Refused = append(seen.Refused, time.Since(began).Seconds())
			return ""
		}
		if response.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(io.LimitReader(response.Body, 200))
			return fmt.Sprintf("%d: %s", response.StatusCode, text)
		}
		lines := bufio.NewReaderSize(response.Body, 4096)
		for {
			line, err := lines.ReadSlice('\n')
			if err == io.EOF {
				break
			}
			if err != nil {
				return err.Error()
			}
			switch rest, is := bytes.CutPrefix(line, data); {
			case !is:
			case bytes.Contains(rest, content):
				now := time.Now()
				if chunks == 0 {
					seen.First = append(seen.First, now.Sub(began).Seconds())
				} else {
					seen.Gaps = append(seen.Gaps, now.Sub(last).Seconds())
				}
				last, chunks = now, chunks+1
			case bytes.Contains(rest, done):
				whole = true
			case bytes.Contains(rest, failed):
				return strings.TrimSpace(string(rest))
			}
		}
		if !whole {
			return "it ended without [DONE]"
		}
		if chunks < plan.Chunks {
			return fmt.Sprintf("%d of %d chunks", chunks, plan.Chunks)
		}
		return ""
	}()
	seen.Chunks += chunks
	if why == "" {
		return
	}
	seen.Failures = append(seen.Failures, why)
	switch {
	case time.Now().Before(limit): // it was refused, or broke off: nobody waited for more
	case chunks == 0:
		seen.First = append(seen.First, time.Since(began).Seconds())
	default:
		seen.Gaps = append(seen.Gaps, time.Since(last).Seconds())
	}
}
