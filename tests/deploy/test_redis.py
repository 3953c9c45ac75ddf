"""Redis, of a stack that has one: who reaches it, with what, and whether it has room."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from console.redis_check import CLIENT, FOLDER, command
from infra import redis
from infra.workload import MEBIBYTE

if TYPE_CHECKING:
    from testinfra.host import Host

    from tests.deploy.stack import DeployedStack, Instance

ASK = """
import os, pathlib, socket
with socket.create_connection(({host!r}, {port}), 5) as server:
    password = pathlib.Path("/run/secrets/{file}").read_text().strip()
    server.sendall(f"AUTH {{password}}\\r\\n".encode())
    print(server.recv(100).decode())
"""


@pytest.mark.of_kind("redis")
def test_it_answers_with_the_password_and_not_without(stack: DeployedStack, instance: Instance, inside: Host) -> None:
    again = f"put its own files there: {stack.recreate(instance.part)}"
    answer = inside.run(f"sh -c {shlex.quote(command(FOLDER, 'ping'))}").stdout.strip()
    assert answer == "PONG", f"{instance} answers {answer!r} to its own password. {again}"
    answer = inside.run(f"sh -c {shlex.quote(f'{CLIENT} ping')}").stdout
    assert "NOAUTH" in answer, f"{instance} answers without a password. Have it {again}"


@pytest.mark.of_kind("redis")
def test_its_data_are_bounded_and_not_kept(stack: DeployedStack, instance: Instance, inside: Host) -> None:
    said = inside.run(f"sh -c {shlex.quote(command(FOLDER, 'info'))}").stdout
    told = dict(line.strip().split(":", 1) for line in said.splitlines() if ":" in line)
    found = (int(told["maxmemory"]), told["maxmemory_policy"], told["aof_enabled"])
    wanted = (stack.settings.redis_memory_mb // 2 * MEBIBYTE, "allkeys-lru", "0")
    assert found == wanted, f"{instance} was configured by hand. Recreate it: {stack.recreate(instance.part)}"
    assert told["evicted_keys"] == "0", (
        f"{instance} was full and dropped counters. Give it more: ./pulumiw config set --stack {stack.name} "
        f"redisMemoryMb {2 * stack.settings.redis_memory_mb} && {stack.up}"
    )


@pytest.mark.of_kind("litellm")
def test_each_replica_reaches_it_with_the_password(stack: DeployedStack, instance: Instance, inside: Host) -> None:
    on_a_swarm = stack.settings.placement == "swarm"
    host = stack.part("redis").runs_as if on_a_swarm else redis.NETWORK_NAME
    program = ASK.format(host=host, port=redis.PORT, file=redis.PASSWORD_VARIABLE)
    asked = inside.run(f"python3 -I -c {shlex.quote(program)}")
    assert asked.stdout.strip() == "+OK", (
        f"{instance} counts by itself: it is not accepted by Redis ({asked.stdout.strip() or asked.stderr[-200:]}). "
        f"See why: {stack.look_into(stack.part('redis'))}. Then: {stack.up}"
    )
