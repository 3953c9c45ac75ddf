// Named below the upstream module, because only such a package may import its internal ones.
module github.com/terraform-providers/terraform-provider-docker/shim

go 1.25.11

require (
	github.com/docker/docker v20.10.21+incompatible
	github.com/hashicorp/terraform-plugin-sdk/v2 v2.24.0
	github.com/terraform-providers/terraform-provider-docker v0.0.0
)
