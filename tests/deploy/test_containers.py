"""What only a container itself shows, for each one that can be entered: its processes' users, and its files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from infra import edge
from infra.workload import LIVE

if TYPE_CHECKING:
    from testinfra.host import Host

    from tests.deploy.stack import DeployedStack, Instance

CONFIGS = {
    "litellm": ("/app/config.yaml", "litellmConfig"),
    "edge": (f"{LIVE}/current/{edge.CONFIG}", "edgeConfig"),
}
"""Where a part's config is, and the output that shows it."""


def processes(inside: Host) -> list[dict[str, str]]:
    """What the kernel says of each process in a container, as in proc(5)."""
    # A process may end between the shell's list and the reading.
    printed = inside.run("cat /proc/[0-9]*/status 2>/dev/null").stdout
    return [
        dict(line.split(":\t", 1) for line in process.splitlines() if ":\t" in line)
        for process in ("\n" + printed).split("\nName:")[1:]
        # The engine's process that is about to become a health check, or this command.
        if not process.startswith("\trunc:[")
    ]


def test_no_process_in_it_has_a_privilege(stack: DeployedStack, instance: Instance, inside: Host) -> None:
    """Asked of the kernel, for each process: no root, no capability."""
    found = processes(inside)
    assert found, f"no process can be seen in {instance}"
    for process in found:
        confined = "0" not in process["Uid"].split() and {
            int(process[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")
        } == {0}
        again = stack.recreate(instance.part)
        assert confined, f"process {process['Pid']} in {instance} has privileges. Recreate it: {again}"


def test_its_files_are_those_that_were_rendered(stack: DeployedStack, instance: Instance, inside: Host) -> None:
    """The configs that the stack's outputs show, and the programs, secrets and live files of the state."""
    files = dict(instance.part.files)
    if instance.part.kind in CONFIGS:
        path, output = CONFIGS[instance.part.kind]
        files[path] = stack.outputs[output]
    # By checksum: a report with -vv shows what a command printed.
    checksums = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in files.items()}
    wanted = {**checksums, **instance.part.programs}
    result = inside.run("sha256sum -- " + " ".join(["%s"] * len(wanted)), *wanted)
    found = {path: checksum for checksum, path in (line.split("  ", 1) for line in result.stdout.splitlines())}
    changed = [path for path in wanted if found.get(path) != wanted[path]]
    assert changed == [], (
        f"{changed} in {instance} is not what was deployed. Make the container again: {stack.recreate(instance.part)}"
    )
