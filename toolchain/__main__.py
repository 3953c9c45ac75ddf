"""`make up`, `make down`, `make push` and what `make test` needs: all from a clean clone to a stack that answers.

Nothing here is needed to work with a stack that stands: that is Pulumi's, by `./pulumiw preview`, `./pulumiw up` …
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from toolchain import engine, images, machine, registry, tools
from toolchain.progress import CommandError, SetupError, Step, Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    import docker

PROJECT = Path(__file__).resolve().parent.parent
PULUMI = str(PROJECT / "pulumiw")
UNATTENDED = ("--refresh", "--yes", "--skip-preview", "--non-interactive", "--color=never")
ENVIRONMENT_FILE = PROJECT / ".env"
IMAGE_SETTINGS = {"litellm": "litellmImage", "postgres": "postgresImage", "haproxy": "haproxyImage"}
PULUMI_COMMAND = "./pulumiw"
OWN_PROVIDER = "using pulumi-resource-docker from $PATH"
"""What Pulumi warns of where the Docker provider was built here, on purpose."""
LOCKED = "the stack is currently locked"
NO_STACK = "no stack named"
PORT_SETTINGS = {"edge": "gatewayPort", "postgres": "postgresPort"}


class StackConfig:
    """The plain values of a stack's config, with the project's defaults."""

    def __init__(self, stack: str) -> None:
        project = yaml.safe_load((PROJECT / "Pulumi.yaml").read_text(encoding="utf-8"))
        path = PROJECT / f"Pulumi.{stack}.yaml"
        own = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
        self.project: str = project["name"]
        self.stack = stack
        self._defaults = {key: spec.get("default") for key, spec in project["config"].items()}
        self._values = (own or {}).get("config") or {}

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 -- the stack config's values are of any type
        return self._values.get(f"{self.project}:{key}", self._defaults.get(key))

    @property
    def own_keys(self) -> set[str]:
        """What the stack sets itself."""
        return {key.removeprefix(f"{self.project}:") for key in self._values}

    @property
    def images(self) -> dict[str, str]:
        """The images that the stack runs, by part."""
        parts = IMAGE_SETTINGS.keys() - ({"postgres"} if "databaseUrl" in self.own_keys else set())
        return {part: self[key] for part, key in IMAGE_SETTINGS.items() if part in parts}


def prepare(steps: Steps, config: StackConfig) -> None:
    """Make sure of the engine, the Pulumi tools and the images that a stack names."""
    client = engine.ensure(steps, config["dockerHost"])
    tools.ensure(steps)
    _ensure_images(steps, client, config)


def _ensure_images(steps: Steps, client: docker.DockerClient, config: StackConfig) -> None:
    """Make sure of the images that a stack names: on its engine, or in their registry."""
    if address := config["imageRegistry"]:
        registry.fill(steps, client, config.images, address, ask=_asking(steps))
    else:
        images.ensure(steps, client, config.images, ask=_asking(steps))


def push(steps: Steps, stack: str) -> None:
    """Push the images that a stack names to the registry that it names, and print what is there now."""
    config = StackConfig(stack)
    if not config["imageRegistry"]:
        raise SetupError(
            f"stack {stack} names no registry to push to",
            mend=f"./pulumiw config set --stack {stack} imageRegistry HOST:PORT",
        )
    client = engine.ensure(steps, config["dockerHost"])
    for image in registry.push(steps, client, config.images, config["imageRegistry"], ask=_asking(steps)):
        print(image)


def up(steps: Steps, stack: str) -> None:
    """Bring the stack up, write `.env`, and say how to go on."""
    config = StackConfig(stack)
    try:
        client = engine.ensure(steps, config["dockerHost"])  # known before minutes go into the tools
    except SetupError as error:
        if PULUMI_COMMAND in error.mend:
            _select(steps, stack)
        raise
    _select(steps, stack)
    _check_ports(client, config)
    _ensure_images(steps, client, config)
    with steps.step(f"pulumi up, stack {stack}") as step:
        printed = _pulumi(step, stack, "up", *UNATTENDED, "--stack", stack)  # PULUMI_STACK may name another
    outputs = _outputs(stack)
    _write_environment_file(
        {
            "LITELLM_URL": outputs["litellmUrl"],
            "LITELLM_API_KEY": outputs["litellmApiKey"],
            "DATABASE_URL": outputs["databaseUrl"],
        }
    )
    for line in dict.fromkeys(line.strip() for line in printed.splitlines()):
        if line.startswith("warning:") and OWN_PROVIDER not in line:
            steps.console.print(line, markup=False)
    print(_how_to_go_on(outputs, stack, config))


def down(steps: Steps, stack: str) -> None:
    """Destroy what the stack runs. A stack with protected data refuses, as Pulumi does."""
    tools.ensure(steps)
    with steps.step(f"pulumi destroy, stack {stack}") as step:
        _pulumi(step, stack, "destroy", *UNATTENDED, "--stack", stack)


def _asking(steps: Steps) -> Callable[[str], bool] | None:
    """What asks a person, where one can answer: who types on a terminal and reads a log sees no question."""
    return steps.ask if sys.stdin.isatty() and steps.console.is_terminal else None


def _select(steps: Steps, stack: str) -> None:
    """Have the stack, and have it selected: the commands that errors name need both."""
    tools.ensure(steps)
    with steps.step(f"pulumi stack select, stack {stack}") as step:
        _pulumi(step, stack, "stack", "select", "--create", stack)


def _pulumi(step: Step, stack: str, *arguments: str) -> str:
    """Run Pulumi for a stack, after any other run of this kind for it. Raises SetupError."""
    try:
        with machine.exclusive(f"stack-{stack}", step):
            return step.run([PULUMI, *arguments])
    except CommandError as error:
        if NO_STACK in error.output:
            raise SetupError(
                f"there is no stack {stack}, so nothing that could be destroyed",
                mend=f"{PULUMI_COMMAND} stack ls lists those that there are; PULUMI_BACKEND_URL says where",
            ) from error
        if LOCKED in error.output:
            raise SetupError(
                f"another run of Pulumi changes the stack: {error}",
                mend="wait until it has ended, then run the same command again",
            ) from error
        said = re.search(r"^Diagnostics:.*?(?=^Outputs:|^Resources:|\Z)", error.output, re.MULTILINE | re.DOTALL)
        raise SetupError(
            f"pulumi {arguments[0]} failed. {said[0].rstrip() if said else error}",
            mend="mend what is named above, then run the same command again",
        ) from error


def _check_ports(client: docker.DockerClient, config: StackConfig) -> None:
    """Find out about taken ports before anything is started. A port of this stack's own container is free to it."""
    if config["placement"] != "docker" or not config["dockerHost"].startswith("unix:"):
        return
    running = {container.name for container in client.containers.list()}
    problems, mends = [], []
    for part, key in PORT_SETTINGS.items():
        if f"{config.project}-{config.stack}-{part}" in running or (
            part == "postgres" and "databaseUrl" in config.own_keys
        ):
            continue
        if why := _why_unusable(config["bindAddress"], config[key]):
            problems.append(f"port {config[key]} of {config['bindAddress']} cannot be used for the {part}: {why}")
            mends.append(f"{PULUMI_COMMAND} config set --stack {config.stack} {key} {_free_port(config, key, why)}")
    if problems:
        raise SetupError("\n".join(problems), mend="\n    ".join(mends))


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


