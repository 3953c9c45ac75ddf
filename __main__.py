"""The program that `pulumi up` runs: reads the settings, builds the stack, exports its outputs."""

import pulumi

from infra import stack_config
from infra.placement.engine import check_engine
from infra.stack import build

settings = stack_config.load()
check_engine(settings.docker_host)
for name, value in build(settings).items():
    pulumi.export(name, value)
