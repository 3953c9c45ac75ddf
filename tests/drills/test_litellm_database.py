"""LiteLLM with its database: neither a client of the stack config nor a virtual key notices what happens to it."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest
from pulumi.automation import CommandError

from engine.own_folder import litellm_backups
from tests.drills.test_changes import UNAUTHORIZED, changed, ids, status_of_replica
from tests.drills.test_upgrade import OF_THE_PROVIDER_ONLY, PINNED, UPGRADE, running
from tests.edge_log import edge_log
from tests.integration import test_backup, test_keys
from tests.integration.test_backup import ROWS
from tests.integration.test_litellm_database import asked, doctor, llmctl, refused, rows, spend
from tests.integration.test_virtual_keys import HELLO, UNKNOWN, holder, key_of, refusal
from tests.load import NOTHING_FAILS, STREAMS_MAY_BREAK
from tests.page import lets_in, there_each_time
from tests.stacks import REPLICAS, deployed, descendants, free_port, stand_in_for
from tests.swarm.cluster import until
from toolchain import environment_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.drills.conftest import Drill
    from tests.stacks import Deployment

AWAY_SECONDS = 30
CREDENTIAL = "the key of a provider"
STORE = """
import os, sys, uuid
for name in ("LITELLM_SALT_KEY", "LITELLM_MASTER_KEY"):
    os.environ[name] = open(f"/run/secrets/{name}").read().strip()
from litellm.proxy.common_utils.encrypt_decrypt_utils import encrypt_value_helper
print(encrypt_value_helper(sys.argv[1]))
"""
ROW = """
    INSERT INTO "LiteLLM_ProxyModelTable" (model_id, model_name, litellm_params, model_info, created_by, updated_by)
    VALUES ('stored', 'stored', 'ROW', '{"id": "stored"}', 'test', 'test')
"""
OPEN = """
import inspect, os, sys
for name in ("LITELLM_SALT_KEY", "LITELLM_MASTER_KEY"):
    os.environ[name] = open(f"/run/secrets/{name}").read().strip()
from litellm.proxy.common_utils.encrypt_decrypt_utils import decrypt_value_helper
named = {"key": "api_key"} if "key" in inspect.signature(decrypt_value_helper).parameters else {}
print(decrypt_value_helper(sys.argv[1], **named))
"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack whose LiteLLM has a database; the last drills take it to another release and back."""

    def configure(made: Deployment) -> None:
        made.set(
            litellmDatabase="true", adminPort=free_port(), litellmMemoryMb=1600
        )  # `opened` runs a second LiteLLM in a replica

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("home")))  # an `up` keeps backups there
        with deployed(tmp_path_factory.mktemp("drilled"), configure) as made:
            yield made


@pytest.fixture(scope="module")
def key(deployment: Deployment) -> str:
    """A virtual key that is in use throughout."""
    made: str = asked(deployment, "/key/generate", {"key_alias": "batch"})["key"]
    return made


@pytest.fixture(scope="module")
def _credential(deployment: Deployment) -> None:
    """A provider's key in LiteLLM's database, encrypted with the salt key."""
    stored = deployment.read(REPLICAS[0], "python3", "-c", STORE, CREDENTIAL).strip().splitlines()[-1]
    row = json.dumps({"model": "openai/stored", "api_key": stored})
    assert CREDENTIAL not in row
    rows(deployment, ROW.replace("ROW", row))


@pytest.fixture
def other_keys(key: str) -> tuple[str, ...]:
    return (key,)


