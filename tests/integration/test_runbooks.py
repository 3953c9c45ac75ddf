"""The runbooks' commands do what the runbooks say: each is run, in order."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import ssl
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
import psycopg
import pytest
import yaml

from infra.workload import LIVE
from tests.certificates import certify
from tests.database import opens
from tests.drills.test_changes import serve_ours, status_of_replica
from tests.runbooks import Shell, runbook
from tests.stack_config import PROJECT_NAME
from tests.stacks import PARTS, REPLICAS, Deployment, as_soon_as_replaced, free_port
from toolchain.operating_system import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runbooks import Runbook

GIT = "git -c user.name=operator -c user.email=operator@example.org -c init.defaultBranch=main"
OTHER_MACHINE = "another-machine"
VOLUMES = ("postgres-17-data", "postgres-18-data")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack that `make up` brings up, and that each runbook leaves whole."""
    made = Deployment(tmp_path_factory.mktemp("typed"), f"test-{token_hex(4)}")
    try:
        make_up(made)
        yield made
    finally:
        made.destroy()


def make_up(deployment: Deployment) -> None:
    code, said = Shell(deployment).type('make up STACK="$PULUMI_STACK"')
    assert code == 0
    assert "The gateway is up" in said
    renewed(deployment)


def renewed(deployment: Deployment) -> None:
    """Have the stack's outputs read again."""
    deployment.__dict__.pop("outputs", None)


def status(deployment: Deployment, key: str, model: str = "gpt-4o") -> int:
    """What the gateway answers to a key."""
    url = f"{deployment.outputs['litellmUrl']}/v1/chat/completions"
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    # A certificate is the test's own, and no connection is kept over a change.
    with httpx2.Client(verify=False, timeout=60, trust_env=False) as client:
        return client.post(url, json=body, headers={"authorization": f"Bearer {key}"}).status_code


def names(deployment: Deployment) -> set[str]:
    with deployment.database() as connection:
        return {name for (name,) in connection.execute("SELECT name FROM organizations")}


def added(deployment: Deployment, name: str, *, model: str = "gpt-4o", fallback: str | None = None) -> str:
    """The id of a new organization."""
    statement = "INSERT INTO organizations (name, llm_model, llm_fallback_model) VALUES (%s, %s, %s) RETURNING id"
    with deployment.database() as connection:
        row = connection.execute(statement, (name, model, fallback)).fetchone()
    assert row
    return str(row[0])


def test_rotate_a_secret(deployment: Deployment, tmp_path: Path) -> None:
    """Each with its own commands: until it is retired the old value works too, then only the new one."""
    provider_key = f"sk-{token_hex(8)}"
    with runbook("rotate-a-secret", deployment, NUMBER="2", PROVIDER_KEY=provider_key) as book:
        assert json.loads(book.run("config get secretVersions")) == {}
        rotates_the_master_key(deployment, book)
        rotates_a_clients_key(deployment, book)

        book.run("openaiApiKey")
        for part in REPLICAS:
            assert deployment.read(part, "cat", "/run/secrets/OPENAI_API_KEY") == provider_key

        rotates_the_apps_password(deployment, book)

        old = deployment.secret("postgres-password")
        book.run("secretVersions.postgresPassword")
        assert superuser_gets_in(deployment, deployment.secret("postgres-password"))
        assert not superuser_gets_in(deployment, old)

        rotates_the_certificate(deployment, book, tmp_path)
        book.run("make check-deploy")
    for key in ("openaiApiKey", "tlsCertificate", "tlsKey"):
        deployment.forget(key)
    make_up(deployment)
    assert deployment.outputs["litellmApiKey"] in (deployment.folder / ".env").read_text()


def rotates_the_master_key(deployment: Deployment, book: Runbook) -> None:
    old = deployment.secret("master-key")
    book.run("secretVersions.masterKey")
    new = deployment.secret("master-key")
    for part in REPLICAS:
        assert status_of_replica(deployment, part, new) == httpx2.codes.OK
        assert status_of_replica(deployment, part, old) == httpx2.codes.UNAUTHORIZED


