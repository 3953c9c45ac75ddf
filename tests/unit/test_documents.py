"""The documents match what they describe, as far as that can be checked without a stack."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from infra.settings import RetirePrevious, SecretVersions, Settings, is_secret
from infra.stack_config import adapter
from tests import documents
from tests.stack_config import PROJECT, project_file
from toolchain.maintenance import reference

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from tests.documents import Command

RUNBOOKS = documents.runbooks()
COMMANDS = [command for runbook in RUNBOOKS for command in documents.commands(runbook)]
MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
VARIABLES = {"STACK", "NAME", "SPEND", "PYTHON"}
"""Variables of the Makefile's targets."""
PULUMI = {
    ("cancel",),
    ("config", "get"),
    ("config", "rm"),
    ("config", "set"),
    ("destroy",),
    ("import",),
    ("preview",),
    ("refresh",),
    ("stack", "change-secrets-provider"),
    ("stack", "export"),
    ("stack", "import"),
    ("stack", "init"),
    ("stack", "ls"),
    ("stack", "output"),
    ("state", "unprotect"),
    ("up",),
}
SYSTEM = {"awk", "cp", "curl", "docker", "echo", "git", "grep", "gzip", "head", "ls", "mkdir", "mv", "openssl"}
SYSTEM |= {"printf", "rm", "sed", "sha256sum", "tail", "tar", "test", "true", "umask", "xargs"}
"""Programs that every machine with a stack has."""
NUMBERED: dict[str, type[BaseModel]] = {"secretVersions": SecretVersions, "retirePrevious": RetirePrevious}
HEADINGS = ["When", "What callers notice", "Do", "See that it worked", "Go back", "Proven by"]


def relative(path: Path) -> str:
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize("path", reference.pages(), ids=relative)
def test_reference_pages_are_those_that_would_be_written(path: Path) -> None:
    """Anyone who changes Pulumi.yaml or llmctl's help generates the pages again."""
    assert path.read_text(encoding="utf-8") == reference.pages()[path], f"{relative(path)} is stale: make docs"


def test_every_key_of_the_stack_config_is_on_its_page_once() -> None:
    sections = list(reference.sections((PROJECT / "Pulumi.yaml").read_text(encoding="utf-8")))
    assert [key for _, _, keys in sections for key in keys] == list(project_file()["config"])
    assert all(heading for heading, _, _ in sections)


@pytest.mark.parametrize(
    ("path", "command"), list(reference.commands()), ids=lambda it: it if isinstance(it, str) else ""
)
def test_the_help_of_each_command_has_a_call_that_it_understands(path: str, command: Any) -> None:
    """The example calls this command, with options that exist."""
    what, call = reference.example(command)
    assert what
    assert f"{call} ".startswith(f"{path} "), call
    options = {option for each in command.params for option in each.opts}
    assert set(re.findall(r"--[a-z-]+", call)) <= options


@pytest.mark.parametrize("document", documents.documents(), ids=relative)
def test_each_link_leads_to_something(document: Path) -> None:
    """To a file or folder of the project, and to a heading that is there."""
    for link in documents.links(document):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        assert not anchor or anchor in documents.anchors(target), link


@pytest.mark.parametrize("document", documents.documents(), ids=relative)
def test_each_test_that_is_named_is_there(document: Path) -> None:
    for match in documents.PROOF.finditer(document.read_text(encoding="utf-8")):
        module = ast.parse((PROJECT / match["file"]).read_text(encoding="utf-8"))
        assert match["test"] in {each.name for each in module.body if isinstance(each, ast.FunctionDef)}, match[0]


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=relative)
def test_each_runbook_says_what_someone_woken_at_night_wants_to_know(runbook: Path) -> None:
    """In this order, and with the tests that prove it."""
    text = runbook.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert documents.PROOF.search(text.partition("## Proven by")[2])
    assert documents.scripts(runbook)
    assert {match["kind"] for match in documents.FENCE.finditer(text)} <= {"sh", "text"}


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=relative)
def test_the_commands_of_each_runbook_are_run(runbook: Path) -> None:
    """By a test that the runbook's proof names, and that uses the runbook by its name."""
    proofs = documents.PROOF.finditer(runbook.read_text(encoding="utf-8").partition("## Proven by")[2])
    files = {proof["file"] for proof in proofs}
    assert any(f'runbook("{runbook.stem}", ' in (PROJECT / file).read_text(encoding="utf-8") for file in files)


