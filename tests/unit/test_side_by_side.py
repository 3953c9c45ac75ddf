"""What runs in lanes side by side, and how that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.side_by_side import INTERRUPTED, LANES, Part
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

ELSEWHERE = {"tests/deploy", "tests/swarm", "tests/typing", "tests/unit", "tests/integration/test_runbooks.py"}
"""What other targets of the Makefile run, or only a type checker."""


def within(file: str, path: str) -> bool:
    return file == path or file.startswith(f"{path}/")


def test_every_test_runs_once() -> None:
    """In one part of one lane."""
    files = [str(file.relative_to(PROJECT)) for file in (PROJECT / "tests").glob("*/**/test_*.py")]
    wanted = [file for file in files if not any(within(file, path) for path in ELSEWHERE)]
    parts = [part for lane in LANES for part in lane]
    runs = {
        file: [
            part.name
            for part in parts
            if any(within(file, path) for path in part.paths) and f"!{file}" not in part.paths
        ]
        for file in wanted
    }
    assert len(runs) > 20
    assert {file: names for file, names in runs.items() if len(names) != 1} == {}


PROGRAM = """
import sys
from tests import side_by_side
class Part(side_by_side.Part):
    def command(self):
        return [sys.executable, "-c", *self.paths]
lanes = [[Part(*part) for part in lane] for lane in {lanes}]
raise SystemExit(side_by_side.run(lanes, lambda: print("finished") or {finished}))
"""


def started(*lanes: list[Part], finished: bool = True) -> subprocess.Popen[str]:
    """Start lanes of Python programs."""
    of_parts = [[(part.name, list(part.paths)) for part in lane] for lane in lanes]
    program = PROGRAM.format(lanes=of_parts, finished=finished)
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(*lanes: list[Part], finished: bool = True) -> tuple[int, str]:
    """The exit code of lanes, and what they print."""
    with started(*lanes, finished=finished) as process:
        printed, _ = process.communicate()
    return process.returncode, printed


def meeting(folder: Path, own: str, other: str) -> Part:
    """A part that ends well only while another one runs."""
    program = (
        f"import pathlib, time; folder = pathlib.Path({str(folder)!r}); (folder / {own!r}).touch()\n"
        f"while not (folder / {other!r}).exists(): time.sleep(0.01)\n"
        f"print('first line of {own}'); print('1 passed, {own}')"
    )
    return Part(own, [program])


def test_lanes_run_side_by_side_and_the_summary_comes_last(tmp_path: Path) -> None:
    lanes = [meeting(tmp_path, "a", "b"), meeting(tmp_path, "c", "d")], [meeting(tmp_path, "b", "a")]
    (tmp_path / "d").touch()
    code, printed = ended(*lanes)
    assert code == 0, printed
    assert [printed.count(f"first line of {name}") for name in "abc"] == [1, 1, 1]
    _, _, summary = printed.partition("finished\n")
    closings = [line for line in summary.splitlines() if "passed" in line]
    assert sorted(closings) == ["1 passed, a", "1 passed, b", "1 passed, c"]
    assert closings[-1] == summary.splitlines()[-1]


@pytest.mark.parametrize("finished", [True, False])
def test_whatever_fails_fails_all(finished: bool) -> None:  # noqa: FBT001
    """The others run all the same, and what the one that failed has printed is shown whole."""
    failing = [Part("fails", [f"print('why'); print('1 failed'); raise SystemExit({int(finished)})"])]
    code, printed = ended([*failing, Part("next", ["print('1 passed')"])], finished=finished)
    assert code == 1, printed
    assert "why\n1 failed\n" in printed
    assert "finished\n" in printed
    assert printed.endswith("\n1 passed\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_has_what_runs_clean_up_and_begins_nothing_more(tmp_path: Path, number: signal.Signals) -> None:
    """Each part ends as by Ctrl-C, which takes its stacks away."""
    program = (
        "import pathlib, time\ntry: pathlib.Path({file!r}).touch(); time.sleep(600)\nfinally: print('cleaned up')"
    )
    files = [tmp_path / name for name in "ab"]
    lanes = [[Part(file.name, [program.format(file=str(file))]), Part("never", [""])] for file in files]
    with started(*lanes) as process:
        while not all(file.exists() for file in files):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        printed, _ = process.communicate()
    assert process.returncode == INTERRUPTED
    assert printed.count("cleaned up") == len(lanes)
    assert "never" not in printed
    assert "finished" not in printed
