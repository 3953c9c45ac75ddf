"""A stack whose database is on a server that it does not run, as is recommended for production."""

from __future__ import annotations

import time
from secrets import token_hex
from typing import TYPE_CHECKING

import psycopg
import pytest

from engine.image_names import in_registry
from tests.database import answers
from tests.engines import needs_an_engine_of_its_own
from tests.stacks import deployed, image_of
from tests.swarm.cluster import until
from tests.swarm.conftest import place_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.stacks import Deployment
    from tests.swarm.cluster import Cluster

PORT = 5433

pytestmark = [needs_an_engine_of_its_own, pytest.mark.timeout(900)]


@pytest.fixture
def server(swarm: Cluster) -> Iterator[str]:
    """The URL of an empty database on a Postgres of somebody else's, in a container of the last node."""
    node, password = swarm.nodes[-1], token_hex(16)
    container = node.client.containers.run(
        node.client.images.pull(in_registry(image_of("postgres"), swarm.registry)),
        detach=True,
        environment={"POSTGRES_PASSWORD": password, "POSTGRES_USER": "team", "POSTGRES_DB": "products"},
        ports={"5432/tcp": PORT},
    )
    url = f"postgresql://team:{password}@{node.address}:{PORT}/products"
    until(lambda: answers(url), "the other Postgres answers")
    yield url
    container.remove(force=True, v=True)


def test_migrations_go_to_a_server_that_the_stack_does_not_run(swarm: Cluster, server: str, tmp_path: Path) -> None:
    """Nothing else of it is touched; no Postgres runs in the stack; a destroy leaves it as it is."""

    def configure(made: Deployment) -> None:
        place_on(swarm)(made)
        made.set(replicas=1)
        made.set_path("databaseUrl", server, secret=True)

    with deployed(tmp_path, configure, host=swarm.nodes[0].host) as made:
        assert made.outputs["databaseUrl"] == server
        parts = {str(service.name).rsplit("-", 1)[-1] for service in made.services()}
        assert parts == {"demo", "edge", "g1"}
        answer = made.client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hello"}])
        assert answer.choices[0].message.content
        with made.database() as connection:
            connection.execute("INSERT INTO organizations (name) VALUES ('theirs')")
            roles = connection.execute(
                "SELECT rolname FROM pg_roles WHERE NOT starts_with(rolname, 'pg_')"
            ).fetchall()
        assert roles == [("team",)]
        made.up(expect_no_changes=True)
    with psycopg.connect(server) as connection:
        assert connection.execute("SELECT name FROM organizations").fetchall() == [("theirs",)]


def test_a_server_that_cannot_be_reached_is_named(swarm: Cluster, tmp_path: Path) -> None:
    """The `up` fails in seconds, with where it looked for the database and from where."""
    nobody = f"postgresql://team:secret-of-theirs@{swarm.nodes[-1].address}:9/products"

    def configure(made: Deployment) -> None:
        place_on(swarm)(made)
        made.set_path("databaseUrl", nobody, secret=True)

    started = time.monotonic()
    with pytest.raises(Exception, match="cannot be used from where `pulumi up` runs") as caught:  # noqa: SIM117
        with deployed(tmp_path, configure, host=swarm.nodes[0].host):
            pass
    print(f"\nrefused after {time.monotonic() - started:.1f} s")
    assert f"{swarm.nodes[-1].address}" in str(caught.value)
    assert "secret-of-theirs" not in str(caught.value)
