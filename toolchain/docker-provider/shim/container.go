package shim

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/terraform-providers/terraform-provider-docker/internal/provider"
)

const (
	pollInterval = 200 * time.Millisecond
	shownLines   = "15"
)

// awaitHealth takes the place of upstream's own wait, which takes the whole provider down when it times out (it goes
// on reading a state that it no longer gets) and waits to the end for a container that has long exited.
func awaitHealth(container *schema.Resource) {
	create := container.CreateContext
	container.CreateContext = func(ctx context.Context, d *schema.ResourceData, meta any) diag.Diagnostics {
		if !d.Get("wait").(bool) || !d.Get("start").(bool) {
			return create(ctx, d, meta)
		}
		if err := d.Set("wait", false); err != nil {
			return diag.FromErr(err)
		}
		diagnostics := create(ctx, d, meta)
		if err := d.Set("wait", true); err != nil {
			return append(diagnostics, diag.FromErr(err)...)
		}
		if diagnostics.HasError() {
			return diagnostics
		}
		docker := meta.(*provider.ProviderConfig).DockerClient
		limit := time.Duration(d.Get("wait_timeout").(int)) * time.Second
		if err := healthy(ctx, docker, d.Id(), d.Get("name").(string), limit); err != nil {
			return append(diagnostics, diag.FromErr(err)...)
		}
		return diagnostics
	}
}

// healthy returns once the container is, and an error as soon as it has exited, or after limit.
func healthy(ctx context.Context, docker *client.Client, id, name string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		found, err := docker.ContainerInspect(ctx, id)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("container %s was not healthy within %s%s", name, limit, lastLines(docker, id))
		case err != nil:
			return fmt.Errorf("container %s cannot be inspected: %w", name, err)
		case found.RestartCount > 0 || !found.State.Running:
			return fmt.Errorf("container %s exited with %d at its start%s",
				name, found.State.ExitCode, lastLines(docker, id))
		case found.State.Health == nil:
			return fmt.Errorf("container %s has no health check to wait for", name)
		case found.State.Health.Status == types.Healthy:
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollInterval):
		}
	}
}

// lastLines is what the container printed last, for a message.
func lastLines(docker *client.Client, id string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	options := types.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: shownLines}
	stream, err := docker.ContainerLogs(ctx, id, options)
	if err != nil {
		return ""
	}
	defer stream.Close()
	var printed bytes.Buffer
	if _, err := stdcopy.StdCopy(&printed, &printed, stream); err != nil || printed.Len() == 0 {
		return ""
	}
	return "; its last lines:\n" + strings.TrimRight(printed.String(), "\n")
}
