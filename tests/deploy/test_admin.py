"""LiteLLM's page and administration, on their port of the Docker host's loopback. Only where the stack has one."""

from __future__ import annotations

import secrets
import shlex
from typing import TYPE_CHECKING

import docker
import httpx2
import pytest

from infra import edge
from tests.deploy.test_gateway import REFUSED, look_into_a_replica

if TYPE_CHECKING:
    from tests.deploy.stack import DeployedStack

FORBIDDEN = 403
ASK = "exec 3<>/dev/tcp/127.0.0.1/{port} && printf %s {request} >&3 && read -r _ status _ <&3 && echo $status"


def status(
    stack: DeployedStack, path: str, *, body: str | None = None, key: str = "", host: str = "localhost"
) -> int:
    """The status of an answer on that port, asked within the edge's container: the engine may be another machine."""
    lines = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.0",
        f"Host: {host}",
        "Content-Type: application/x-www-form-urlencoded",
    ]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += [f"Content-Length: {len(body or '')}", "", body or ""]
    command = ASK.format(port=edge.ADMIN_PORT, request=shlex.quote("\r\n".join(lines)))
    try:
        container = stack.engine.containers.get(stack.part("edge").runs_as)
        code, printed = container.exec_run(["bash", "-c", command])
    except docker.errors.APIError as error:
        pytest.skip(f"the edge cannot be asked ({error}): see the checks of its container")
    assert isinstance(printed, bytes)
    assert code == 0, f"nothing answers on adminPort. Give the edge its files again: {stack.up}"
    return int(printed)


def test_the_page_is_there(stack: DeployedStack) -> None:
    assert status(stack, "/ui/") == httpx2.codes.OK, f"LiteLLM's page is not on adminPort. Fix it: {stack.up}"


def test_without_a_login_nothing_is_managed(stack: DeployedStack) -> None:
    """Nor with a wrong password, and nor with a key that nobody has."""
    login = "username=admin&password=not+the+password"
    answers = {
        "without a key": status(stack, "/key/list"),
        "with a random key": status(stack, "/key/list", key=f"sk-{secrets.token_hex(32)}"),
        "with a wrong password": status(stack, "/login", body=login),
    }
    wrong = {how: answer for how, answer in answers.items() if answer != REFUSED}
    assert not wrong, f"adminPort answers {wrong} instead of {REFUSED}. See: {look_into_a_replica(stack)}"


def test_it_is_not_for_calls_or_for_other_pages(stack: DeployedStack) -> None:
    """Model calls must use the gateway's port, where they are checked. Another host name may be another page's."""
    answers = {
        "/v1/chat/completions": status(stack, "/v1/chat/completions", body="{"),
        "another name": status(stack, "/ui/", host="page.example"),
    }
    opened = {what: answer for what, answer in answers.items() if answer != FORBIDDEN}
    assert not opened, f"adminPort lets through what is not for it: {opened}. Fix it: {stack.up}"
