// The Docker provider for Pulumi where the official plugin cannot be downloaded: the Terraform provider that the
// official one is made from, bridged under the same resource and property names, so that the Python package
// pulumi-docker drives it. What that package has and this older upstream has not is refused as an unexpected argument.
package main

import (
	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
	sdkv2 "github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfshim/sdk-v2"
	"github.com/terraform-providers/terraform-provider-docker/shim"
)

// version is that of the Python package which this provider serves, with what it really is as build metadata.
const version = "5.2.0+terraform-provider-docker.2.23.0"

func main() {
	tfbridge.Main("docker", version, provider(), nil)
}

func provider() tfbridge.ProviderInfo {
	info := tfbridge.ProviderInfo{
		P:      sdkv2.NewProvider(shim.Provider(version)),
		Name:   "docker",
		Config: fields{"registry_auth": {Name: "registryAuth"}},
		Resources: map[string]*tfbridge.ResourceInfo{
			"docker_config": typed("ServiceConfig", nil),
			"docker_container": typed("Container", fields{
				"command":           {Name: "command"},
				"networks_advanced": {Name: "networksAdvanced"},
			}),
			"docker_image":          typed("RemoteImage", fields{"name": {Name: "name"}}),
			"docker_network":        typed("Network", nil),
			"docker_plugin":         typed("Plugin", nil),
			"docker_registry_image": typed("RegistryImage", fields{"name": {Name: "name"}}),
			"docker_secret":         typed("Secret", nil),
			"docker_service":        typed("Service", nil),
			"docker_tag":            typed("Tag", nil),
			"docker_volume":         typed("Volume", nil),
		},
		DataSources: map[string]*tfbridge.DataSourceInfo{
			"docker_image":          {Tok: tfbridge.MakeDataSource("docker", "index", "getRemoteImage")},
			"docker_logs":           {Tok: tfbridge.MakeDataSource("docker", "index", "getLogs")},
			"docker_network":        {Tok: tfbridge.MakeDataSource("docker", "index", "getNetwork")},
			"docker_plugin":         {Tok: tfbridge.MakeDataSource("docker", "index", "getPlugin")},
			"docker_registry_image": {Tok: tfbridge.MakeDataSource("docker", "index", "getRegistryImage")},
		},
	}
	info.Resources["docker_container"].DeleteBeforeReplace = true
	info.SetAutonaming(255, "-")
	return info
}

type fields = map[string]*tfbridge.SchemaInfo

func typed(name string, fields fields) *tfbridge.ResourceInfo {
	return &tfbridge.ResourceInfo{Tok: tfbridge.MakeResource("docker", "index", name), Fields: fields}
}
