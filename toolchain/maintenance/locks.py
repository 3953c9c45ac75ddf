"""Updates the lock of the project's Python packages: `make locks`.

`requirements.lock` is the one lock. Its versions are written into pyproject.toml too, where `uv sync` looks for them:
uv's own lock file would hold the addresses of one package index.
"""

from __future__ import annotations

import re
import subprocess
import sys

from toolchain import PROJECT

LOCK = PROJECT / "requirements.lock"
COMPILE = (
    "uv",
    "pip",
    "compile",
    "--no-config",  # otherwise the previous versions, in pyproject.toml, would prevent newer ones
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--no-header",
    "--no-emit-index-url",
    "--group=deploy",
    "--group=dev",
    f"--output-file={LOCK.name}",
    "pyproject.toml",
)


def constraints() -> str:
    """The content of requirements.lock, in pyproject.toml's form."""
    pins = re.findall(r"^([\w.-]+==[^\s;]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    return "".join(["constraint-dependencies = [\n", *(f'    "{pin}",\n' for pin in pins), "]\n"])


def main() -> None:
    """Keep the locked versions if `pyproject.toml` still allows them; `--upgrade` takes the newest."""
    subprocess.run([*COMPILE, "--quiet", *sys.argv[1:]], cwd=PROJECT, check=True)
    file = PROJECT / "pyproject.toml"
    text = file.read_text(encoding="utf-8")
    written = re.compile(r"^constraint-dependencies = \[\n.*?^\]\n", re.MULTILINE | re.DOTALL)
    file.write_text(written.sub(constraints(), text), encoding="utf-8")


if __name__ == "__main__":
    main()
