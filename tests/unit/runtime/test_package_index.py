"""The real uv on its way to a package index: proxies and certificates."""

import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fakes.certificates import make_certificate
from fakes.socks_proxy import running_socks_proxy

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime.commands import hint_for


@pytest.fixture
def plain_index(wheels, tmp_path):
    """An index without TLS that has the wheel; its port."""
    folder = tmp_path / "index" / "simple" / "tiny"
    folder.mkdir(parents=True)
    for wheel in wheels.iterdir():
        shutil.copy(wheel, folder)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / "index")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def online(install_wheel, monkeypatch):
    """The wheel is to be had from an index alone."""
    for name in ("UV_FIND_LINKS", "UV_OFFLINE"):
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return install_wheel


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks"])
def test_an_index_behind_a_socks_proxy(online, plain_index, monkeypatch, scheme):
    """The real uv goes through it, also in the spelling of desktops."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://localhost.index.example/simple")
    with running_socks_proxy(plain_index) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://{proxy.address}")
        if scheme == "socks5":  # uv looks the name up itself
            monkeypatch.setenv("UV_DEFAULT_INDEX", "http://192.0.2.1/simple")
        assert online()
        assert proxy.asked


def test_an_index_on_this_machine_is_asked_without_a_proxy(online, plain_index, monkeypatch):
    """Whatever the variables say."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{plain_index}/simple")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert online()


def test_a_socks_proxy_that_is_not_there_is_the_cause(online, monkeypatch):
    """What uv says of it comes with a cure that names the variables."""
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://192.0.2.1/simple")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(ProvisionError) as caught:
        online()
    assert "ALL_PROXY" in caught.value.hint


@pytest.fixture
def untrusted_index(tmp_path):
    """An index that is served with a certificate which nobody trusts."""
    (tmp_path / "simple" / "tiny").mkdir(parents=True)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            """A client that does not trust us hangs up."""

    server = Server(("127.0.0.1", 0), Handler)
    shown, _ = make_certificate(tmp_path)
    server.socket = shown.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"https://localhost:{server.server_port}/simple"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_proxy_that_inspects_tls_is_told_from_no_network(
    install_wheel, untrusted_index, monkeypatch
):
    """The hint is about certificates, and uv's own about its options is left out."""
    for name in ("UV_FIND_LINKS", "UV_OFFLINE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", untrusted_index)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(ProvisionError, match="invalid peer certificate") as caught:
        install_wheel()
    assert "SSL_CERT_FILE" in caught.value.hint
    assert "--system-certs" not in str(caught.value)
    assert len(str(caught.value.message).splitlines()) <= 3


@pytest.mark.parametrize(
    "text",
    [
        "error: Request failed\n  Caused by: invalid peer certificate: UnknownIssuer",
        "error: Failed to download https://github.com/x\n  invalid peer certificate: BadSignature",
    ],
)
def test_certificates_come_before_the_network(text):
    """A failed request that names a certificate is not called a missing network."""
    assert "SSL_CERT_FILE" in hint_for(f"error sending request {text}")
