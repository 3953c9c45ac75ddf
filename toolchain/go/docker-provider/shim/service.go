package shim

import (
	"context"

	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hashicorp/terraform-plugin-sdk/v2/terraform"
)

type operation = func(context.Context, *schema.ResourceData, any) diag.Diagnostics

// withNetworksAdvanced gives a Swarm service's networks the form that they have in the official provider, blocks with
// an id where upstream has plain ids, so that either provider reads what the other has put into the state.
func withNetworksAdvanced(service, upstream *schema.Resource) {
	spec := service.Schema["task_spec"].Elem.(*schema.Resource).Schema
	delete(spec, "networks")
	spec["networks_advanced"] = &schema.Schema{
		Type:     schema.TypeSet,
		Optional: true,
		Elem:     &schema.Resource{Schema: map[string]*schema.Schema{"id": {Type: schema.TypeString, Required: true}}},
	}
	service.CreateContext = translated(service.CreateContext, upstream)
	service.ReadContext = translated(service.ReadContext, upstream)
	service.UpdateContext = translated(service.UpdateContext, upstream)
}

// translated has an operation work on data of upstream's form.
func translated(call operation, upstream *schema.Resource) operation {
	return func(ctx context.Context, d *schema.ResourceData, meta any) diag.Diagnostics {
		plain := upstream.Data(&terraform.InstanceState{ID: d.Id()})
		if err := fill(plain, d, upstream, idsOfBlocks); err != nil {
			return diag.FromErr(err)
		}
		found := call(ctx, plain, meta)
		d.SetId(plain.Id())
		if err := fill(d, plain, upstream, blocksOfIDs); err != nil {
			return append(found, diag.FromErr(err)...)
		}
		return found
	}
}

func fill(to, from *schema.ResourceData, upstream *schema.Resource, translate func(spec map[string]any)) error {
	for name := range upstream.Schema {
		value := from.Get(name)
		if name == "task_spec" {
			for _, spec := range value.([]any) {
				translate(spec.(map[string]any))
			}
		}
		if err := to.Set(name, value); err != nil {
			return err
		}
	}
	return nil
}

func idsOfBlocks(spec map[string]any) {
	ids := []any{}
	for _, network := range spec["networks_advanced"].(*schema.Set).List() {
		ids = append(ids, network.(map[string]any)["id"])
	}
	delete(spec, "networks_advanced")
	spec["networks"] = ids
}

func blocksOfIDs(spec map[string]any) {
	blocks := []any{}
	for _, id := range spec["networks"].(*schema.Set).List() {
		blocks = append(blocks, map[string]any{"id": id})
	}
	delete(spec, "networks")
	spec["networks_advanced"] = blocks
}
