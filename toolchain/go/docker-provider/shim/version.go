package shim

import (
	"context"

	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"
	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/terraform-providers/terraform-provider-docker/internal/provider"
)

// newestAPI is the version of the API that the provider speaks where the engine has it: Docker Engine 29.0 to 29.2 take
// no older one. The newest that upstream's client knows is 1.41, and it only negotiates down from there.
const newestAPI = "1.44"

// speakNewestAPI has the provider speak newestAPI to engines that have it.
func speakNewestAPI(changed *schema.Provider) {
	configure := changed.ConfigureContextFunc
	changed.ConfigureContextFunc = func(ctx context.Context, d *schema.ResourceData) (any, diag.Diagnostics) {
		meta, found := configure(ctx, d)
		if found.HasError() {
			return meta, found
		}
		engine := meta.(*provider.ProviderConfig).DockerClient
		ping, err := engine.Ping(ctx)
		if err == nil && versions.GreaterThanOrEqualTo(ping.APIVersion, newestAPI) {
			err = client.WithVersion(newestAPI)(engine)
		}
		if err != nil {
			return nil, diag.FromErr(err)
		}
		return meta, found
	}
}
