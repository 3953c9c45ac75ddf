"""The program that `pulumi up` runs: reads the settings, builds the stack, exports its outputs."""

import pulumi

from infra import stack_config
from infra.stack import build

for name, value in build(stack_config.load()).items():
    pulumi.export(name, value)
