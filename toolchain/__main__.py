"""`make up`, `make down`, `make push`, `make purge` and what `make test` needs: from a clone to a stack, and back.

A stack that is up needs none of this: work with it by `./pulumiw preview`, `./pulumiw up` …
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import socket
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml

from app._types import DEFAULT_MODEL
from engine.allowed_images import replaced_litellm
from infra.workload import LAST_PORT, LOOPBACK
from toolchain import PROJECT, engine_setup, images, operating_system, registry, tools
from toolchain import purge as take_away
from toolchain.progress import CommandError, SetupError, Step, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import docker

PULUMI = str(PROJECT / "pulumiw")
UNATTENDED = ("--refresh", "--yes", "--skip-preview", "--non-interactive", "--color=never")
DEFAULT_STACK = "dev"
IMAGE_SETTINGS = {"litellm": "litellmImage", "postgres": "postgresImage", "haproxy": "haproxyImage"}
"""What each stack runs."""
REDIS_IMAGE = "redisImage"
PULUMI_COMMAND = "./pulumiw"
KEYS = ("openaiApiKey", "anthropicApiKey", "litellmEnvironment")
"""Where a stack config has keys of providers."""
OWN_PROVIDER = "using pulumi-resource-docker from $PATH"
"""In Pulumi's warning if the Docker provider was built here, which is intended."""
LOCKED = "the stack is currently locked"
NO_STACK = "no stack named"
LOOPBACK_PORTS = ("metricsPort", "adminPort")
PORT_SETTINGS = ("gatewayPort", "postgresPort", *LOOPBACK_PORTS)
TEXT_SETTINGS = ("dockerHost", "placement", "bindAddress", "imageRegistry", *IMAGE_SETTINGS.values(), REDIS_IMAGE)
"""The keys that must not be encrypted, because the set-up needs them."""


class StackConfig:
    """The plain values of a stack's config, with the project's defaults."""

    def __init__(self, stack: str) -> None:
        """Raises SetupError for a config file that cannot be read."""
        project = yaml.safe_load((PROJECT / "Pulumi.yaml").read_text(encoding="utf-8"))
        self.project: str = project["name"]
        self.stack = stack
        self._defaults = {key: spec.get("default") for key, spec in project["config"].items()}
        self._values = _values(path := PROJECT / f"Pulumi.{stack}.yaml")
        for key in TEXT_SETTINGS:
            if not isinstance(self[key], str):
                raise SetupError(
                    f"{key} is not plain text in {path.name}",
                    fix=f"{PULUMI_COMMAND} config set --stack {stack} {key} …",
                )
        # The program refuses it too, but only after it has been pulled, or pushed to the team's own registry.
        if why := replaced_litellm(self["litellmImage"]):
            raise SetupError(
                f"litellmImage {why}",
                fix=f"{PULUMI_COMMAND} config set --stack {stack} litellmImage {self._defaults['litellmImage']}",
            )

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 -- the stack config's values are of any type
        return self._values.get(f"{self.project}:{key}", self._defaults.get(key))

    @property
    def images(self) -> dict[str, str]:
        """The images that the stack runs, by part."""
        parts = IMAGE_SETTINGS.keys() - ({"postgres"} if self["databaseUrl"] else set())
        images = {part: self[key] for part, key in IMAGE_SETTINGS.items() if part in parts}
        return images | ({"valkey": self[REDIS_IMAGE]} if str(self["redis"]).lower() == "true" else {})


def _values(path: Path) -> dict[str, Any]:
    """What a stack's config file sets, by full keys; nothing if there is no file. Raises SetupError."""
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _malformed(path, str(error)) from error
    values = content.get("config") if isinstance(content, dict) else content
    if not isinstance(values, dict | None):
        raise _malformed(path, "it needs `config:`, with a line for each key below it")
    return values or {}


def _malformed(path: Path, why: str) -> SetupError:
    return SetupError(
        f"{path.name} is not the config of a stack: {why}",
        fix=f"fix it there; git diff {path.name} shows what changed",
    )


def prepare(steps: Steps, config: StackConfig) -> None:
    """Make the engine, the Pulumi tools and the images that a stack names available."""
    client = engine_setup.ensure(steps, config["dockerHost"], config.stack)
    tools.ensure(steps)
    _ensure_images(steps, client, config)


def _ensure_images(steps: Steps, client: docker.DockerClient, config: StackConfig) -> None:
    """Make the images that a stack names available: on its engine, or in their registry."""
    have = _having(steps, client, config.stack)
    if address := config["imageRegistry"]:
        registry.fill(steps, client, config.images, address, have=have)
    else:
        have(config.images)


