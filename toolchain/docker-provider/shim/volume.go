package shim

import (
	"context"

	"github.com/docker/docker/client"
	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/terraform-providers/terraform-provider-docker/internal/provider"
)

// noticeLoss has a refresh take a volume that is gone out of the state, where upstream fails for ever.
func noticeLoss(volume *schema.Resource) {
	read := volume.ReadContext
	volume.ReadContext = func(ctx context.Context, d *schema.ResourceData, meta any) diag.Diagnostics {
		_, err := meta.(*provider.ProviderConfig).DockerClient.VolumeInspect(ctx, d.Id())
		if client.IsErrNotFound(err) {
			d.SetId("")
			return nil
		}
		return read(ctx, d, meta)
	}
}
