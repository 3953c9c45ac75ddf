"""A stack that leaves its host: for the Swarm and back, and for another machine, by the commands of the runbooks."""

from __future__ import annotations

import json
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import pytest
from openai import OpenAI

from engine.image_names import in_registry
from engine.labels import LABEL
from tests.engines import needs_an_engine_of_its_own
from tests.runbooks import runbook
from tests.stack_config import PROJECT_NAME
from tests.stacks import PARTS, Deployment, deployed, image_of
from tests.swarm.conftest import can_encrypt, llmctl
from toolchain.__main__ import IMAGE_SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.swarm.cluster import Cluster, Node

pytestmark = [needs_an_engine_of_its_own, pytest.mark.timeout(1200)]


def place_on_one_host(swarm: Cluster, made: Deployment) -> None:
    """Have all of a stack on the first node, as if it were in no Swarm."""
    made.set(bindAddress=swarm.nodes[0].address, allowPlainHttp="true")
    made.set(encryptNetworks=str(can_encrypt(swarm.nodes[0])).lower())  # of a Swarm's networks only
    made.set_path("saltKey", f"sk-{token_hex(32)}", secret=True)  # which the stack on the other machine gets too


def have_images(swarm: Cluster, node: Node) -> None:
    for image in map(image_of, IMAGE_SETTINGS):
        node.client.images.pull(in_registry(image, swarm.registry)).tag(image)


def names(deployment: Deployment) -> list[str]:
    """The organizations, in the order in which they came."""
    with deployment.database() as connection:
        return [name for (name,) in connection.execute("SELECT name FROM organizations ORDER BY created_at")]


def add(deployment: Deployment, name: str) -> None:
    with deployment.database() as connection:
        connection.execute("INSERT INTO organizations (name) VALUES (%s)", (name,))


def ask(deployment: Deployment, key: str) -> str | None:
    """What a model answers to a key."""
    client = deployment.client.with_options(api_key=key)
    answer = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    return answer.choices[0].message.content


def test_a_stack_moves_to_a_swarm_and_back_and_to_another_machine(
    swarm: Cluster, tmp_path: Path, *, of_litellm: bool
) -> None:
    """One `up` each; what ran before is gone, and never do two Postgres servers have the volume.

    With LiteLLM's database it moves to another engine too. There it has the same keys, virtual ones too, and the same
    rows; the stack on the first one goes on.
    """
    engine = swarm.nodes[0].client
    have_images(swarm, swarm.nodes[0])
    with deployed(tmp_path, lambda made: place_on_one_host(swarm, made), host=swarm.nodes[0].host) as made:
        label: dict[str, Any] = {"label": f"{LABEL}.stack={made.name}"}
        key = made.outputs["litellmApiKey"]
        add(made, "on one host")
        variables = {
            "DOCKER_HOST": swarm.nodes[0].host,
            "DATABASE_URL": made.outputs["databaseUrl"],
            "NODE": swarm.nodes[0].id,
            "GATEWAY_HOST": swarm.nodes[0].address,
            "HOST_ADDRESS": swarm.nodes[0].address,
            "REGISTRY": swarm.registry,
        }
        with runbook("move-to-a-swarm", made, **variables) as book:
            book.run("llmctl backup")
            book.run("--label-add")
            book.run("placement swarm")
            made.__dict__.pop("outputs", None)
            assert names(made) == ["on one host"]
            assert ask(made, key)
            assert made.outputs["litellmApiKey"] == key
            assert {container.name.split(".")[0] for container in made.containers() if container.name} >= {
                f"{PROJECT_NAME}-{made.name}-{part}" for part in ("postgres", "edge")
            }
            assert not {container.name for container in made.containers()} & {
                f"{PROJECT_NAME}-{made.name}-{part}" for part in PARTS
            }
            assert f"{PROJECT_NAME}-{made.name}-edge" in book.run("service ls")
            made.up(expect_no_changes=True)
            add(made, "on a Swarm")
            book.run("placement docker")
            made.__dict__.pop("outputs", None)
        assert names(made) == ["on one host", "on a Swarm"]
        assert ask(made, key)
        assert engine.services.list(filters=label) == []
        assert {container.name for container in made.containers()} == {
            f"{PROJECT_NAME}-{made.name}-{part}" for part in PARTS
        }
        made.up(expect_no_changes=True)
        made.refresh(expect_no_changes=True)
        if of_litellm:
            made.set(litellmDatabase="true")
            made.up()
            virtual_key = json.loads(llmctl(made, "keys", "create", "of-a-team", "--json"))["key"]
            move_to_another_machine(swarm, made, str(tmp_path / "saved.dump"), virtual_key)


def move_to_another_machine(swarm: Cluster, made: Deployment, backup: str, virtual_key: str) -> None:
    here, there = swarm.nodes[:2]
    have_images(swarm, there)
    new = f"{made.name}-new"
    hosts = {"OLD_HOST": here.host, "NEW_HOST": there.host, "ADDRESS": there.address}
    with runbook("another-machine", made, NEW_STACK=new, BACKUP=backup, **hosts) as book:
        book.run("up --stack")
        book.run("llmctl backup")
        assert "on a Swarm" in book.run("llmctl org list")
        url = book.type('./pulumiw stack output --stack "$NEW_STACK" litellmUrl')[1].strip()
        assert url.startswith(f"http://{there.address}:")
        for each in (made.outputs["litellmApiKey"], virtual_key):
            with OpenAI(base_url=f"{url}/v1", api_key=each) as client:
                assert client.models.list().data
        book.run("destroy")
    of_new: dict[str, Any] = {"label": f"{LABEL}.stack={new}"}
    assert there.client.containers.list(all=True, filters=of_new) == []
    assert there.client.volumes.list(filters=of_new) == []
    assert ask(made, virtual_key)
    made.up(expect_no_changes=True)
