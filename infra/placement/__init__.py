"""How a Workload becomes resources: one module a kind of place."""
