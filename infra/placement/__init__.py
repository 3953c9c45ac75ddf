"""How a Workload becomes resources: one module for each kind of place."""
