"""Trusted authorities: one rule for everything that asks the gateway, and one sentence for each way it can fail."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

import app
from console import gateway_report
from tests.certificates import certify
from tests.unit.test_app import HELLO, completion, face

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faces import Face

__all__ = ["face"]  # a fixture

ANSWERS = {
    "/health/readiness": {"status": "healthy"},
    "/v1/models": {"data": [{"id": "gpt-4o"}]},
    "/v1/chat/completions": completion(),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps(ANSWERS[self.path]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Nothing: a handshake that fails is what is asked for."""


@pytest.fixture(params=["https", "http"])
def scheme(request: pytest.FixtureRequest) -> str:
    """What the server speaks."""
    return str(request.param)


@pytest.fixture
def address(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A gateway on loopback, whose certificate only `tmp_path/ca.pem` vouches for."""
    app.close()  # connections of other tests, whose trust is settled
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_API_KEY", "sk-of-this-test")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # which is not asked
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Server(("127.0.0.1", 0), Handler) as server:
        if scheme == "https":
            authority = certify("an authority")
            made = certify("gateway", authority, address="127.0.0.1")
            (tmp_path / "ca.pem").write_text(authority.certificate_pem)
            (tmp_path / "server.pem").write_text(made.certificate_pem + made.key_pem)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "server.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
    app.close()


def test_a_private_authority_is_trusted_by_all_that_asks(
    face: Face, address: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`chat` as well as `doctor`, `status` and `models`; and no proxy is asked."""
    monkeypatch.setenv("LITELLM_URL", f"{scheme}://{address}")
    if scheme == "https":
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert face.chat(HELLO).content == "hi"
    assert gateway_report.ask(app.Settings.load()).models == ("gpt-4o",)


def test_an_untrusted_certificate_is_reported(
    face: Face, address: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without TLS has its own message."""
    monkeypatch.setenv("LITELLM_URL", f"https://{address}")
    said = "is not trusted" if scheme == "https" else "does not use TLS"
    with pytest.raises(app.GatewayUnreachableError, match=said):
        face.chat(HELLO)
    with pytest.raises(gateway_report.GatewayError, match=said) as caught:
        gateway_report.ask(app.Settings.load())
    assert ("SSL_CERT_FILE" in caught.value.fix) is (scheme == "https")


@pytest.mark.parametrize("scheme", ["https"])
def test_a_gateway_that_now_uses_tls_is_reported(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example if LITELLM_URL still says http after `tlsCertificate` was set."""
    monkeypatch.setenv("LITELLM_URL", f"http://{address}")
    with pytest.raises(gateway_report.GatewayError, match="closed the connection without an answer") as caught:
        gateway_report.ask(app.Settings.load())
    assert "https://" in caught.value.fix


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), ("no certificate", "contains no certificates")])
def test_a_file_of_an_authority_that_cannot_be_read(
    face: Face, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, why: str
) -> None:
    app.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_API_KEY", "sk-of-this-test")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(app.NotConfiguredError, match=f"SSL_CERT_FILE .*{why}"):
        face.chat(HELLO)
