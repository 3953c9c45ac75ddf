// Package shim makes the upstream provider, which upstream keeps in an internal package, importable.
package shim

import (
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/terraform-providers/terraform-provider-docker/internal/provider"
)

// Provider is the Terraform provider for Docker, which loses nothing at an engine's error, speaks to new engines, and has
// the networks of services in the form that later ones have. It sends version in its User-Agent.
func Provider(version string) *schema.Provider {
	upstream, changed := provider.New(version)(), provider.New(version)()
	for name, inspect := range inspections {
		noticeLoss(changed.ResourcesMap[name], inspect)
	}
	withNetworksAdvanced(changed.ResourcesMap["docker_service"], upstream.ResourcesMap["docker_service"])
	speakNewestAPI(changed)
	return changed
}
