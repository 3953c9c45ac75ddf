"""The program that `pulumi up` runs: reads the settings, builds the stack, exports its outputs."""

import pulumi

from infra.settings import Settings
from infra.stack import build

for name, value in build(Settings.load()).items():
    pulumi.export(name, value)
