"""The program that `pulumi up` runs: reads the settings, builds the stack, exports its outputs."""

import pulumi

from infra import stack_config
from infra.stack import build, check

settings = stack_config.load()
check(settings)
for name, value in build(settings).items():
    pulumi.export(name, value)
