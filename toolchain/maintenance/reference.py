"""Writes the reference pages of `docs/` from what they describe: `make docs`.

`docs/configuration.md` is Pulumi.yaml with the ranges and examples of infra/settings.py, `docs/cli.md` the help of
`llmctl`, `docs/providers.md` litellm/providers.yaml; `docs/upgrade.md` has the table of litellm/releases.yaml. A unit
test compares them with what this makes.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml

from console.cli import cli
from infra.settings import Settings, is_secret
from infra.stack_config import adapter, set_command
from toolchain import PROJECT
from toolchain.maintenance import official_images, providers_page, releases_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

GENERATED = "<!-- Written by `make docs` from {}. Change that, then run it again. -->\n"
ABOUT_CONFIGURATION = """
Every key of the stack config. A key is set for the stack that is selected, or that `--stack` or the variable
`PULUMI_STACK` names, and takes effect with the next `./pulumiw up`; `./pulumiw config rm KEY` restores its default.
Secret keys are set with `--secret` only. `./pulumiw preview` refuses invalid values, all at once, each with the
command that fixes it. Everything else is in [litellm/config.yaml](../litellm/config.yaml), in LiteLLM's own form.
"""
ABOUT_LLMCTL = """
`.venv/bin/llmctl`, after `make up`. It asks the gateway at `LITELLM_URL` with `LITELLM_API_KEY`, and the database at
`DATABASE_URL`, from the environment or `.env`; for backups and checks also LiteLLM's, at `LITELLM_DATABASE_URL`.
Data goes to standard output and everything else to standard error. The exit code is 0, 1 after a failure, and 2 for
wrong usage.
"""


def pages() -> dict[Path, str]:
    """Each page that is generated, and its text."""
    described = (PROJECT / "Pulumi.yaml").read_text(encoding="utf-8")
    return {
        PROJECT / "docs/configuration.md": configuration(described),
        PROJECT / "docs/cli.md": command_line(),
        PROJECT / "docs/providers.md": providers_page.page(),
        releases_page.FILE: releases_page.page(),
        official_images.FILE: official_images.page(),
    }


def configuration(described: str) -> str:
    """The page of the stack config; `described` is the text of Pulumi.yaml."""
    specs = yaml.safe_load(described)["config"]
    fields = {str(field.alias): field for field in Settings.model_fields.values()}
    parts = [
        "# Configuration",
        GENERATED.format("Pulumi.yaml and infra/settings.py"),
        ABOUT_CONFIGURATION,
    ]
    for heading, introduction, keys in sections(described):
        parts += [f"## {heading}", *([introduction] if introduction else [])]
        parts += [_key(key, specs[key], fields[key]) for key in keys]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def sections(described: str) -> Iterator[tuple[str, str, list[str]]]:
    """The sections of Pulumi.yaml: a comment's first line, its other lines, and the keys that follow it."""
    config = described.partition("\nconfig:\n")[2]
    comment: list[str] = []
    keys: list[str] = []
    for line in [*config.splitlines(), "  # end"]:
        if match := re.match(r"  # (.*)", line):
            if keys:
                yield comment[0], " ".join(comment[1:]), keys
                comment, keys = [], []
            comment.append(match[1])
        elif match := re.match(r"  (\w+):$", line):
            keys.append(match[1])
        elif not line and not keys:  # a comment that does not belong to these keys
            comment = []


def _key(key: str, spec: dict[str, Any], field: FieldInfo) -> str:
    facts = [spec["type"] + (f" of {spec['items']['type']}s" if "items" in spec else "")]
    if bounds := _bounds(field):
        facts.append(bounds)
    default = spec["default"]
    facts.append("no default" if default == "" else f"default `{json.dumps(default).strip(chr(34))}`")
    if is_secret(field):
        facts.append("**secret**")
    description = re.sub(r"\s+", " ", spec["description"]).strip()
    return f"### {key}\n\n```sh\n./pulumiw config {set_command(key)}\n```\n\n{description}\n\n{', '.join(facts)}"


def _bounds(field: FieldInfo) -> str:
    schema = adapter(field).json_schema()
    for each in (schema, *schema.get("anyOf", ())):
        if "minimum" in each and "maximum" in each:
            return f"{each['minimum']} to {each['maximum']}"
    return ""


def command_line() -> str:
    """The page of llmctl."""
    parts = [
        "# llmctl",
        GENERATED.format("console/cli.py"),
        ABOUT_LLMCTL,
        *(_command(path, command) for path, command in commands()),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Each command of llmctl that does something, with the words to call it."""

    def below(path: str, command: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 -- typer's own kind of click's
        subcommands = getattr(command, "commands", None)
        if subcommands is None:
            yield path, command
            return
        for name, each in subcommands.items():
            yield from below(f"{path} {name}", each)

    return below("llmctl", typer.main.get_command(cli))


def example(command: Any) -> tuple[str, str]:  # noqa: ANN401
    """What a command does, and an example of it, from its help: `What it does: llmctl …`."""
    what, _, rest = str(command.help).partition(":  ")
    call, _, more = rest.partition("\n\n")
    return f"{what}.{' ' if more else ''}{more}".strip(), " ".join(call.split()).rstrip(".")


def _command(path: str, command: Any) -> str:  # noqa: ANN401
    what, call = example(command)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    words = [_metavar(each) if each.required else f"[{_metavar(each)}]" for each in arguments]
    usage = " ".join([path, "[OPTIONS]", *words])
    helped = (each for each in command.params if each.help)
    rows = [f"| {_name(each)} | {each.help}{_choices(each)}{_default(each.default)} |" for each in helped]
    table = "\n".join(["| | |", "|---|---|", *rows]) if rows else ""
    return f"## {path}\n\n```sh\n{call}\n```\n\n{what}\n\nUsage: `{usage}`\n\n{table}"


def _name(parameter: Any) -> str:  # noqa: ANN401
    if parameter.param_type_name == "argument":
        return f"`{_metavar(parameter)}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _metavar(argument: Any) -> str:  # noqa: ANN401
    return str(argument.metavar or argument.name.upper())


def _choices(parameter: Any) -> str:  # noqa: ANN401
    """The values that it takes, if they are a list."""
    kind = parameter.type_descriptor
    return f" One of {', '.join(f'`{name}`' for name in kind.choices)}." if kind.is_choice else ""


def _default(value: object) -> str:
    """The default of an option, if it is a folder; other defaults add nothing to the help."""
    return f" Default: `{value.relative_to(PROJECT)}`." if isinstance(value, Path) else ""


def main() -> int:
    """Write the pages."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