def _having(
    steps: Steps, client: docker.DockerClient, stack: str
) -> Callable[[Mapping[str, str]], Mapping[str, str]]:
    """The function that puts a stack's images on the engine."""
    return partial(images.ensure, steps, client, stack=stack, ask=_asking(steps))


def push(steps: Steps, stack: str) -> None:
    """Push the images that a stack names to its registry, and print what is there now."""
    config = StackConfig(stack)
    if not config["imageRegistry"]:
        raise SetupError(
            f"stack {stack} has no registry to push to",
            fix=f"./pulumiw config set --stack {stack} imageRegistry HOST:PORT",
        )
    client = engine_setup.ensure(steps, config["dockerHost"], config.stack)
    have = _having(steps, client, stack)
    for image in registry.push(steps, client, config.images, config["imageRegistry"], have=have):
        print(image)


def up(steps: Steps, stack: str) -> None:
    """Bring the stack up, which writes `.env` (toolchain/pulumi.py), and say what to do next."""
    try:
        config = StackConfig(stack)
        client = engine_setup.ensure(
            steps, config["dockerHost"], config.stack
        )  # checked before the tools, which can take minutes
    except SetupError as error:
        if PULUMI_COMMAND in error.fix:
            _select(steps, stack)
        raise
    _select(steps, stack)
    _check_ports(client, config)
    _ensure_images(steps, client, config)
    with steps.step(f"pulumi up, stack {stack}") as step:
        printed = _pulumi(step, stack, "up", *UNATTENDED, "--stack", stack)  # PULUMI_STACK may name another
    outputs = _outputs(stack)
    for line in dict.fromkeys(line.strip() for line in printed.splitlines()):
        if line.startswith("warning:") and OWN_PROVIDER not in line:
            steps.console.print(line, markup=False)
    print(_how_to_go_on(outputs, stack, config))


def down(steps: Steps, stack: str) -> None:
    """Destroy what the stack runs. A stack with protected data refuses, as Pulumi does."""
    tools.ensure(steps)
    with steps.step(f"pulumi destroy, stack {stack}") as step:
        _pulumi(step, stack, "destroy", *UNATTENDED, "--stack", stack)


def purge(steps: Steps, stack: str) -> None:
    """Remove the stack with its data, and with the last one everything that was created here (toolchain/purge.py)."""
    config = StackConfig(stack)
    tools.ensure(steps)
    take_away.purge(
        steps,
        project=config.project,
        stack=stack,
        host=config["dockerHost"],
        pulumi=lambda step, *arguments: _pulumi(step, stack, *arguments, "--non-interactive", "--color=never"),
    )


def _asking(steps: Steps) -> Callable[[str], bool] | None:
    """How to ask a person, or None: without a terminal, or if output goes to a log, nobody sees the question."""
    return steps.ask if sys.stdin.isatty() and steps.console.is_terminal else None


def _select(steps: Steps, stack: str) -> None:
    """Create the stack if needed, and select it: the commands that errors name need both."""
    tools.ensure(steps)
    with steps.step(f"pulumi stack select, stack {stack}") as step:
        _pulumi(step, stack, "stack", "select", "--create", stack)


def _pulumi(step: Step, stack: str, *arguments: str) -> str:
    """Run Pulumi for a stack, after any other run of the set-up for it has ended. Raises SetupError."""
    try:
        with operating_system.exclusive(f"stack-{stack}", step):
            return step.run([PULUMI, *arguments])
    except CommandError as error:
        if NO_STACK in error.output:
            raise SetupError(
                f"there is no stack {stack}, so there is nothing to destroy",
                fix=f"{PULUMI_COMMAND} stack ls lists the stacks; PULUMI_BACKEND_URL says where they are kept",
            ) from error
        if LOCKED in error.output:
            raise SetupError(
                f"another run of Pulumi is changing the stack: {error}",
                fix="wait until it has ended, then run the same command again",
            ) from error
        said = re.search(r"^Diagnostics:.*?(?=^Outputs:|^Resources:|\Z)", error.output, re.MULTILINE | re.DOTALL)
        raise SetupError(
            f"pulumi {arguments[0]} failed. {said[0].rstrip() if said else error}",
            fix="fix what is named above, then run the same command again",
        ) from error


