"""The former name of `swarm_services`: the states of stacks on a Swarm store the provider under this name."""

from infra.placement.swarm_services import _Provider

__all__ = ["_Provider"]
