"""On a network without an image registry, one command fills your own registry, and the stack uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

from engine.image_names import in_registry
from tests.engines import needs_an_engine_of_its_own
from tests.stack_config import project_file
from tests.stacks import Deployment, free_port, image_of
from tests.swarm.cluster import NETWORK, _registry, _registry_program
from tests.swarm.conftest import place_on
from toolchain import images, registry
from toolchain.__main__ import IMAGE_SETTINGS
from toolchain.progress import SetupError, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.swarm.cluster import Cluster

pytestmark = needs_an_engine_of_its_own

IS_PLAIN, IS_NOT_THERE = (f"{NETWORK.format(1)}:{port}" for port in (5001, 5002))
"""Registries that cannot be used: the nodes allow plain HTTP to none but the cluster's own."""


@pytest.fixture(scope="module", autouse=True)
def _the_manager_has_the_images(swarm: Cluster) -> None:
    """Under the names that they have where they were built or pulled, as after `docker load`."""
    client = swarm.nodes[0].client
    for image in map(image_of, IMAGE_SETTINGS):
        client.images.pull(in_registry(image, swarm.registry)).tag(image)


@pytest.fixture
def deployment(swarm: Cluster, tmp_path: Path) -> Iterator[Deployment]:
    """A stack for the Swarm, of which nothing is up; its registry is a part of the cluster's that is empty."""
    made = Deployment(tmp_path, f"test-{os.urandom(4).hex()}", host=swarm.nodes[0].host)
    place_on(swarm)(made)
    made.set(gatewayPort=free_port(), postgresPort=free_port(), imageRegistry=f"{swarm.registry}/{made.name}")
    try:
        yield made
    finally:
        made.destroy()


def make(deployment: Deployment, target: str) -> subprocess.CompletedProcess[str]:
    """Do as `make TARGET STACK=…`."""
    return subprocess.run(
        [sys.executable, "-m", "toolchain", target, "--stack", deployment.name],
        cwd=deployment.folder,
        env={**os.environ, **deployment.environment},
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_preview_asks_for_a_push_and_finds_what_that_pushed(swarm: Cluster, deployment: Deployment) -> None:
    before = deployment.pulumi("preview")
    assert before.returncode != 0
    assert f"make push STACK={deployment.name}, which fills it" in before.stdout

    pushed = make(deployment, "push")
    assert pushed.returncode == 0, pushed.stderr
    images = pushed.stdout.split()
    assert len(images) == len(IMAGE_SETTINGS)
    for image in images:
        name, _, digest = image.partition("@")
        assert name.startswith(f"{swarm.registry}/{deployment.name}/")
        assert swarm.nodes[1].client.images.get_registry_data(name).id == digest

    after = deployment.pulumi("preview")
    assert after.returncode == 0, after.stdout
    assert make(deployment, "push").stdout == pushed.stdout


def test_one_command_brings_a_closed_cluster_up(swarm: Cluster, deployment: Deployment) -> None:
    """It pushes what the registry is missing, and runs that; a second time that is nothing, and nothing changes."""
    deployment.set(replicas=1)
    # The project's own would make a virtual environment for this copy of it.
    (deployment.folder / "pulumiw").write_text('#!/bin/sh\nexec .venv/bin/python -m toolchain.pulumi "$@"\n')
    up = make(deployment, "up")
    assert up.returncode == 0, up.stderr
    assert up.stderr.count("✓ Push ") == len(IMAGE_SETTINGS)
    assert "The gateway is up" in up.stdout
    for service in swarm.nodes[0].client.services.list(filters=deployment.of_stack):
        image = service.attrs["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        assert image.startswith(f"{swarm.registry}/{deployment.name}/")
        assert "@sha256:" in image
    assert "Push " not in make(deployment, "prepare").stderr
    deployment.up(expect_no_changes=True)


def test_a_registry_must_be_named_to_be_filled(deployment: Deployment) -> None:
    deployment.forget("imageRegistry")
    refused = make(deployment, "push")
    assert refused.returncode == 1
    assert f"./pulumiw config set --stack {deployment.name} imageRegistry HOST:PORT" in refused.stderr


@pytest.mark.parametrize(
    ("address", "why", "fix"),
    [
        (IS_PLAIN, "server gave HTTP response to HTTPS client", f'"insecure-registries": ["{IS_PLAIN}"]'),
        (IS_NOT_THERE, "connection refused", f"curl https://{IS_NOT_THERE}/v2/"),
    ],
)
def test_a_registry_that_cannot_be_used(swarm: Cluster, address: str, why: str, fix: str) -> None:
    """The engine's own reason is told, with what fixes it, and the same whether it is to be pushed to or asked."""
    wanted = {"haproxy": str(project_file()["config"]["haproxyImage"]["default"])}
    with ExitStack() as stack:
        if address == IS_PLAIN:
            stack.enter_context(_registry(_registry_program(Steps()), address))
        client = swarm.nodes[0].client
        have = partial(images.ensure, Steps(), client, stack="any", ask=None)
        for function in (registry.push, registry.fill):
            with pytest.raises(SetupError) as caught:
                function(Steps(), client, wanted, address, have=have)
            assert why in caught.value.why
            assert fix in caught.value.fix