def rotates_a_clients_key(deployment: Deployment, book: Runbook) -> None:
    old = deployment.outputs["litellmApiKey"]
    new = book.run("secretVersions.clientKeys.app").split()[-1]
    assert new != old
    assert (status(deployment, old), status(deployment, new)) == (httpx2.codes.OK, httpx2.codes.OK)
    book.run("retirePrevious.clientKeys.app")
    assert (status(deployment, old), status(deployment, new)) == (httpx2.codes.UNAUTHORIZED, httpx2.codes.OK)


def rotates_the_apps_password(deployment: Deployment, book: Runbook) -> None:
    old = deployment.outputs["databaseUrl"]
    new = book.run("secretVersions.databasePassword").split()[-1]
    assert new != old
    assert opens(old)
    assert opens(new)
    book.run("retirePrevious.databasePassword")
    assert not opens(old)
    assert opens(new)
    renewed(deployment)


def superuser_gets_in(deployment: Deployment, password: str) -> bool:
    place = urlsplit(deployment.outputs["databaseUrl"])
    return opens(f"postgresql://postgres:{password}@{place.hostname}:{place.port}/postgres")


def rotates_the_certificate(deployment: Deployment, book: Runbook, folder: Path) -> None:
    """The first value is already there: the test has to set it before."""
    for key, value in certify("gateway.example").settings.items():
        deployment.set_path(key, value, secret=True)
    deployment.up()
    files = {key: folder / key for key in ("tlsCertificate", "tlsKey")}
    for key, value in certify("gateway.example").settings.items():
        files[key].write_text(value)
    book.environment |= {"CERTIFICATE": str(files["tlsCertificate"]), "KEY": str(files["tlsKey"])}
    book.run("tlsCertificate")
    place = urlsplit(deployment.outputs["litellmUrl"])
    shown = ssl.get_server_certificate((str(place.hostname), place.port or 443))
    assert shown.strip() == files["tlsCertificate"].read_text().strip()


def test_roll_back(deployment: Deployment) -> None:
    """Rolls back a commit that limits client `app` to one request a minute and changes the edge's file."""
    shell = Shell(deployment)
    files = 'add "Pulumi.$PULUMI_STACK.yaml" litellm edge'
    _, said = shell.type(f"{GIT} init --quiet\n{GIT} {files}\n{GIT} commit --quiet -m good\ngit rev-parse HEAD")
    good = said.split()[-1]
    deployment.set_path("clientRpm.app", 1)
    with (deployment.folder / "edge/haproxy.cfg").open("a") as file:
        file.write("# not good\n")
    code, _ = shell.type(f"{GIT} {files}\n{GIT} commit --quiet -m 'not good'\n./pulumiw up")
    assert code == 0
    assert asked_twice(deployment) == httpx2.codes.TOO_MANY_REQUESTS
    with runbook("roll-back", deployment, GOOD_COMMIT=good) as book:
        back = book.left[0]
        book.run("git checkout")
        assert "not good" not in deployment.read("edge", "cat", f"{LIVE}/current/haproxy.cfg")
        assert asked_twice(deployment) == httpx2.codes.OK
        book.run("--expect-no-changes")
        book.run("git checkout HEAD")
        assert asked_twice(deployment) == httpx2.codes.TOO_MANY_REQUESTS
        code, _ = book.type(back)
        assert code == 0


def asked_twice(deployment: Deployment) -> int:
    """What client `app` gets the second time."""
    return [status(deployment, deployment.outputs["litellmApiKey"]) for _ in range(2)][-1]


def test_restore(deployment: Deployment, tmp_path: Path) -> None:
    """After the loss of a volume. Undoing the restore brings the previous database back."""
    added(deployment, "saved")
    file = tmp_path / "saved.dump"
    with runbook("restore", deployment, BACKUP=str(file)) as book:
        code, _ = book.type('.venv/bin/llmctl backup "$BACKUP"')
        assert code == 0
        container = deployment.container("postgres")
        (volume,) = [mount["Name"] for mount in container.attrs["Mounts"] if mount["Type"] == "volume"]
        container.remove(force=True)
        deployment.engine.volumes.get(volume).remove()
        book.run("--refresh")
        assert names(deployment) == set()
        added(deployment, "after the loss")
        kept = re.search(r"app_before_\w+", book.run("llmctl restore"))
        assert kept
        assert "saved" in names(deployment)
        assert "after the loss" not in names(deployment)
        assert "saved" in book.run("org list")
        book.environment["FORMER_URL"] = (
            urlsplit(deployment.outputs["databaseUrl"])._replace(path=f"/{kept[0]}").geturl()
        )
        book.run("FORMER_URL")
        assert names(deployment) == {"after the loss"}


