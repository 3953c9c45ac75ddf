"""Rules for every file that git tracks."""

from __future__ import annotations

import base64
import random
import re
import string
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.secret_scan import found_in
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

MOST_LINES = 400
LONG = {
    "infra/placement/swarm.py": "each part of a service's spec, in the order of Docker's own",
    "litellm/streams.py": "one file for a replica: how a stream is read, kept, passed on and reported",
    "tests/integration/test_backup.py": "each test wants the backup that the module's fixtures make once",
    "tests/integration/test_deploy_checks.py": "a table of faults, tried one after another on one stack",
    "tests/integration/test_edge.py": "one edge, started once, and all that it refuses",
    "tests/integration/test_runbooks.py": "one stack, brought up once, and each runbook that is followed on it",
    "tests/swarm/test_stack.py": "one stack, brought up once on a Swarm, and all that happens to it",
    "tests/toolchain/test_images.py": "images that are built once, and all that they are asked to do",
    "tests/toolchain/test_tools.py": "tools that are built once, and all ways in which that may fail",
    "tests/unit/test_app.py": "one stub of the gateway, and the whole public face of `app`",
    "tests/unit/test_cli.py": "one stub of the gateway, and every command of `llmctl`",
    "tests/unit/test_guard.py": "one replica with an app in LiteLLM's place, and all that its guard does",
    "tests/unit/test_status.py": "one stub of engine and edge, whose answers are as long as they are",
}
"""Modules with more lines, and why they are not split."""


FOLDERS = re.compile(r"`([\w.-]+/[\w-]*)`")


@pytest.fixture(scope="module")
def files() -> list[str]:
    """The files that git tracks, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    return [file for file in listed.split("\0") if (PROJECT / file).is_file()]


def test_a_module_has_at_most_400_lines(files: list[str]) -> None:
    """Or the reason is in `LONG`, and is removed when the module is shorter."""
    lines = {file: len((PROJECT / file).read_text().splitlines()) for file in files if file.endswith(".py")}
    assert {file for file, count in lines.items() if count > MOST_LINES} == LONG.keys()


def test_a_long_file_that_nobody_writes_is_marked_as_data(files: list[str]) -> None:
    """Lock files and recorded results, in .gitattributes: code hosts collapse them and do not count them."""
    written = (".py", ".md")
    long = [it for it in files if not it.endswith(written) and (PROJECT / it).read_bytes().count(b"\n") > MOST_LINES]
    command = ["git", "check-attr", "linguist-generated", "--", *long]
    told = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert "requirements.lock" in long
    assert [line for line in told if not line.endswith(": set")] == []


def test_commands_that_errors_name_say_which_stack(files: list[str]) -> None:
    """The selected stack may be another one."""
    sources = [file for file in files if file.startswith(("infra/", "toolchain/")) and file.endswith(".py")]
    commands = {file: re.findall(r"/pulumiw config set .*", (PROJECT / file).read_text()) for file in sources}
    assert any(commands.values())
    assert [it for found in commands.values() for it in found if "config set --stack {" not in it] == []


def test_each_folder_is_explained(files: list[str]) -> None:
    """In the README, where a newcomer looks first; each folder of tests/ separately."""
    table = (PROJECT / "README.md").read_text().partition("## What is where")[2].partition("\n## ")[0]
    folders = {f"{file.split('/')[0]}/" for file in files if "/" in file} - {"tests/"}
    folders |= {"/".join(file.split("/")[:2]) for file in files if file.startswith("tests/") and file.count("/") > 1}
    assert {folder for folder in FOLDERS.findall(table) if (PROJECT / folder).is_dir()} == folders


def made_up(characters: str, count: int) -> str:
    """What a secret looks like. It is not a file of the project that has it."""
    return "".join(random.Random(1).choices(characters, k=count))


def test_no_secret_is_in_a_file(files: list[str]) -> None:
    assert found_in(PROJECT, files) == []


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("file", ["README.md", "Makefile", "app/aio.py", "tests/load.py", "Pulumi.dev.yaml", ".env"])
@pytest.mark.parametrize("prefix", ["sk-", "sk-proj-", "sk-ant-api03-"])
def test_a_key_is_found(tmp_path: Path, file: str, prefix: str, quote: str) -> None:
    """A provider's or the gateway's key, wherever it is pasted into an otherwise unchanged file."""
    copy = tmp_path / file
    copy.parent.mkdir(exist_ok=True)
    text = (PROJECT / file).read_text() if (PROJECT / file).exists() else ""
    copy.write_text(f"{text}\nx: {quote}{prefix}{made_up(string.ascii_letters + string.digits, 48)}{quote}\n")
    assert f"{file}:{len(copy.read_text().splitlines())}: Key" in found_in(tmp_path, [file])


@pytest.mark.parametrize("label", ["PRIVATE KEY", "RSA PRIVATE KEY", "OPENSSH PRIVATE KEY"])
def test_a_private_key_is_found(tmp_path: Path, label: str) -> None:
    (tmp_path / "gateway.key").write_text(f"-----BEGIN {label}-----\n{made_up(string.ascii_letters, 64)}\n")
    assert found_in(tmp_path, ["gateway.key"]) == ["gateway.key:1: Private Key"]


STACK_FILE = """\
encryptionsalt: v1:{salt}:v1:{nonce}:{cipher}
config:
  llm-infrastructure:demo: false
  llm-infrastructure:openaiApiKey:
    secure: v1:{nonce}:{cipher}
  llm-infrastructure:postgresPassword:
    secure: v1:{nonce}:{cipher}
  llm-infrastructure:clientKeys:
    app:
      secure: v1:{nonce}:{cipher}
    batch:
      - secure: v1:{nonce}:{cipher}
      - secure: v1:{nonce}:{cipher}