def _free_port(config: StackConfig, key: str, why: str) -> str:
    """The next port that could be used instead of a taken one, or the word PORT."""
    if why != os.strerror(errno.EADDRINUSE):
        return "PORT"
    others = {str(config[other]) for other in PORT_SETTINGS.values()}
    above = (str(port) for port in range(int(config[key]) + 1, 65536))
    return next(
        (port for port in above if port not in others and not _why_unusable(config["bindAddress"], port)), "PORT"
    )


def _outputs(stack: str) -> dict[str, Any]:
    command = [PULUMI, "stack", "output", "--json", "--show-secrets", "--stack", stack]
    printed = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if printed.returncode != 0:
        raise SetupError("the stack is up, but its outputs cannot be read", mend=f"{PULUMI} stack output")
    outputs: dict[str, Any] = json.loads(printed.stdout)
    return outputs


def _write_environment_file(values: dict[str, str]) -> None:
    """Put `values` into `.env`, readable by its owner only; other lines of it stay."""
    lines = ENVIRONMENT_FILE.read_text(encoding="utf-8").splitlines() if ENVIRONMENT_FILE.exists() else []
    kept = [line for line in lines if line.split("=", 1)[0].removeprefix("export ").strip() not in values]
    text = "".join(
        f"{line}\n" for line in [*kept, *(f"{name}={shlex.quote(value)}" for name, value in values.items())]
    )
    descriptor, temporary = tempfile.mkstemp(prefix=".env.", dir=PROJECT)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).replace(ENVIRONMENT_FILE)


def _how_to_go_on(outputs: dict[str, Any], stack: str, config: StackConfig) -> str:
    url = outputs["litellmUrl"]
    demo = (
        "\n  The demo provider answers. For real models:\n"
        f"    ./pulumiw config set --stack {stack} --secret openaiApiKey sk-…        (or anthropicApiKey)\n"
        f"    make up\n"
        if config["demo"] and not {"openaiApiKey", "anthropicApiKey"} & config.own_keys
        else ""
    )
    return f"""
The gateway is up at {url}, with {", ".join(outputs["models"])}.

  Ask it something
    shell    .venv/bin/llmctl chat "hello"
    curl     . ./.env; printf 'oauth2-bearer = %s' "$LITELLM_API_KEY" | curl -K - {url}/v1/chat/completions \\
               -H "Content-Type: application/json" \\
               -d '{{"model": "gpt-4o", "messages": [{{"role": "user", "content": "hello"}}]}}'
    Python   .venv/bin/python -c 'from app import *; print(chat_completion([ChatMessage("user", "hello")]).content)'
{demo}
  Look at it or change it: ./pulumiw preview, ./pulumiw up, ./pulumiw stack output. End it: make down"""


def main() -> int:
    """Run the command that the Makefile names."""
    parser = argparse.ArgumentParser(prog="python -m toolchain", description=__doc__)
    parser.add_argument("command", choices=["prepare", "up", "down", "push"])
    parser.add_argument("--stack", default="dev")
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
                case "push":
                    push(steps, arguments.stack)
        except SetupError as error:
            steps.console.print(f"\n{error}", markup=False, style="red")
            return 1
        except KeyboardInterrupt:
            steps.console.print("\nInterrupted. What was finished stays; the same command goes on from there.")
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