def test_upgrade_postgres(deployment: Deployment, tmp_path: Path) -> None:
    """No written row is lost, and nobody can use the empty database; the old volume is the way back.

    The volume of before is not that of a new stack, as in a second upgrade; the shell has another stack's URL.
    """
    port = str(urlsplit(deployment.outputs["databaseUrl"]).port)
    try:
        deployment.set_path("openaiApiKey", f"sk-{token_hex(8)}", secret=True)
        deployment.set(demo="false", protectData="true", postgresVolume=VOLUMES[0])
        deployment.up()
        before, url = {"before"}, deployment.outputs["databaseUrl"]
        added(deployment, "before")
        with with_the_folders_of_18(deployment) as image:
            variables = {
                "POSTGRES_IMAGE": image,
                "VOLUME": VOLUMES[1],
                "BACKUP": str(tmp_path / "saved.dump"),
                "SPARE_PORT": str(free_port()),
                **dict.fromkeys(
                    ("DATABASE_URL", "LITELLM_DATABASE_URL"),
                    urlsplit(url)._replace(path="/of_another_stack").geturl(),
                ),
            }
            with runbook("upgrade-postgres", deployment, **variables) as book:
                noted = book.run("config get postgresImage").split()[-3:]
                assert noted[1:] == [VOLUMES[0], port]
                book.environment |= dict(zip(("OLD_IMAGE", "OLD_VOLUME", "PORT"), noted, strict=True))
                book.run("config set postgresImage")
                code, said = book.type("./pulumiw preview")
                assert code != 0
                assert f"{VOLUMES[0]} has 17: the data was written by another major version" in said
                (let_go,) = (each for each in book.left if each.endswith('::\'"$VOLUME"\n'))
                code, said = book.type(let_go)
                assert code != 0
                assert "No such resource" in said
                book.run("default_transaction_read_only")
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    added(deployment, "too late")
                assert names(deployment) == before
                book.run("llmctl backup")
                book.run("OLD_VOLUME")
                book.run("SPARE_PORT")
                with pytest.raises(psycopg.OperationalError):
                    psycopg.connect(url, connect_timeout=10)
                assert "before" in book.run("llmctl restore")
                book.run("config set postgresPort")
                assert names(deployment) == before
                added(deployment, "after")
                back = deployment.pulumi("preview", "--config", f"{PROJECT_NAME}:postgresVolume={VOLUMES[0]}")
                deployment.set(postgresVolume=VOLUMES[1])
                assert back.returncode != 0
                assert f"{VOLUMES[0]} has 17: the data was written by another major version" in back.stdout
                del book.environment["DATABASE_URL"], book.environment["LITELLM_DATABASE_URL"]
                book.run("make check-deploy")
                assert book.left[0] == let_go
                book.run("state unprotect")
                book.run('postgresVolume "$OLD_VOLUME"')
                assert names(deployment) == before
                book.run("RESET default_transaction_read_only")
                added(deployment, "again")
    finally:
        back_to_the_first_volume(deployment, port)


def back_to_the_first_volume(deployment: Deployment, port: str) -> None:
    """Wherever an upgrade of Postgres ended."""
    deployment.pulumi("state", "unprotect", "--all", "--yes")
    for key in ("openaiApiKey", "postgresImage", "postgresVolume"):
        deployment.forget(key)
    deployment.set(demo="true", protectData="false", postgresPort=port)
    deployment.up()
    for volume in deployment.engine.volumes.list(filters=deployment.of_stack):
        if str(volume.name).endswith(VOLUMES):
            volume.remove()