def test_the_readme_names_the_outputs_of_a_stack() -> None:
    """Everything that the program exports, with secret outputs marked as secret."""
    module = ast.parse((PROJECT / "infra/stack.py").read_text(encoding="utf-8"))
    (build,) = (each for each in module.body if isinstance(each, ast.FunctionDef) and each.name == "build")
    (made,) = (each.value for each in build.body if isinstance(each, ast.Return) and isinstance(each.value, ast.Dict))
    secret = {
        ast.literal_eval(key): "Output.secret" in ast.unparse(it)
        for key, it in zip(made.keys, made.values, strict=True)
        if key
    }
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \|", readme.partition("\n## Outputs")[2].partition("\n## ")[0], re.MULTILINE)
    named = {name: "(secret)" in row for row in rows[1:] for name in re.findall(r"`(\w+)`", row)}
    assert named == secret


def test_the_paths_that_the_edge_accepts_are_documented() -> None:
    config = (PROJECT / "edge/haproxy.cfg").read_text(encoding="utf-8")
    lines = re.findall(r"acl is_\w+ (var\(txn.path\) -m str|path) (.+)", config)
    paths = {path if kind == "path" else f"/v1{path}" for kind, line in lines for path in line.split()}
    told = set(re.findall(r"`(/[\w/]+)`", (PROJECT / "docs/clients.md").read_text(encoding="utf-8")))
    assert paths
    assert paths <= told


def test_the_list_of_runbooks_is_whole() -> None:
    assert set(documents.links(documents.RUNBOOKS / "README.md")) >= {runbook.name for runbook in RUNBOOKS}


def test_the_list_of_decisions_is_whole() -> None:
    """In the order of their numbers, with no number missing."""
    folder = PROJECT / "docs/decisions"
    names = sorted(path.name for path in folder.glob("0*.md"))
    assert [link for link in documents.links(folder / "README.md") if link in names] == names
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=relative)
def test_what_is_to_be_run_is_a_shell_script(runbook: Path) -> None:
    for script in documents.scripts(runbook):
        checked = subprocess.run(["sh", "-n"], input=script, check=False, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=relative)
def test_each_variable_of_a_runbook_is_explained(runbook: Path) -> None:
    """The one with the stack's name is explained in the list of runbooks, the others where they are used."""
    prose = documents.FENCE.sub("", runbook.read_text(encoding="utf-8"))
    assert documents.variables(runbook) - {"PULUMI_STACK"} <= set(re.findall(r"`([A-Z_]+)`", prose))


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_each_command_of_a_runbook_is_there(command: Command) -> None:
    """With its target, its subcommand and options, or the key of the stack config that it sets."""
    program, *words = command.words
    match program:
        case "make":
            check_make(words)
        case "./pulumiw":
            check_pulumi(words)
        case ".venv/bin/llmctl":
            check_llmctl(words)
        case "export":
            assert words
        case _:
            assert program in SYSTEM


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_the_units_of_a_backup_are_those_that_systemd_takes(tmp_path: Path) -> None:
    units = {name: text for name, text in documents.schedule().items() if name != "cron"}
    assert {name.rpartition(".")[2] for name in units} == {"service", "timer"}
    for name, text in units.items():
        (tmp_path / name).write_text(text.replace("/opt/llm-infrastructure", str(PROJECT)))
    files = [str(tmp_path / name) for name in units]
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files], check=False, capture_output=True, text=True
    )
    said = [line for line in checked.stderr.splitlines() if any(name in line for name in units)]
    assert (checked.returncode, said) == (0, []), checked.stderr


def check_make(words: list[str]) -> None:
    target, *variables = words
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
    assert {each.partition("=")[0] for each in variables} <= VARIABLES


def check_pulumi(words: list[str]) -> None:
    assert any(tuple(words[: len(called)]) == called for called in PULUMI), words
    if words[0] == "config":
        of_another_stack = words.index("--stack") if "--stack" in words else len(words)
        words = words[:of_another_stack] + words[of_another_stack + 2 :]
        check_key([word for word in words[2:] if not word.startswith("--")], words)


def check_key(arguments: list[str], words: list[str]) -> None:
    """Check that the stack config has the key, that it is used correctly (secret, path), and accepts the value."""
    key, *inner = re.split(r"[.\[]", arguments[0])
    (field,) = (field for field in Settings.model_fields.values() if field.alias == key)
    assert ("--path" in words) == bool(inner)
    if words[1] == "set":
        assert ("--secret" in words) == is_secret(field)
        if not inner and arguments[1:] and "$" not in arguments[1]:
            adapter(field).validate_python(arguments[1])
    if key in NUMBERED and inner:
        assert inner[0] in {field.alias for field in NUMBERED[key].model_fields.values()}


def check_llmctl(words: list[str]) -> None:
    (command,) = (each for path, each in reference.commands() if f"llmctl {' '.join(words)} ".startswith(f"{path} "))
    options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= options
