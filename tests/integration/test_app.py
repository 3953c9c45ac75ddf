"""The app module against the real gateway and the real database of a stack, with the demo provider told to fail."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import app
from app import aio, organizations
from tests.faces import FACES, Face
from tests.stacks import LLMCTL
from tests.swarm.cluster import until

if TYPE_CHECKING:
    from tests.stacks import Deployment

pytestmark = pytest.mark.usefixtures("environment")

THREADS = 100
TASKS = 1000


@pytest.fixture(params=FACES, ids=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Face:
    made: Face = request.param
    return made


@pytest.fixture
def organization() -> organizations.Organization:
    return organizations.create(f"of a test {uuid.uuid4()}")


def telling(directive: str) -> list[app.ChatMessage]:
    return [app.ChatMessage("user", f"[[demo {directive}]] hello")]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("directive", "kind", "falls_back"),
    [
        ("status=429", app.RateLimitedError, True),
        ("status=500", app.ProviderError, True),
        ("status=503", app.ProviderError, True),
        ("status=408", app.TimedOutError, True),
        ("status=409", app.ProviderError, True),
        ("status=404", app.ModelUnknownError, True),
        (
            'status=400 code=context_length_exceeded message="This model\'s maximum context length is 10 tokens."',
            app.ContextTooLongError,
            True,
        ),
        ("status=401", app.ProviderError, True),
        ("status=403", app.ProviderError, True),
        ("status=400 code=content_policy_violation", app.ContentRefusedError, False),
        ("status=400", app.RequestRejectedError, False),
        ("status=422", app.RequestRejectedError, False),
    ],
)
def test_each_failure_as_it_really_arrives(  # noqa: PLR0913, PLR0917 -- a row has these columns
    face: Face,
    organization: organizations.Organization,
    directive: str,
    kind: type[app.LLMError],
    falls_back: bool,  # noqa: FBT001
    streamed: bool,  # noqa: FBT001
) -> None:
    """Every row of the fallback table that a provider can cause, through the real LiteLLM."""
    options = app.ChatCompletionOptions(stream=streamed)
    with pytest.raises(kind):
        face.chat(telling(directive), options)
    primary_only = telling(f"{directive} model=gpt-4o")
    if falls_back:
        assert face.chat_for_org(organization.id, primary_only, options).model == "claude-3-5-sonnet"
    else:
        with pytest.raises(kind):
            face.chat_for_org(organization.id, primary_only, options)


def test_an_unknown_model_falls_back(face: Face) -> None:
    """A preference that names a retired model does not stop the organization."""
    organization = organizations.create(f"of a test {uuid.uuid4()}", model="retired", fallback="gpt-4o")
    assert face.chat_for_org(organization.id, telling("")).model == "gpt-4o"
    with pytest.raises(app.ModelUnknownError):
        face.chat(telling(""), app.ChatCompletionOptions(model="retired"))


def test_a_key_that_the_gateway_does_not_know_is_reported(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_API_KEY", "sk-" + "0" * 64)
    with pytest.raises(app.GatewayRefusedKeyError):
        face.chat(telling(""))


def test_a_missing_gateway_is_reported(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_URL", "http://127.0.0.1:9")
    with pytest.raises(app.GatewayUnreachableError, match="pulumiw up"):
        face.chat(telling(""))


def test_a_stream_cut_before_its_first_content_falls_back(
    face: Face, organization: organizations.Organization
) -> None:
    for cut in (0, 1):
        messages = telling(f"cut={cut} model=gpt-4o")
        assert face.stream_for_org(organization.id, messages)[1].model == "claude-3-5-sonnet"


def test_a_stream_cut_after_its_first_content_gives_what_had_arrived(
    face: Face, organization: organizations.Organization
) -> None:
    with pytest.raises(app.StreamInterruptedError) as caught:
        face.stream_for_org(organization.id, telling("cut=4 model=gpt-4o"))
    assert caught.value.content == "This is the "


def test_a_slow_primary_leaves_time_for_the_fallback(face: Face, organization: organizations.Organization) -> None:
    """One deadline covers both: the app gives up on the preferred model in time for the fallback to answer."""
    for stream in (False, True):
        options = app.ChatCompletionOptions(timeout=5, stream=stream)
        result = face.chat_for_org(organization.id, telling("delay=60 model=gpt-4o"), options)
        assert (result.model, result.used_fallback) == ("claude-3-5-sonnet", True)


def test_both_failing_is_one_error(face: Face, organization: organizations.Organization) -> None:
    with pytest.raises(app.FallbackFailedError) as caught:
        face.chat_for_org(organization.id, telling("status=500"))
    assert isinstance(caught.value.primary, app.ProviderError)
    assert isinstance(caught.value.fallback, app.ProviderError)


def test_an_embedding_comes_from_the_gateway(face: Face) -> None:
    one, other = face.embed_many(["hello", "world"])
    assert one.dimensions == len(one.embedding) == 1536
    assert one != other
    assert face.embed("hello") == one


def test_organizations_are_kept(organization: organizations.Organization) -> None:
    assert organizations.get(str(organization.id)) == organization
    assert (organization.llm_model, organization.llm_fallback_model) == ("gpt-4o", "claude-3-5-sonnet")
    changed = organizations.set_models(organization.id, model="claude-3-5-sonnet", fallback=None)
    assert changed in organizations.listed()
    with pytest.raises(ValueError, match="already"):
        organizations.create(organization.name)
    with pytest.raises(app.OrganizationNotFoundError, match="llmctl org list"):
        organizations.set_models(uuid.UUID(int=0), model="m", fallback=None)
    with pytest.raises(app.OrganizationNotFoundError):
        organizations.get(uuid.UUID(int=0))


def test_a_missing_database_is_reported_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://app:the-password@127.0.0.1:9/app")
    with pytest.raises(app.DatabaseUnavailableError) as caught:
        organizations.listed()
    assert "the-password" not in str(caught.value)


def connections(deployment: Deployment) -> int:
    """How many connections the app's role has, without the one that asks."""
    with deployment.database() as connection:
        row = connection.execute("SELECT count(*) - 1 FROM pg_stat_activity WHERE usename = session_user").fetchone()
    assert row is not None
    return int(row[0])


