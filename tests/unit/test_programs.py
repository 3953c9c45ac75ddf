"""Modules that come to a container as one text run there as files would."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from infra import programs
from tests.stack_config import PROJECT


def laid(folder: Path) -> Path:
    """Write what a replica gets to a folder; return the program to run."""
    for path, file in programs.files().items():
        shutil.copy(file, folder / Path(path).name)
    return folder / Path(programs.RUN).name


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(program), *arguments], check=False, capture_output=True, text=True
    )


def test_a_program_finds_its_modules_and_gets_its_arguments(tmp_path: Path) -> None:
    program = laid(tmp_path)
    (tmp_path / "modules.txt").write_text(
        "#: one.py\nimport two\n\n\ndef main(*words):\n    return two.told(words)\n"
        "#: two.py\ndef told(words):\n    print(__name__, *words)\n    return len(words)\n"
    )
    ran = run(program, "one", "a", "b")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("two a b\n", "", 2)


def test_a_traceback_has_the_module_and_the_line(tmp_path: Path) -> None:
    program = laid(tmp_path)
    (tmp_path / "modules.txt").write_text(
        "#: one.py\nimport traceback\n\n\ndef main():\n    try:\n        raise ValueError('no such thing')\n"
        "    except ValueError:\n        traceback.print_exc()\n"
    )
    assert "  File \"one.py\", line 6, in main\n    raise ValueError('no such thing')\n" in run(program, "one").stderr


def test_a_replica_has_every_module_as_it_is_here(tmp_path: Path) -> None:
    """Except the one that reads them, and the one that runs in its own container."""
    program = laid(tmp_path)
    (tmp_path / "shown.py").write_text(
        "import json, run\nprint(json.dumps(run.Modules(open('modules.txt').read()).sources))"
    )
    shown = subprocess.run([sys.executable, "shown.py"], check=True, cwd=tmp_path, capture_output=True, text=True)
    sources = json.loads(shown.stdout)
    here = {file.stem: file.read_text(encoding="utf-8") for file in (PROJECT / "litellm").glob("*.py")}
    assert program.read_text() == here.pop("run")
    assert programs.schema() == {programs.SCHEMA: here.pop("schema")}
    assert sources == here
    assert not {*here} & sys.stdlib_module_names  # which they would replace: they are looked for first
