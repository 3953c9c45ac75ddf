"""Secrets in files: what detect-secrets knows, and what it does not, this project's own keys and stack configs."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import TYPE_CHECKING

import yaml
from detect_secrets.core.scan import scan_file
from detect_secrets.settings import default_settings

from infra.litellm_environment import must_be_encrypted
from infra.settings import KEY_CHARACTERS, Settings, is_secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

KEY = re.compile(rf"\bsk-[A-Za-z0-9_-]{{{KEY_CHARACTERS},}}")
"""A key of the gateway or of a provider, in quotes or not."""
MIXED = {"litellmEnvironment", "litellmFiles"}
"""Keys of the stack config with entries that are secret and others that are not."""
CIPHERTEXT = re.compile(
    r"\s*(- )?(secure|encryptionsalt): v1:[\w+/=]+:[\w+/=:]+\s*"
    r"|encryptedkey: [\w+/=]+|secretsprovider: \w+://[^@\s]+"
)
"""What Pulumi writes for a secret, and for its passphrase or key service."""
EXEMPT = (
    # In code, most texts next to such a name are names themselves; there a secret is found by its form.
    ("*.py", "Secret Keyword", ".*"),
    # LiteLLM's syntax for an environment variable.
    ("litellm/config.yaml", "Secret Keyword", r"os\.environ/[A-Z_]+"),
    # A description of what to put there.
    ("litellm/providers.yaml", "Secret Keyword", "the access key"),
    # Keys for SDKs if a server on loopback needs none.
    ("findings/*.sh", "Secret Keyword", "none"),
    # They stand for a password, in examples and in tests.
    ("*.py", "Basic Auth Credentials", "password|word|the-password|secret-of-theirs"),
    ("docs/*.md", "Basic Auth Credentials", "password"),
    # Keys of tests, each character in its order.
    ("tests/*.py", "*", "(sk-)?(0123456789abcdef|fedcba9876543210|zyxwvutsrqponmlkjihg).*"),
    # The mark of a secret in any Pulumi state.
    ("tests/*.py", "Hex High Entropy String", "4dabf18193072939515e22adb298388d"),
    # How the digests of images begin that must never run.
    ("*.py", "Hex High Entropy String", "1bbcb1443bc9|c00f9d92c427|7b00e91cd2fe"),
    # Blocks with nothing in them, where tests are about such blocks.
    ("tests/unit/test_deploy_checks.py", "Private Key", ".*"),
    ("tests/unit/test_settings.py", "Private Key", ".*"),
)
"""File, kind and text of what looks like a secret, and why it is not one."""


def found_in(folder: Path, files: Iterable[str]) -> list[str]:
    """Each secret in files of a folder as `file:line: kind`, without its text, because this goes to logs."""
    found = set()
    with default_settings():
        for file in files:
            for line, kind, text in _found(folder / file):
                if not any(
                    fnmatch(file, files) and fnmatch(kind, kinds) and re.fullmatch(texts, text, re.DOTALL)
                    for files, kinds, texts in EXEMPT
                ):
                    found.add(f"{file}:{line}: {kind}")
    return sorted(found)


def _found(file: Path) -> Iterator[tuple[int, str, str]]:
    lines = file.read_text(errors="replace").splitlines()
    for each in scan_file(str(file)):
        if not CIPHERTEXT.fullmatch(lines[each.line_number - 1]):
            yield each.line_number, each.type, each.secret_value or ""
    for number, line in enumerate(lines, start=1):
        for key in KEY.findall(line):
            yield number, "Key", key
    if fnmatch(file.name, "Pulumi.*.yaml"):
        yield from _in_clear(file.read_text())


def _in_clear(stack_file: str) -> Iterator[tuple[int, str, str]]:
    """The secrets of the stack config that Pulumi did not encrypt."""
    secret = {field.alias or name for name, field in Settings.model_fields.items() if is_secret(field)}
    config = next((value for key, value in _pairs(yaml.compose(stack_file)) if key == "config"), None)
    for key, value in _pairs(config):
        name = key.rpartition(":")[2]
        if name in MIXED:
            for entry, inner in _pairs(value):
                for leaf in _leaves(inner):
                    if must_be_encrypted(name, entry, leaf.value):
                        yield leaf.start_mark.line + 1, "Secret in clear", leaf.value
        elif name in secret:
            for leaf in _leaves(value):
                yield leaf.start_mark.line + 1, "Secret in clear", leaf.value


def _pairs(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from ((key.value, value) for key, value in node.value)


def _leaves(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Every text that is not ciphertext and not empty."""
    if isinstance(node, yaml.ScalarNode) and node.value:
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _leaves(each)
    for key, value in _pairs(node):
        if key != "secure":
            yield from _leaves(value)