def test_a_hundred_threads_share_the_connections(
    deployment: Deployment, organization: organizations.Organization
) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        asked = [pool.submit(app.chat_completion_for_org, organization.id, telling("")) for _ in range(THREADS * 3)]
        assert {each.result().content.endswith("hello") for each in asked} == {True}
    assert connections(deployment) <= organizations.MOST_CONNECTIONS
    app.close()
    until(lambda: connections(deployment) == 0, "the server has ended them")


def test_a_thousand_tasks_share_the_connections(
    deployment: Deployment, organization: organizations.Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organizations, "WAIT_SECONDS", 600)  # a busy machine is not what is tested
    app.close()  # the connections that made the organization

    async def main() -> int:
        try:
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(aio.chat_completion_for_org(organization.id, telling(""))) for _ in range(TASKS)
                ]
            assert {task.result().content.endswith("hello") for task in asked} == {True}
            return connections(deployment)
        finally:
            await aio.close()

    assert asyncio.run(main()) <= organizations.MOST_CONNECTIONS
    until(lambda: connections(deployment) == 0, "the server has ended them")


LOOPS = 32


def test_many_loops_in_threads_of_their_own(deployment: Deployment, organization: organizations.Organization) -> None:
    """Each has its own connections, which are closed with it."""
    app.close()  # the connections that made the organization
    together = threading.Barrier(LOOPS)

    def ask(_: int) -> int:
        together.wait()
        answers = [asyncio.run(aio.chat_completion_for_org(organization.id, telling(""))).content for _ in range(12)]
        return sum(answer.endswith("hello") for answer in answers)

    with ThreadPoolExecutor(LOOPS) as threads:
        assert sum(threads.map(ask, range(LOOPS))) == 12 * LOOPS
    until(lambda: connections(deployment) == 0, "the server has ended them")


