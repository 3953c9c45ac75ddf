package shim

import (
	"context"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/client"
	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/terraform-providers/terraform-provider-docker/internal/provider"
)

// inspections ask the engine for one thing by its id. Upstream takes any failure of it for a loss - but that of a
// volume, which it never takes for one.
var inspections = map[string]func(context.Context, *client.Client, string) error{
	"docker_network": func(ctx context.Context, engine *client.Client, id string) error {
		_, err := engine.NetworkInspect(ctx, id, types.NetworkInspectOptions{})
		return err
	},
	"docker_config": func(ctx context.Context, engine *client.Client, id string) error {
		_, _, err := engine.ConfigInspectWithRaw(ctx, id)
		return err
	},
	"docker_secret": func(ctx context.Context, engine *client.Client, id string) error {
		_, _, err := engine.SecretInspectWithRaw(ctx, id)
		return err
	},
	"docker_volume": func(ctx context.Context, engine *client.Client, id string) error {
		_, err := engine.VolumeInspect(ctx, id)
		return err
	},
}

// noticeLoss has a refresh take out of the state what the engine calls gone, and nothing else: what has left the state
// and not the engine is in the way of its successor.
func noticeLoss(resource *schema.Resource, inspect func(context.Context, *client.Client, string) error) {
	read := resource.ReadContext
	resource.ReadContext = func(ctx context.Context, d *schema.ResourceData, meta any) diag.Diagnostics {
		id := d.Id()
		err := inspect(ctx, meta.(*provider.ProviderConfig).DockerClient, id)
		if client.IsErrNotFound(err) {
			d.SetId("")
			return nil
		}
		if err != nil {
			return diag.FromErr(err)
		}
		found := read(ctx, d, meta)
		if d.Id() == "" {
			d.SetId(id)
			return append(found, diag.Errorf("the engine failed while %s was read", id)...)
		}
		return found
	}
}
