// Package shim makes the upstream provider, which upstream keeps in an internal package, importable.
package shim

import (
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/terraform-providers/terraform-provider-docker/internal/provider"
)

// Provider is the Terraform provider for Docker, with a fault of it mended. It sends version in its User-Agent.
func Provider(version string) *schema.Provider {
	upstream := provider.New(version)()
	noticeLoss(upstream.ResourcesMap["docker_volume"])
	return upstream
}