def llmctl(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([LLMCTL, *arguments], input=stdin, capture_output=True, text=True, check=False)


def test_llmctl_asks_from_the_shell(organization: organizations.Organization) -> None:
    """Data on standard output, nothing else; `--json` is one document."""
    for arguments, stdin in ((["chat", "hello"], ""), (["chat"], "hello"), (["chat", "--stream", "-"], "hello")):
        asked = llmctl(*arguments, stdin=stdin)
        assert (asked.returncode, asked.stderr) == (0, "")
        assert asked.stdout.endswith("You said: hello\n")
    of_org = llmctl("chat", "[[demo status=500 model=gpt-4o]] hi", "--org", str(organization.id), "--json")
    assert json.loads(of_org.stdout)["used_fallback"] is True
    assert len(llmctl("embed", "hello").stdout.splitlines()) == 1536
    assert llmctl("models").stdout.split() == ["claude-3-5-sonnet", "gpt-4o", "text-embedding-3-small"]
    assert json.loads(llmctl("models", "--json").stdout) == ["claude-3-5-sonnet", "gpt-4o", "text-embedding-3-small"]


def test_llmctl_keeps_organizations() -> None:
    name = f"acme {uuid.uuid4()}"
    made = json.loads(llmctl("org", "create", name, "--json").stdout)
    assert json.loads(llmctl("org", "show", made["id"], "--json").stdout) == made
    assert made in json.loads(llmctl("org", "list", "--json").stdout)
    assert made["id"] in llmctl("org", "list").stdout
    refused = llmctl("org", "set-model", made["id"], "nothing")
    assert refused.returncode == 2
    assert "does not serve nothing" in refused.stderr
    changed = llmctl("org", "set-model", made["id"], "nothing", "--force", "--no-fallback", "--json")
    assert json.loads(changed.stdout) | {"llm_model": "gpt-4o", "llm_fallback_model": "claude-3-5-sonnet"} == made
    alone = llmctl("org", "create", f"{name} alone", "--no-fallback", "--json")
    assert json.loads(alone.stdout)["llm_fallback_model"] is None


def test_llmctl_fails_in_one_line_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, code in (
        (["org", "show", "no-uuid"], 2),
        (["org", "show", str(uuid.UUID(int=0))], 1),
        (["chat", " "], 2),
        (["chat", "x", "--model", "nothing"], 1),
        (["chat", "[[demo status=500]]"], 1),
        (["nothing"], 2),
    ):
        failed = llmctl(*arguments)
        assert (failed.returncode, failed.stdout) == (code, ""), arguments
        assert failed.stderr
        assert "Traceback" not in failed.stderr, arguments
    monkeypatch.setenv("LITELLM_URL", "http://127.0.0.1:9")
    assert llmctl("chat", "hello").returncode == 1
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nothing")
    assert llmctl("migrate", "status").returncode == 1


def test_llmctl_doctor_finds_what_is_wrong_and_names_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    well = llmctl("doctor", "--json")
    found = {finding["check"]: finding["status"] for finding in json.loads(well.stdout)}
    assert well.returncode == 0
    assert set(found) == {
        *("settings", "gateway", "version", "key", "models"),
        *("database", "collation", "own database", "migrations", "organizations"),
    }
    assert {status for check, status in found.items() if check != "organizations"} == {"ok"}
    organizations.create(f"of a test {uuid.uuid4()}", model="gone")
    assert "names gone, which the gateway does not serve" in llmctl("doctor").stdout
    pending = tmp_path / "migrations"
    pending.mkdir()
    for file in (Path(app.__file__).parent.parent / "migrations").glob("*.sql"):
        (pending / file.name).write_text(file.read_text())
    (pending / "0003_more.sql").write_text("SELECT 1;")
    failed = llmctl("doctor", "--folder", str(pending))
    assert failed.returncode == 1
    assert "pending: 0003_more.sql" in failed.stdout
    assert "llmctl migrate up" in failed.stdout
    monkeypatch.setenv("LITELLM_API_KEY", "sk-" + "0" * 64)
    refused = llmctl("doctor")
    assert refused.returncode == 1
    assert "the gateway refuses it with status 401" in refused.stdout
