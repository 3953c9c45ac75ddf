// The Docker provider for Pulumi where the official plugin cannot be downloaded: the Terraform provider that the
// official one is made from, bridged under the same resource and property names, so that the Python package
// pulumi-docker drives it. What that package has and this older upstream has not is refused as an unexpected argument.
package main

import (
	"context"
	"errors"

	"github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfbridge"
	sdkv2 "github.com/pulumi/pulumi-terraform-bridge/v3/pkg/tfshim/sdk-v2"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
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
			"docker_service": typed("Service", fields{"task_spec": {Elem: &tfbridge.SchemaInfo{Fields: fields{
				"networks": {Name: "networksAdvanceds", Elem: &tfbridge.SchemaInfo{Transform: networkID}},
			}}}}),
			"docker_tag":    typed("Tag", nil),
			"docker_volume": typed("Volume", nil),
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
	info.Resources["docker_service"].TransformOutputs = networksAsObjects
	info.SetAutonaming(255, "-")
	return info
}

type fields = map[string]*tfbridge.SchemaInfo

func typed(name string, fields fields) *tfbridge.ResourceInfo {
	return &tfbridge.ResourceInfo{Tok: tfbridge.MakeResource("docker", "index", name), Fields: fields}
}

// networkID turns a Swarm service's network as the Python package sends it, {id: …}, into the upstream's plain id.
func networkID(network resource.PropertyValue) (resource.PropertyValue, error) {
	if !network.IsObject() {
		return network, nil
	}
	given := network.ObjectValue()
	for name, value := range given {
		empty := value.IsArray() && len(value.ArrayValue()) == 0
		if (name == "aliases" || name == "driverOpts") && value.HasValue() && !empty {
			return network, errors.New(string(name) + " is not to be had in this build of the Docker provider")
		}
	}
	if id := given["id"]; id.HasValue() || id.IsComputed() {
		return id, nil
	}
	return given["name"], nil
}

// networksAsObjects is the way back, so that the state has the shape of the inputs.
func networksAsObjects(_ context.Context, service resource.PropertyMap) (resource.PropertyMap, error) {
	spec := service["taskSpec"]
	if !spec.IsObject() || !spec.ObjectValue()["networksAdvanceds"].IsArray() {
		return service, nil
	}
	networks := spec.ObjectValue()["networksAdvanceds"].ArrayValue()
	for i, network := range networks {
		if network.IsString() {
			networks[i] = resource.NewObjectProperty(resource.PropertyMap{"id": network})
		}
	}
	return service, nil
}
