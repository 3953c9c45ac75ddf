"""The base of this program's dynamic providers: steps of a deployment that Pulumi itself carries out.

Pulumi stores a provider in the state by its module and class. Keep both names importable when you move or rename one,
or stacks that have the step can no longer refresh or delete it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pulumi.dynamic import CreateResult, DiffResult, ResourceProvider, UpdateResult


class DeployStep(ResourceProvider, ABC):
    """A step that runs when its resource is created, and again when one of its `inputs` changes."""

    serialize_as_secret_always = False
    """Without this, a preview would hide values that are not secret."""

    id: ClassVar[str]
    """The id of its resource in the state."""
    inputs: ClassVar[tuple[str, ...]]
    """The step runs again when one of these properties changes."""
    replacing: ClassVar[tuple[str, ...]] = ()
    """A change of one of these `inputs` replaces the resource: the former one is deleted afterwards."""

    @abstractmethod
    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:
        """Run the step and return the resource's outputs. `olds` are the outputs of the last run; none at the first.

        An error fails the `up` with its message, and the next `up` runs the step again.
        """

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(self.id, self.run(props, {}))

    def diff(self, id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:  # noqa: A002, ARG002
        changed = [name for name in self.inputs if olds.get(name) != news.get(name)]
        return DiffResult(changes=bool(changed), replaces=[name for name in changed if name in self.replacing])

    def update(self, id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:  # noqa: A002, ARG002
        return UpdateResult(self.run(news, olds))


def say(text: str) -> None:
    """Show a line in Pulumi's output: Pulumi shows what a provider writes to standard error."""
    print(text, file=sys.stderr, flush=True)


class GuardProvider(DeployStep):
    """Creates nothing. It remembers its inputs, so that `check` can refuse a change of them in the preview."""

    id = "guard"

    def run(self, props: dict[str, Any], olds: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        return props

    def diff(self, id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:  # noqa: A002, ARG002
        return DiffResult(changes=olds != news)