"""


@pytest.fixture
def stack_file(tmp_path: Path) -> Path:
    """A stack's file as Pulumi leaves it."""
    noise = {
        name: base64.b64encode(random.Random(name).randbytes(count)).decode()
        for name, count in {"salt": 8, "nonce": 12, "cipher": 67}.items()
    }
    file = tmp_path / "Pulumi.prod.yaml"
    file.write_text(STACK_FILE.format(**noise))
    return file


def test_pulumis_ciphertext_is_not_a_secret(stack_file: Path) -> None:
    assert found_in(stack_file.parent, [stack_file.name]) == []


def test_a_key_service_is_not_a_secret(stack_file: Path) -> None:
    """Its address and the encrypted key are in the file instead of a passphrase's salt."""
    service = "secretsprovider: awskms://alias/gateway?region=eu-central-1"
    key = made_up(string.ascii_letters + string.digits, 200)
    text, count = re.subn("encryptionsalt: .*", f"{service}\nencryptedkey: {key}", stack_file.read_text())
    assert count == 1
    stack_file.write_text(text)
    assert found_in(stack_file.parent, [stack_file.name]) == []


@pytest.mark.parametrize(
    ("ciphertext", "line"),
    [
        (r"postgresPassword:\n    secure: .*", "postgresPassword: correct horse"),
        (r"openaiApiKey:\n    secure: .*", "openaiApiKey: of-any-form"),
        (r"app:\n      secure: .*", "app: of-any-form"),
        (r"- secure: .*", "- of-any-form"),
    ],
)
def test_a_secret_that_pulumi_did_not_encrypt_is_found(stack_file: Path, ciphertext: str, line: str) -> None:
    """Set without `--secret`, whatever it looks like."""
    text, count = re.subn(ciphertext, line, stack_file.read_text(), count=1)
    assert count == 1
    stack_file.write_text(text)
    number = next(number for number, each in enumerate(text.splitlines(), start=1) if each.endswith(line))
    assert f"{stack_file.name}:{number}: Secret in clear" in found_in(stack_file.parent, [stack_file.name])