@contextmanager
def with_the_folders_of_18(deployment: Deployment) -> Iterator[str]:
    """The stack's image of Postgres with another tag, and another folder for its user."""
    image = deployment.image("postgres")
    name, config = f"{PROJECT_NAME}/test-postgres:18-{token_hex(4)}", image.attrs["Config"]
    lines = (
        f"FROM {image.id} AS whole\nFROM scratch\nCOPY --from=whole / /",
        "RUN cd /var/lib/postgresql && rm -r data && chown postgres:postgres . && chmod 1777 .",
        *(f"ENV {each}" for each in config["Env"] if not each.startswith("PGDATA=")),
        f"VOLUME /var/lib/postgresql\nSTOPSIGNAL {config['StopSignal']}",
        f"ENTRYPOINT {json.dumps(config['Entrypoint'])}\nCMD {json.dumps(config['Cmd'])}",
    )
    deployment.engine.images.build(fileobj=io.BytesIO("\n".join(lines).encode()), tag=name, rm=True)
    try:
        yield name
    finally:
        deployment.engine.images.remove(name, force=True)


def test_another_c_library(deployment: Deployment, tmp_path: Path) -> None:
    """Doctor no longer reports it, and every row is there."""
    added(deployment, "sorted")
    url = deployment.outputs["databaseUrl"]
    password = deployment.secret("postgres-password")
    with psycopg.connect(url, user="postgres", password=password, autocommit=True) as connection:
        connection.execute("UPDATE pg_database SET datcollversion = '1.0' WHERE datname = 'app'")
    with runbook("another-c-library", deployment, DATABASE="app", BACKUP=str(tmp_path / "saved.dump")) as book:
        _, said = book.type(".venv/bin/llmctl doctor")
        assert "text indexes of app may be wrong" in said
        book.run("llmctl backup")
        book.run("REINDEX DATABASE")
        assert "the server sorts text in the order of its indexes" in book.run("llmctl doctor")
    assert "sorted" in names(deployment)


def test_gateway_down(deployment: Deployment) -> None:
    """A replica is stopped and the edge removed: the commands show that, and one `up` fixes it."""
    deployment.container("litellm-1").stop()
    deployment.container("edge").remove(force=True)
    with runbook("gateway-down", deployment) as book:
        said = book.run("doctor")
        assert "Exited" in said
        assert f"No such container: {PROJECT_NAME}-{deployment.name}-edge" in said
        book.run("--refresh")
        assert "hello" in book.run("llmctl chat")


def test_provider_down(deployment: Deployment) -> None:
    """The provider answers 503 to everybody; an organization is moved to another provider, and back."""
    serve_ours(deployment, key="[[demo status=503]]")
    variables = {
        "ORGANIZATION": added(deployment, "suffers", model="ours", fallback="gpt-4o"),
        "MODEL": "claude-3-5-sonnet",
        "FORMER_MODEL": "ours",
        "FORMER_FALLBACK": "gpt-4o",
    }
    assert status(deployment, deployment.outputs["litellmApiKey"], "ours") == httpx2.codes.SERVICE_UNAVAILABLE
    with runbook("provider-down", deployment, **variables) as book:
        said = book.run("llmctl models")
        assert "hello" in said
        assert re.search(r"suffers.*ours.*gpt-4o", said)
        book.run("--no-fallback")
        assert "hello" in book.run("--org")
        book.run("FORMER_MODEL")
        _, said = book.type(".venv/bin/llmctl org list")
        assert re.search(r"suffers.*ours.*gpt-4o", said)
    with deployment.database() as connection:
        connection.execute("DELETE FROM organizations WHERE name = 'suffers'")
    for key in ("models", "modelKeys"):
        deployment.forget(key)
    deployment.up()


def test_killed_up(deployment: Deployment) -> None:
    """Killed on this machine, which the next `up` fixes, and on another one, whose lock has to be removed."""
    with runbook("killed-up", deployment) as book:
        killed_at_a_replica(deployment, drain_seconds=31)
        assert "A run of Pulumi was killed here" in book.run("./pulumiw up")
        deployment.await_restart("litellm-2", 0)
        killed_at_a_replica(deployment, drain_seconds=32)
        (lock,) = (deployment.state / ".pulumi/locks").rglob("*.json")
        lock.write_text(json.dumps({**json.loads(lock.read_text()), "hostname": OTHER_MACHINE}))
        code, said = book.type("./pulumiw up")
        assert code != 0
        assert "currently locked" in said
        book.run("cancel")
        book.run("--expect-no-changes")
    assert {container.name for container in deployment.containers()} == {
        f"{PROJECT_NAME}-{deployment.name}-{part}" for part in PARTS
    }