@pytest.fixture(autouse=True)
def _environment(deployment: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What an `up` writes to .env."""
    monkeypatch.chdir(tmp_path)
    for variable, output in environment_file.OUTPUTS.items():
        monkeypatch.setenv(variable, deployment.outputs[output])


def ask(deployment: Deployment, key: str) -> httpx2.Response:
    """The edge's answer to a key, once."""
    url = f"{deployment.outputs['litellmUrl']}/v1/chat/completions"
    return httpx2.post(url, json=HELLO, headers={"authorization": f"Bearer {key}"}, timeout=60)


def answering(deployment: Deployment, since: float, **said: object) -> set[str]:
    """The replicas of which the edge has logged an answer with these fields, since a time."""
    return {entry["replica"] for entry in edge_log(deployment, since) if said.items() <= entry.items()}


def everywhere(deployment: Deployment, key: str, code: int, **said: object) -> float:
    """Ask with a key until each replica has answered with a status, and nobody with another. Return the seconds."""
    began, since = time.monotonic(), time.time()

    def answered() -> bool:
        codes = {ask(deployment, key).status_code for _ in REPLICAS * 2}
        return codes == {code} and len(answering(deployment, since, status=code, **said)) == len(REPLICAS)

    until(answered, f"each replica answers with {code}")
    return time.monotonic() - began


@contextmanager
def silent(deployment: Deployment, part: str) -> Iterator[None]:
    """A part that does not answer, which is worse than one that refuses connections.

    All of its processes are stopped one by one: on a busy machine an engine fails to pause a container.
    """
    pid = deployment.container(part).attrs["State"]["Pid"]

    def send(sent: signal.Signals) -> None:
        for each in (pid, *descendants(pid)):
            with suppress(ProcessLookupError):
                os.kill(each, sent)

    send(signal.SIGSTOP)
    try:
        yield
    finally:
        send(signal.SIGCONT)


def test_a_silent_database_costs_nobody_a_request(deployment: Deployment, drill: Drill, key: str) -> None:
    """Neither a client nor a key that is in use. Others can be tried again. What was spent is written afterwards."""
    unused, _ = key_of(deployment)
    everywhere(deployment, key, httpx2.codes.OK, client="batch")
    before = calls(deployment)
    with drill(f"LiteLLM's database silent for {AWAY_SECONDS} s", NOTHING_FAILS) as load:
        with silent(deployment, "postgres"):
            over = time.monotonic() + AWAY_SECONDS
            while time.monotonic() < over:
                load.await_successes(round(load.rate))
                assert deployment.client.chat.completions.create(**HELLO, user="somebody").choices
                for each in (unused, UNKNOWN):
                    answer = refusal(holder(deployment, each).with_options(max_retries=0))
                    assert (answer.status_code, answer.code) == (503, "database_unavailable")
                    assert answer.response.headers["retry-after"] == "5"
        until(lambda: ask(deployment, unused).status_code == httpx2.codes.OK, "a key is known again")
        until(lambda: ask(deployment, UNKNOWN).status_code == UNAUTHORIZED, "an unknown key is one again")
    until(lambda: calls(deployment) >= before + load.report.sent, "each answer of the load is in the database")


def calls(deployment: Deployment) -> int:
    """How many calls the database has."""
    return int(rows(deployment, 'SELECT count(*) FROM "LiteLLM_SpendLogs"')[0][0])


def test_a_restart_of_postgres_costs_nobody_a_request(deployment: Deployment, drill: Drill) -> None:
    unseen, _ = key_of(deployment)
    postgres = deployment.container("postgres")
    pid = postgres.attrs["State"]["Pid"]
    with drill("LiteLLM's database restarted", NOTHING_FAILS):
        postgres.restart()
        deployment.await_restart("postgres", pid)
        until(
            lambda: ask(deployment, unseen).status_code == httpx2.codes.OK, "a key that nobody has seen is looked up"
        )


def test_a_replica_that_is_killed_costs_no_request(deployment: Deployment, drill: Drill) -> None:
    """It serves the virtual key again when it is back."""
    pid = deployment.container("litellm-2").attrs["State"]["Pid"]
    with drill("kill -9 of a replica with a database", STREAMS_MAY_BREAK):
        deployment.kill("litellm-2")
        deployment.await_restart("litellm-2", pid)
        since = time.time()
        until(
            lambda: len(answering(deployment, since, status=200, client="batch")) == len(REPLICAS),
            "each replica has answered the virtual key",
        )


def test_a_replica_that_starts_while_the_database_is_away_comes_back_with_it(
    deployment: Deployment, drill: Drill
) -> None:
    """Until then the other replica serves."""
    replica, postgres = deployment.container("litellm-2"), deployment.container("postgres")
    pid, was_up = replica.attrs["State"]["Pid"], postgres.attrs["State"]["Pid"]
    with drill("a replica started without LiteLLM's database", STREAMS_MAY_BREAK) as load:
        postgres.stop()
        deployment.kill("litellm-2")
        load.await_successes(round(load.rate * AWAY_SECONDS))
        replica.reload()
        assert replica.attrs["State"]["Pid"] != pid
        print(f"\nwithout its database, the replica is {replica.attrs['State']}")
        postgres.start()
        deployment.await_restart("postgres", was_up)
        since = time.time()
        until(
            lambda: len(answering(deployment, since, status=200, client="batch")) == len(REPLICAS),
            "each replica has answered the virtual key",
        )


def test_a_key_that_is_blocked_or_deleted_asks_nothing_more(deployment: Deployment, drill: Drill) -> None:
    """Of any replica, as the edge refuses what is no key. How soon is printed. What it spent stays on the bill."""
    alias = f"key-{uuid.uuid4().hex[:8]}"
    doomed = test_keys.llmctl("keys", "create", alias).strip()
    master = deployment.secret("master-key")
    with drill("a virtual key blocked, unblocked and deleted in use", NOTHING_FAILS):
        everywhere(deployment, doomed, httpx2.codes.OK, client=alias)
        began = time.monotonic()
        test_keys.llmctl("keys", "block", alias)
        seconds = {"blocked": everywhere(deployment, doomed, UNAUTHORIZED)}
        from_the_command_on = time.monotonic() - began
        of_edge = ask(deployment, "unknown").json()
        assert [ask(deployment, each).json() for each in (doomed, UNKNOWN, master)] == [of_edge] * 3
        test_keys.llmctl("keys", "unblock", alias)
        seconds["unblocked"] = everywhere(deployment, doomed, httpx2.codes.OK, client=alias)
        test_keys.llmctl("keys", "delete", alias, "--yes")
        seconds["deleted"] = everywhere(deployment, doomed, UNAUTHORIZED)
        assert ask(deployment, doomed).json() == of_edge
    print(
        f"\na blocked virtual key was refused by each replica {from_the_command_on:.1f} s after the command began; "
        f"after it had ended: {', '.join(f'{what} {it:.1f} s' for what, it in seconds.items())}"
    )
    assert "no key has the alias" in test_keys.llmctl("keys", "show", alias, fails=True)
    until(lambda: test_keys.used("client").get(alias, {}).get("calls", 0) > 0, "what it spent is told")


@pytest.mark.usefixtures("_credential")
def test_the_models_the_master_key_and_the_password_of_the_page_change(deployment: Deployment, drill: Drill) -> None:
    """At once, and only the replicas are replaced. What LiteLLM has encrypted with the salt key still opens."""
    old, before = deployment.secret("master-key"), ids(deployment)
    old_password = deployment.outputs["adminPassword"]
    assert lets_in(deployment.outputs, old_password)
    for name, value in {"name": "llama3.1", "model": "openai/llama3.1", "apiBase": "http://demo:8080/v1"}.items():
        deployment.set_path(f"models[0].{name}", value)
    deployment.set_path("secretVersions.masterKey", 2)
    deployment.set_path("secretVersions.adminPassword", 2)
    with (
        drill("another model list and master key, with a database", NOTHING_FAILS),
        there_each_time(deployment.outputs),
    ):
        started = time.monotonic()
        deployment.up()
        print(f"\nmodel list and master key changed in {time.monotonic() - started:.1f} s")
    assert changed(deployment, before) == set(REPLICAS)
    new = deployment.secret("master-key")
    for part in REPLICAS:
        assert status_of_replica(deployment, part, new) == httpx2.codes.OK
        assert status_of_replica(deployment, part, old) == UNAUTHORIZED
    assert opened(deployment) == [CREDENTIAL] * len(REPLICAS)
    assert not lets_in(deployment.outputs, old_password)
    assert lets_in(deployment.outputs, deployment.outputs["adminPassword"])
    answer = deployment.client.chat.completions.create(**{**HELLO, "model": "llama3.1"})
    assert answer.choices[0].message.content
    deployment.up(expect_no_changes=True)


def opened(deployment: Deployment) -> list[str]:
    """What each replica's LiteLLM decrypts of the credential in the database."""
    [(stored,)] = rows(
        deployment, """SELECT litellm_params->>'api_key' FROM "LiteLLM_ProxyModelTable" WHERE model_id = 'stored'"""
    )
    return [deployment.read(part, "python3", "-c", OPEN, stored).strip().splitlines()[-1] for part in REPLICAS]


def test_a_restore_brings_both_databases_back(deployment: Deployment, drill: Drill) -> None:
    """What came after is kept elsewhere."""
    saved = Path(llmctl("backup", "--json")["file"])
    before = spend(deployment)
    later = asked(deployment, "/key/generate", {"key_alias": "later"})
    with deployment.database() as connection:
        connection.execute("CREATE TABLE later ()")
    with drill("both databases restored", NOTHING_FAILS):
        done = llmctl("restore", saved, "--yes", "--json")
    with deployment.database() as connection:
        assert connection.execute("SELECT to_regclass('later')").fetchone() == (None,)
    query = """SELECT key_alias FROM "LiteLLM_VerificationToken" WHERE key_alias = 'later'"""
    assert rows(deployment, query) == []
    kept = deployment.read(
        "postgres", "psql", "-XAtU", "postgres", "-d", done["litellm"]["kept"], "-c", query
    )  # fmt: skip
    assert kept.strip() == "later"
    owners = rows(deployment, "SELECT DISTINCT tableowner FROM pg_tables WHERE tablename LIKE 'LiteLLM%'")
    assert owners == [("litellm",)]
    until(lambda: spend(deployment) > before, "what was asked meanwhile is counted in the restored database")
    until(lambda: ask(deployment, later["key"]).status_code == UNAUTHORIZED, "a key that came later is none")


@pytest.mark.parametrize("other_keys", [()])
def test_a_lost_volume_comes_back_from_a_backup_with_every_row(
    deployment: Deployment, drill: Drill, key: str
) -> None:
    """After the next `up --refresh` and a restore: the app's rows, and keys with their spend. Clients are served.

    Sequences go on where they were, and the app owns its tables. Until the restore, nobody knows virtual keys.
    """
    url = deployment.outputs["databaseUrl"]
    test_backup.fill(deployment)
    before, spent = test_backup.everything(url), spend(deployment)
    assert len(before["kinds"]) == len(before["organizations"]) == ROWS
    with drill("a lost volume, restored from a backup", NOTHING_FAILS):
        folder = test_backup.saved(".")
        container = deployment.container("postgres")
        (volume,) = [mount["Name"] for mount in container.attrs["Mounts"] if mount["Type"] == "volume"]
        container.remove(force=True)
        deployment.engine.volumes.get(volume).remove()
        up = deployment.pulumi("up", "--refresh", "--yes", "--skip-preview")
        assert up.returncode == 0, up.stdout
        assert test_backup.everything(url)["organizations"] == []
        test_backup.restored(folder)  # the newest in it
    assert test_backup.everything(url) == before
    with deployment.database() as connection:
        row = connection.execute("INSERT INTO kinds DEFAULT VALUES RETURNING id").fetchone()
        assert row == (ROWS + 1,)
        owners = connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert owners.fetchall() == [("app",)]
    assert spend(deployment) >= spent
    everywhere(deployment, key, httpx2.codes.OK)
    deployment.up(expect_no_changes=True)


@pytest.mark.newest
@pytest.mark.usefixtures("_credential")
def test_the_newest_release_takes_the_database_over_with_all_that_is_in_it(
    deployment: Deployment, drill: Drill, key: str
) -> None:
    """A backup first, the schema, then the replicas. The older release is refused on it from then on."""
    saved = Path(llmctl("backup", "--json")["file"])
    assert holder(deployment, key).chat.completions.create(**HELLO).usage
    until(lambda: spend(deployment) > 0, "what the key spent is written")
    before = spend(deployment)
    deployment.set(litellmImage=stand_in_for(UPGRADE, deployment.engine, deployment.folder / ".images.yaml"))
    with drill(f"{UPGRADE} with a database", OF_THE_PROVIDER_ONLY):
        started = time.monotonic()
        deployment.up()
        print(f"\n{UPGRADE} with a database is up after {time.monotonic() - started:.1f} s")
        at_first = spend(deployment)
        assert at_first >= before
        until(lambda: spend(deployment) > at_first, "the key's spending goes on")
        newest = ids(deployment)
        deployment.forget("litellmImage")
        with pytest.raises(CommandError, match="a newer LiteLLM has migrated this database"):
            deployment.up()
        assert changed(deployment, newest) == set()
    assert running(deployment) == {UPGRADE.tag}
    by_itself = sorted(litellm_backups(deployment.name).glob("litellm-*.dump"))
    assert by_itself
    assert {stat.S_IMODE(file.stat().st_mode) for file in by_itself} == {0o600}
    assert rows(deployment, "SELECT count(*) FROM _prisma_migrations WHERE finished_at IS NULL") == [(0,)]
    assert holder(deployment, key).chat.completions.create(**HELLO).usage
    assert opened(deployment) == [CREDENTIAL] * len(REPLICAS)
    assert not [each for each in deployment.leftovers() if "schema" in each]
    assert doctor()["failure"] == set()
    for older in (by_itself[0], saved):  # the `up` that was refused has saved the newer one's
        assert "has the schema of another release" in refused(deployment, older, "--only", "litellm")


@pytest.mark.newest
@pytest.mark.parametrize("other_keys", [()])
def test_a_restore_of_its_backup_leads_back_to_the_older_release(
    deployment: Deployment, drill: Drill, key: str
) -> None:
    """With the key and what it had spent. Clients are served; virtual keys wait for the older replicas."""
    saved = min(litellm_backups(deployment.name).glob("litellm-*.dump"))
    newest = spend(deployment)
    with drill(f"{UPGRADE} left again, by a restore", OF_THE_PROVIDER_ONLY):
        assert llmctl("restore", saved, "--yes", "--json", "--force")["database"] == "litellm"
        assert 0 < spend(deployment) < newest
        assert ask(deployment, key).status_code in {httpx2.codes.OK, httpx2.codes.SERVICE_UNAVAILABLE}
        deployment.up()
    assert running(deployment) == {PINNED.tag}
    everywhere(deployment, key, httpx2.codes.OK)
    assert opened(deployment) == [CREDENTIAL] * len(REPLICAS)
    assert doctor()["failure"] == set()
