"""The examples as their readers run them, against a real stack."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from app import organizations
from tests.stack_config import PROJECT
from tests.stacks import POLL_SECONDS, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stacks import Deployment

pytestmark = pytest.mark.usefixtures("environment")

UVICORN = str(Path(sys.executable).with_name("uvicorn"))
SECONDS = 60
"""For the service to start, to answer, and to end."""


@pytest.fixture
def service(environment: None, tmp_path: Path) -> Iterator[httpx2.Client]:
    """A client of the example service, which runs for one test and must end by itself after a signal."""
    log = tmp_path / "service.log"
    port = free_port()
    with (
        log.open("w") as output,
        subprocess.Popen(
            [UVICORN, "examples.service:api", "--port", str(port)],
            cwd=PROJECT,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS, trust_env=False) as client,
    ):
        try:
            await_start(client, process, log)
            yield client
            process.terminate()
            process.wait(SECONDS)
        finally:
            process.kill()
    assert "Application shutdown complete" in log.read_text()
    assert "Traceback" not in log.read_text()


def await_start(client: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            assert client.get("/openapi.json").status_code == 200
        except httpx2.ConnectError:
            time.sleep(POLL_SECONDS)
        else:
            return


@pytest.fixture
def organization() -> organizations.Organization:
    """One with the usual models: gpt-4o, and claude-3-5-sonnet when that fails."""
    return organizations.create(f"of a test {uuid.uuid4()}")


def asking(text: str) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": text}]}


def events(answer: httpx2.Response) -> list[tuple[str, object]]:
    """The server-sent events of an answer, as their name and their data."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [each.split("\n") for each in answer.text.removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def test_the_service_answers_by_the_organizations_model(
    service: httpx2.Client, organization: organizations.Organization
) -> None:
    """Whole and streamed, and by the fallback where that model fails; another organization has another model."""
    url = f"/organizations/{organization.id}/chat"
    whole = service.post(url, json=asking("hello")).json()
    assert whole["content"].endswith("You said: hello")
    assert (whole["model"], whole["used_fallback"]) == ("gpt-4o", False)
    *pieces, done = events(service.post(f"{url}/stream", json=asking("hello")))
    assert {name for name, _ in pieces} == {"text"}
    assert len(pieces) > 1
    assert "".join(str(text) for _, text in pieces) == whole["content"]
    assert done == ("done", {"model": "gpt-4o", "used_fallback": False})

    failing = asking("[[demo status=500 model=gpt-4o]] hello")
    by_fallback = service.post(url, json=failing).json()
    assert (by_fallback["model"], by_fallback["used_fallback"]) == ("claude-3-5-sonnet", True)
    *_, done = events(service.post(f"{url}/stream", json=failing))
    assert done == ("done", {"model": "claude-3-5-sonnet", "used_fallback": True})

    other = organizations.create(f"of a test {uuid.uuid4()}", model="claude-3-5-sonnet", fallback="gpt-4o")
    answered = service.post(f"/organizations/{other.id}/chat", json=asking("hello")).json()
    assert (answered["model"], answered["used_fallback"]) == ("claude-3-5-sonnet", False)


def test_the_service_makes_vectors(service: httpx2.Client) -> None:
    one, same, other = (service.post("/embeddings", json={"text": text}).json() for text in ("a", "a", "b"))
    assert one["dimensions"] == len(one["embedding"]) == 1536
    assert one == same != other


def test_the_service_tells_what_failed_and_nothing_else(
    deployment: Deployment, service: httpx2.Client, organization: organizations.Organization
) -> None:
    """With the proper status, and without a key, an address, a model or a prompt."""
    url = f"/organizations/{organization.id}/chat"
    refused = {
        404: service.post(f"/organizations/{uuid.UUID(int=0)}/chat", json=asking("my prompt")),
        422: service.post(url, json=asking("[[demo status=400 code=content_policy_violation]] my prompt")),
        502: service.post(url, json=asking("[[demo status=500]] my prompt")),
    }
    organizations.set_models(organization.id, model="gpt-4o", fallback=None)
    refused[429] = service.post(f"{url}/stream", json=asking("[[demo status=429]] my prompt"))
    for status, answer in refused.items():
        assert answer.status_code == status, answer.text
        assert set(answer.json()) == {"detail", "request_id"}
        for hidden in (deployment.outputs["litellmApiKey"], "127.0.0.1", "litellm", "gpt-4o", "my prompt"):
            assert hidden not in answer.text
    broken = events(service.post(f"{url}/stream", json=asking("[[demo cut=4]] my prompt")))
    assert [name for name, _ in broken][-1] == "error"
    assert "text" in dict(broken)


def test_the_script_answers_from_the_nearest_paragraphs(tmp_path: Path) -> None:
    """The demo provider repeats what it was asked: three of five paragraphs, and one of them is the question."""
    text = tmp_path / "text.md"
    paragraphs = [f"Paragraph {name}." for name in ("one", "two", "three", "four", "five")]
    text.write_text("\n\n".join(paragraphs) + "\n\n\n\n")
    script = PROJECT / "examples" / "answer_from_text.py"
    command = [sys.executable, str(script), str(text), "Paragraph four."]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Paragraph four.") == 2
    assert sum(paragraph in done.stdout for paragraph in paragraphs) == 3


def test_the_examples_in_the_documents_run_as_they_are(tmp_path: Path) -> None:
    """All of docs/app.md as one program; its question about the weather makes the demo provider call a function."""
    document = (PROJECT / "docs/app.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL))
    program, changes = re.subn("What is the weather in Paris.", "[[demo answer=tools]]", program)
    assert changes == 1
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "photo.png").write_bytes(b"any picture")
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("You said: What is the capital of France?") == 4
    assert "You said: What is in this picture?" in done.stdout
    assert "gpt-4o False\n" in done.stdout
    assert 'get_weather {"city": "Paris"}\n' in done.stdout
    assert done.stdout.count("1536 (") == 2
