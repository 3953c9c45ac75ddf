"""Each provider of docs/providers.md through edge and LiteLLM, configured as that page says, on both releases."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import closing
from ipaddress import ip_network
from typing import TYPE_CHECKING

import docker
import pytest
from pulumi import automation

import app
from infra import gateway
from tests.provider_table import BUDGETED, KEYS, ROWS, VECTOR, Secrets, asked, changed
from tests.stack_config import PROJECT
from tests.stacks import deployed, free_port, stand_in_for
from tests.swarm.cluster import until
from toolchain import recipes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.stacks import Deployment

FILES = "/run/secrets/files"


@pytest.fixture(scope="module")
def secrets() -> Secrets:
    return Secrets.made()


@pytest.fixture(scope="module")
def stub(secrets: Secrets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The providers, where replicas reach this machine, and nobody else does."""
    folder, port = tmp_path_factory.mktemp("providers"), free_port()
    program, certificate, key = (folder / name for name in ("stub.py", "certificate.pem", "key.pem"))
    program.write_text((PROJECT / "tests/provider_stub.py").read_text())  # beside `typing`, as it is, it finds that
    certificate.write_text(secrets.certificate.certificate_pem)
    key.write_text(secrets.certificate.key_pem)
    with closing(docker.from_env()) as engine:
        (settings,) = engine.networks.get("bridge").attrs["IPAM"]["Config"]
    address = str(ip_network(settings["Subnet"])[1])
    command = [sys.executable, str(program), address, str(port), str(PROJECT / "demo/answers")]
    with subprocess.Popen([*command, str(certificate), str(key)]) as process:
        until(lambda: _listens(address, port), "the providers listen")
        yield address, port
        process.terminate()


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


@pytest.fixture(scope="module")
def deployment(
    stub: tuple[str, int], secrets: Secrets, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A stack with a model of each provider, which are reached by an outgoing proxy with a certificate of its own."""
    own = f"http://{gateway.HOST_NAME}:{stub[1]}"

    def configure(made: Deployment) -> None:
        environment = {**KEYS, "HTTPS_PROXY": own, "NO_PROXY": f"localhost,127.0.0.1,{gateway.HOST_NAME}"}
        hidden = {
            **{f"litellmEnvironment.{name}": value for name, value in environment.items()},
            "litellmEnvironment.SSL_CERT_FILE": f"{FILES}/ca.pem",
            'litellmFiles["ca.pem"]': secrets.authority.certificate_pem,
            'litellmFiles["vertex.json"]': secrets.account,
        }
        shown = {"demo": "false", "replicas": "1", "routerSettings.num_retries": "0"}
        entries = [entry for row in ROWS for entry in row.entries(own)]
        for index, (name, parameters) in enumerate([*entries, BUDGETED]):
            shown[f"models[{index}].model_name"] = name
            shown |= {f"models[{index}].litellm_params.{key}": str(value) for key, value in parameters.items()}
        config = {
            path: automation.ConfigValue(value, secret=values is hidden)
            for values in (shown, hidden)
            for path, value in values.items()
        }
        made.stack.set_all_config(config, path=True)

    with deployed(tmp_path_factory.mktemp("providers"), configure) as made:
        yield made


def test_each_provider_is_asked_as_the_page_says(
    deployment: Deployment,
    stub: tuple[str, int],
    secrets: Secrets,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With its own key and nobody else's. litellm/providers.yaml has what a release does differently."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_URL", deployment.outputs["litellmUrl"])
    monkeypatch.setenv("LITELLM_API_KEY", deployment.outputs["litellmApiKey"])
    for release in (recipes.STAND_INS["litellm"], *recipes.UPGRADES):
        if release != recipes.STAND_INS["litellm"]:
            record = deployment.folder / ".images.yaml"
            deployment.set(litellmImage=stand_in_for(release, deployment.engine, record))
            deployment.up()
        gateway_ = deployment.outputs["litellmUrl"], deployment.outputs["litellmApiKey"], "http://{}:{}".format(*stub)
        wrong = asked(*gateway_, secrets)
        told = {row.name: {*row.provider.otherwise.get(release.version, {})} for row in ROWS}
        assert {name: found for name, found in wrong.items() if found.keys() != told[name]} == {}
        for row in ROWS:
            if row.provider.embedding and "embedding" not in told[row.name]:
                assert app.generate_embedding("hello", f"{row.name}-vectors").embedding == tuple(VECTOR), row.name
        assert changed(*gateway_) == []
    app.close()
