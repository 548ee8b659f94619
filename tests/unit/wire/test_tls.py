"""Endpoints behind TLS, over the same connections as all others."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import truststore
from fakes.certificates import make_certificate
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from unit.wire.calling import WAYS

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ConnectionFailedError
from langchain_car_vllm.support.bounded_http import fetch

Certificate = tuple[ssl.SSLContext, Path]


@pytest.fixture(name="certificate", scope="module")
def _certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(name="model")
def _model(certificate: Certificate) -> Iterator[ChatVllmMlx]:
    dialect = Dialect(served_model="m", script=lambda _: Reply(text="one two three"))
    with Server(dialect, certificate[0]) as server:
        yield ChatVllmMlx(model="m", base_url=server.base_url)


@pytest.mark.parametrize("way", WAYS)
def test_an_endpoint_behind_tls_answers(
    model: ChatVllmMlx,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
):
    """With a certificate that the system trusts, twice over the connection that stands."""
    trusting = ssl.create_default_context(cafile=certificate[1])
    monkeypatch.setattr(httpx2, "create_ssl_context", lambda **_: trusting)
    for _ in range(2):
        assert WAYS[way](model, "hi").text == "one two three"


def test_what_is_asked_before_a_call_trusts_whom_the_call_does(
    model: ChatVllmMlx, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
):
    """A Mac's keychain may trust what Python itself does not, whatever the environment says."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    fields = {"model": "m", "base_url": model.base_url, "validate_model_on_init": True}
    with pytest.raises(ConnectionFailedError, match="certificate verify failed"):
        ChatVllmMlx(**fields)
    trusting = ssl.create_default_context(cafile=certificate[1])
    monkeypatch.setattr(httpx2, "create_ssl_context", lambda **_: trusting)
    assert ChatVllmMlx(**fields).invoke("hi").text == "one two three"


@pytest.mark.parametrize("folder", [None, "empty"])
def test_a_python_without_certificates_trusts_whom_the_system_does(
    certificate: Certificate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str | None,
):
    """As python.org's for macOS before its `Install Certificates` was run."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / (folder or "missing")))
    trusting = ssl.create_default_context(cafile=certificate[1])
    monkeypatch.setattr(truststore, "SSLContext", lambda _: trusting)
    with Server(Dialect(), certificate[0]) as server:
        found = fetch(f"{server.base_url}/models", seconds=20, most_bytes=1 << 16)
    assert found.status in (200, 401)


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac's keychain is asked instead")
def test_certificates_in_several_folders_are_trusted(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """OpenSSL takes a list of folders, which is none of a single one."""
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(certificate[1])]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / f"{name}.0").write_bytes(certificate[1].read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}:{tmp_path / 'own'}")
    with Server(Dialect(), certificate[0]) as server:
        found = fetch(f"{server.base_url}/models", seconds=20, most_bytes=1 << 16)
    assert found.status in (200, 401)


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
@pytest.mark.parametrize("way", WAYS)
def test_a_certificate_that_nobody_trusts_is_refused(
    model: ChatVllmMlx,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    scheme: str,
):
    """Whatever the environment says of certificates, and in words that name the cause."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    model = model.model_copy(update={"base_url": model.base_url.replace("https", scheme)})
    with pytest.raises(ConnectionFailedError, match="certificate verify failed"):
        WAYS[way](model, "hi")


ENDPOINTS: list[Callable[..., object]] = [
    lambda **fields: ChatVllmMlx(**fields).invoke("hi"),
    lambda **fields: asyncio.run(ChatVllmMlx(**fields).ainvoke("hi")),
    lambda **fields: ChatVllmMlx(**fields, validate_model_on_init=True),
]


@pytest.mark.parametrize("ask", ENDPOINTS)
def test_a_server_without_tls_is_said_to_be_one(ask: Callable[..., object]):
    """OpenSSL speaks of a wrong version number."""
    with Server(Dialect(served_model="m")) as server:
        address = server.base_url.replace("http:", "https:")
        with pytest.raises(ConnectionFailedError) as caught:
            ask(model="m", base_url=address)
    hint = caught.value.hint or ""
    assert hint.startswith(f"did you mean `{server.base_url}`?")
