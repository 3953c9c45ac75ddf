"""`llmctl status` with a real stack: it shows what is there, and the requests that were sent."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

from infra import edge
from tests.stacks import LLMCTL

if TYPE_CHECKING:
    from pathlib import Path

    from tests.stacks import Deployment

pytestmark = pytest.mark.usefixtures("environment")

SECONDS = 120
"""For what a change of the stack takes until it is seen."""
PARTS = ["demo", "edge", "litellm-1", "litellm-2", "postgres"]
HELLO = "hello"
FAILS = "[[demo status=500]] hello"


def llmctl_status(*options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([LLMCTL, "status", *options], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done


def looked(*, code: int = 0) -> dict[str, Any]:
    """The status as a document, with the exit code that the command must have."""
    done = llmctl_status("--json")
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == code, document["wrong"]
    return document


def await_well() -> dict[str, Any]:
    """Wait until nothing is wrong, and the engine has asked every part for its health."""
    deadline = time.monotonic() + SECONDS
    while (done := llmctl_status("--json")).returncode != 0 or '"starting"' in done.stdout:
        assert time.monotonic() < deadline, done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def counts(document: dict[str, Any]) -> dict[str, int]:
    """What client `app` has asked, and what all replicas together were asked."""
    client: dict[str, int] = next((each for each in document["clients"] if each["name"] == "app"), {})
    replicas = [part["traffic"] for part in document["parts"] if part["kind"] == "litellm"]
    return {
        **{name: client.get(name, 0) for name in ("requests", "failed", "refused")},
        "of replicas": sum(traffic["requests"] for traffic in replicas if traffic),
    }


def ask(deployment: Deployment, text: str, model: str = "gpt-4o") -> None:
    """Over its own connection: after a reload, a kept connection still leads to the old worker once."""
    with httpx2.Client(timeout=SECONDS) as connections:
        client = deployment.client.with_options(http_client=connections)
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])


def test_a_stack_that_is_up_is_shown_whole(deployment: Deployment) -> None:
    """Every part, healthy, with its image; every program's version; the models that are served."""
    document = await_well()
    assert (document["wrong"], document["unseen"]) == ([], [])
    assert (document["stack"], document["url"]) == (deployment.name, deployment.outputs["litellmUrl"])
    assert document["models"] == sorted(deployment.outputs["models"])
    assert [part["name"] for part in document["parts"]] == PARTS
    for part in document["parts"]:
        assert (part["state"], part["up"]) == ("healthy", True)
        assert part["container"] == deployment.container(part["name"]).id
        assert part["image"] in (deployment.image(part["name"]).tags or [part["image"]])
    assert {part["name"] for part in document["parts"] if part["traffic"]} == {"edge", "litellm-1", "litellm-2"}
    versions = document["versions"]
    assert set(versions) == {"LiteLLM", "HAProxy", "PostgreSQL"}
    assert f"version {versions['HAProxy']}" in deployment.read("edge", "haproxy", "-v")
    with deployment.database() as connection:
        found = connection.execute("SHOW server_version").fetchone()
    assert found is not None
    assert str(found[0]).split()[0] == versions["PostgreSQL"]


def test_counts_grow_by_the_requests_that_are_sent(deployment: Deployment) -> None:
    """For a client: all requests, failed ones and refused ones, without this command's own."""
    before = counts(await_well())
    for _ in range(5):
        ask(deployment, HELLO)
    with pytest.raises(openai.InternalServerError):
        ask(deployment, FAILS)
    for _ in range(2):
        with pytest.raises(openai.NotFoundError):
            ask(deployment, HELLO, model="nothing")
    after = counts(await_well())
    grown = {name: after[name] - number for name, number in before.items()}
    assert (grown["requests"], grown["failed"], grown["refused"]) == (8, 1, 2)
    assert grown["of replicas"] >= 8


def test_what_clients_asked_is_known_through_a_reload(deployment: Deployment) -> None:
    """The replicas' counters start again, and the output says since when they count."""
    ask(deployment, HELLO)
    before = await_well()
    reload = ["bash", edge.RELOAD, edge.SERVERS_STATE, str(edge.MASTER_PORT)]
    reloaded = deployment.container("edge").exec_run(reload)
    assert reloaded.exit_code == 0, reloaded.output
    deadline = time.monotonic() + SECONDS
    while (after := await_well())["clients"] != before["clients"]:  # the old worker hands them on
        assert time.monotonic() < deadline
    assert after["counted_since"] > before["counted_since"]
    ask(deployment, HELLO)
    assert counts(await_well())["requests"] == counts(before)["requests"] + 1


def test_a_stopped_replica_is_shown_until_it_is_back(deployment: Deployment) -> None:
    """The exit code is 1 while it is away, though the gateway answers, and 0 once it is taken up again."""
    replica = deployment.container("litellm-2")
    replica.stop()
    try:
        document = looked(code=1)
        assert [part["up"] for part in document["parts"]] == [name != "litellm-2" for name in PARTS]
        (wrong,) = document["wrong"]
        assert wrong.startswith("litellm-2: exited (")
        assert f"docker logs --tail 50 {replica.name}, then ./pulumiw up --refresh --stack {deployment.name}" in wrong
        text = llmctl_status()
        assert text.returncode == 1
        assert text.stdout.splitlines()[1] == f"WRONG    {wrong}"
        ask(deployment, HELLO)
    finally:
        replica.start()
        deployment.await_restart("litellm-2", 0)
    assert await_well()["wrong"] == []
    assert llmctl_status().stdout.splitlines()[1] == "all is well"


def test_a_watch_ends_by_an_interrupt(deployment: Deployment) -> None:
    """It looks again and again, and an interrupt is not a failure."""
    await_well()
    command = [LLMCTL, "status", "--watch", "--every", "0.2", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        try:
            seen = [json.loads(process.stdout.readline()) for _ in range(3)]
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
        assert process.stderr.read() == ""
    assert seen[0]["at"] < seen[1]["at"] < seen[2]["at"]


def test_without_the_docker_command_the_gateway_alone_is_shown(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    document = looked()
    assert document["models"] == sorted(deployment.outputs["models"])
    assert (document["parts"], document["stack"]) == ([], None)
    assert document["unseen"] == ["what runs, and its requests: there is no docker on PATH"]