def test_lost_network(deployment: Deployment, tmp_path: Path) -> None:
    """Both are lost; one comes back with the runbook's command, the other with the one in the error."""
    containers = {container.id for container in deployment.containers()}
    networks = lose_networks(deployment, tmp_path)
    _, said = Shell(deployment).type("./pulumiw up --refresh")
    named = {command.split()[-2]: command for command in re.findall(r"\./pulumiw import .+", said)}
    assert {name: command.split()[-1] for name, command in named.items()} == networks
    with runbook("lost-network", deployment, NETWORK="gateway", ID=networks["gateway"]) as book:
        book.run("import")
        code, _ = book.type(named["data"])
        assert code == 0
        book.run("--refresh")
        book.run("--expect-no-changes")
    assert {container.id for container in deployment.containers()} == containers


def lose_networks(deployment: Deployment, folder: Path) -> dict[str, str]:
    """Remove the networks from the state, as a refresh that misreads an error does; return their ids by name."""
    state = json.loads(deployment.pulumi("stack", "export").stdout)
    resources = state["deployment"]["resources"]
    lost = {each["urn"]: each["id"] for each in resources if each["type"] == "docker:index/network:Network"}
    kept = [each for each in resources if each["urn"] not in lost]
    for each in kept:
        for dependencies in (each.get("dependencies"), *each.get("propertyDependencies", {}).values()):
            if dependencies:
                dependencies[:] = [urn for urn in dependencies if urn not in lost]
    state["deployment"]["resources"] = kept
    file = folder / "without-networks.json"
    file.write_text(json.dumps(state))
    imported = deployment.pulumi("stack", "import", "--file", str(file))
    assert imported.returncode == 0, imported.stdout
    return {urn.rpartition("::")[2]: id_ for urn, id_ in lost.items()}


def killed_at_a_replica(deployment: Deployment, *, drain_seconds: int) -> None:
    """An `up` with another time to drain is killed when it has made the first replica's container."""
    when = as_soon_as_replaced(deployment, "litellm-1")
    deployment.set(drainSeconds=drain_seconds)
    assert deployment.killed_up(when), "the `up` ended before it could be killed"


def test_close_a_network(deployment: Deployment) -> None:
    """An image from a file is what then runs, and only the models of the server inside are served."""
    image = f"{PROJECT_NAME}-{deployment.name}/haproxy:3.0"
    deployment.image("edge").tag(image)
    deployment.set(haproxyImage=image)
    variables = {"IMAGES": image, "MODEL_SERVER": "http://model-server.example:11434"}
    try:
        with runbook("close-a-network", deployment, **variables) as book:
            book.run("docker save")
            deployment.engine.images.remove(image)
            book.run("docker load")
            assert deployment.container("edge").attrs["Config"]["Image"] in {image, deployment.image("edge").id}
            book.run("models[0]")
            assert "llama3.1" in book.run("llmctl models")
            deployment.forget("haproxyImage")
            book.run("config rm models")
        _, said = book.type(".venv/bin/llmctl models")
        assert "llama3.1" not in said
    finally:
        deployment.engine.images.remove(image)


