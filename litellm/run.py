"""Run one of these programs in a container, which has all modules of this folder in one file.

Usage: python3 run.py PROGRAM ARGS…

Each file takes an engine a tenth of a second when it creates a container. So the modules come as one text, MODULES,
which `infra/programs.py` writes: before each a line with its name. PROGRAM is one that has a `main`.
"""

from __future__ import annotations

import importlib
import re
import sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.util import spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType

MODULES = "modules.txt"
"""The text, in the folder of this program."""
NAME = re.compile(r"^#: (\w+)\.py\n", re.MULTILINE)


class Modules(MetaPathFinder, InspectLoader):
    """Imports modules from that text; all others come from where they always do."""

    def __init__(self, text: str) -> None:
        _, *parts = NAME.split(text)
        self.sources = dict(zip(parts[::2], parts[1::2], strict=True))

    def find_spec(self, fullname: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in self.sources else None

    def get_source(self, fullname: str) -> str:
        return self.sources[fullname]

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.sources[fullname], f"{fullname}.py", "exec", dont_inherit=True)  # named in tracebacks

    def is_package(self, _: str) -> bool:
        return False


if __name__ == "__main__":
    sys.meta_path.insert(0, Modules(Path(__file__).with_name(MODULES).read_text(encoding="utf-8")))
    program = importlib.import_module(sys.argv.pop(1))
    sys.exit(program.main(*sys.argv[1:]))