def _check_ports(client: docker.DockerClient, config: StackConfig) -> None:
    """Find taken ports before anything is started. The ports of this stack's own containers count as free."""
    if config["placement"] != "docker" or not config["dockerHost"].startswith("unix:"):
        return
    own = _published(client, {f"{config.project}-{config.stack}-{part}" for part in ("edge", "postgres")})
    spoken_for = {str(config[key]) for key in PORT_SETTINGS}
    problems, fixes = [], []
    for key in PORT_SETTINGS:
        unused = config[key] in ("", None) or (key == "postgresPort" and config["databaseUrl"])
        if unused or str(config[key]) in own:
            continue
        address = LOOPBACK if key in LOOPBACK_PORTS else config["bindAddress"]
        if why := _why_unusable(address, config[key]):
            problems.append(f"port {config[key]} of {address} cannot be used as {key}: {why}")
            free = "PORT"
            if why == os.strerror(errno.EADDRINUSE):
                free = _free_port(address, int(config[key]), spoken_for)
                spoken_for.add(free)
            fixes.append(f"{PULUMI_COMMAND} config set --stack {config.stack} {key} {free}")
    if problems:
        raise SetupError("\n".join(problems), fix="\n    ".join(fixes))


def _published(client: docker.DockerClient, names: set[str]) -> set[str]:
    """The host's ports that running containers with these names use."""
    running = client.containers.list(ignore_removed=True)
    bindings = [each for container in running if container.name in names for each in container.ports.values()]
    return {binding["HostPort"] for each in bindings for binding in each or ()}


def _why_unusable(address: str, port: object) -> str:
    """Why nothing can be published on a port; empty if it can be."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, int(str(port))))
        except OSError as error:
            return error.strerror or str(error)
        except (OverflowError, ValueError) as error:
            return str(error)
    return ""


def _free_port(address: str, taken: int, spoken_for: set[str]) -> str:
    """The next port that could be used instead of a taken one, or the word PORT."""
    above = (str(port) for port in range(taken + 1, LAST_PORT + 1))
    return next((port for port in above if port not in spoken_for and not _why_unusable(address, port)), "PORT")


def _outputs(stack: str) -> dict[str, Any]:
    command = [PULUMI, "stack", "output", "--json", "--show-secrets", "--stack", stack]
    printed = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if printed.returncode != 0:
        raise SetupError("the stack is up, but its outputs cannot be read", fix=f"{PULUMI} stack output")
    outputs: dict[str, Any] = json.loads(printed.stdout)
    return outputs


def _how_to_go_on(outputs: dict[str, Any], stack: str, config: StackConfig) -> str:
    url, models = outputs["litellmUrl"], outputs["models"]
    chats = [model for model in models if "embed" not in model and "*" not in model]
    model = DEFAULT_MODEL if DEFAULT_MODEL in chats else next(iter(chats), "MODEL")
    option, argument = f" --model {model}", f', ChatCompletionOptions(model="{model}")'
    if model == DEFAULT_MODEL:
        option = argument = ""
    program = f'from app import *; print(chat_completion([ChatMessage("user", "hello")]{argument}).content)'
    named = "" if stack == DEFAULT_STACK else f" STACK={stack}"
    demo = (
        "\n  The demo provider answers. For real models:\n"
        f"    ./pulumiw config set --stack {stack} --secret openaiApiKey        (others: docs/providers.md)\n"
        f"    make up{named}\n"
        if str(config["demo"]).lower() == "true" and not any(config[key] for key in KEYS)
        else ""
    )
    return f"""
The gateway is up at {url}, with {", ".join(models)}.

  Ask it something
    shell    .venv/bin/llmctl chat "hello"{option}
    curl     . ./.env; printf 'oauth2-bearer = %s' "$LITELLM_API_KEY" | curl -K - {url}/v1/chat/completions \\
               -H "Content-Type: application/json" \\
               -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "hello"}}]}}'
    Python   .venv/bin/python -c '{program}'
{demo}
  Look at it or change it: ./pulumiw preview, ./pulumiw up, ./pulumiw stack output. Take it down: make down{named}"""


def main() -> int:
    """Run the command that the Makefile names."""
    parser = argparse.ArgumentParser(prog="python -m toolchain", description=__doc__)
    parser.add_argument("command", choices=["prepare", "up", "down", "push", "purge"])
    parser.add_argument("--stack", default=DEFAULT_STACK)
    arguments = parser.parse_args()
    os.chdir(PROJECT)
    with Steps() as steps:
        try:
            match arguments.command:
                case "prepare":
                    prepare(steps, StackConfig(arguments.stack))
                case "up":
                    up(steps, arguments.stack)
                case "down":
                    down(steps, arguments.stack)
                case "purge":
                    purge(steps, arguments.stack)
                case "push":
                    push(steps, arguments.stack)
        except SetupError as error:
            steps.console.print(f"\n{error}", markup=False, style="red")
            return 1
        except KeyboardInterrupt:
            steps.console.print("\nInterrupted. Finished steps stay; the same command continues from there.")
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