def test_lost_passphrase(deployment: Deployment, tmp_path: Path) -> None:
    """The stack is recreated with a new passphrase, and has its former rows."""
    own = tmp_path / ".local/state/llm-infrastructure"
    own.mkdir(parents=True)
    (own / "state").symlink_to(deployment.state)
    added(deployment, "before the loss")
    key = deployment.outputs["litellmApiKey"]
    variables = {
        "BACKUP": str(tmp_path / "saved.dump"),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(CACHE.parent),
        "PULUMI_HOME": os.environ.get("PULUMI_HOME") or str(Path.home() / ".pulumi"),
    }
    with runbook("lost-passphrase", deployment, **variables) as book:
        for name in ("PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE", "XDG_STATE_HOME"):
            book.environment.pop(name, None)
        code, said = book.type("./pulumiw preview")
        assert code != 0
        assert f"{own / 'passphrase'} is missing" in said
        book.run("llmctl backup")
        book.run("docker volume rm")
        assert deployment.leftovers() == []
        book.run("mv")
        without_secrets(deployment.folder / f"Pulumi.{deployment.name}.yaml")
        book.run("llmctl restore")
        assert "before the loss" in book.run("org list")
    # From here on the stack is that of the new state.
    shutil.rmtree(deployment.state)
    (own / "state").rename(deployment.state)
    deployment.environment["PULUMI_CONFIG_PASSPHRASE"] = (own / "passphrase").read_text()
    renewed(deployment)
    assert status(deployment, key) == httpx2.codes.UNAUTHORIZED
    assert asked_twice(deployment) == httpx2.codes.OK


def test_rotate_the_passphrase(deployment: Deployment, tmp_path: Path) -> None:
    """Then only the new one opens the state and the stacks' config, and the state's folder has no older copy."""
    own, other, workspace = tmp_path / "llm-infrastructure", f"{deployment.name}-other", deployment.stack.workspace
    files = [deployment.folder / f"Pulumi.{name}.yaml" for name in (deployment.name, other)]
    own.mkdir()
    (own / "state").symlink_to(deployment.state)
    (own / "passphrase").write_text(deployment.environment["PULUMI_CONFIG_PASSPHRASE"])
    workspace.create_stack(other)
    try:
        workspace.select_stack(deployment.name)
        deployment.set_path("clientKeys.spare", f"sk-{token_hex(16)}", secret=True)
        deployment.up()
        state = json.loads(deployment.pulumi("stack", "export").stdout)["deployment"]["secrets_providers"]["state"]
        salts = {state["salt"], *(yaml.safe_load(file.read_text())["encryptionsalt"] for file in files)}
        secrets = deployment.secrets()
        with runbook("rotate-the-passphrase", deployment, STATE=str(own), XDG_STATE_HOME=str(tmp_path)) as book:
            for name in ("PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE"):
                book.environment.pop(name)
            book.run("openssl")
            assert (own / "passphrase.new").stat().st_mode & 0o077 == 0
            again = book.left[0].splitlines()[1].replace(" < ", f" --stack {other} < ")
            said = book.run("change-secrets-provider")
            assert {deployment.name, other} <= set(said.replace("*", " ").split())
            code, _ = book.type(again)
            assert code == 0
            book.run("mv")
            book.run("rm")
            kept = [*files, *(path for path in deployment.state.rglob("*") if path.is_file())]
            assert [path for path in kept for salt in salts if salt in path.read_text()] == []
            assert list(deployment.state.rglob("*.bak")) == []
            book.run("--expect-no-changes")
            code, said = book.type('PULUMI_CONFIG_PASSPHRASE_FILE="$STATE/passphrase.old" ./pulumiw preview')
            assert code != 0
            assert "incorrect passphrase" in said
        take_what_opens(deployment, own)
        assert secrets.items() <= deployment.secrets().items()
    finally:
        take_what_opens(deployment, own)
        workspace.remove_stack(other)
        deployment.forget("clientKeys")
        deployment.up()


def take_what_opens(deployment: Deployment, folder: Path) -> None:
    """Go on with the passphrase that opens the state, wherever its rotation ended."""
    for file in sorted(folder.glob("passphrase*")):
        deployment.environment["PULUMI_CONFIG_PASSPHRASE"] = file.read_text().strip()
        if deployment.pulumi("stack", "export", "--show-secrets").returncode == 0:
            return


def without_secrets(file: Path) -> None:
    """Remove from a stack's config file what nobody can decrypt any more."""
    content = yaml.safe_load(file.read_text())
    content.pop("encryptionsalt", None)
    config = content["config"]
    content["config"] = {key: value for key, value in config.items() if "secure" not in yaml.safe_dump(value)}
    file.write_text(yaml.safe_dump(content))
