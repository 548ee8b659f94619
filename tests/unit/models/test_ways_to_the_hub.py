"""The Hub over TLS, behind redirects and behind proxies that speak HTTP."""

import base64
import gc
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakes.certificates import make_certificate
from fakes.http_proxy import running_http_proxy
from fakes.hub import FakeHub, running_hub, write_model

from langchain_car_vllm.errors import ModelDownloadError
from langchain_car_vllm.models.hub import ask_hub_model

REPOSITORY = "org/tiny"
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
PASSWORD = base64.b64encode(b"me:p w/#").decode()
Certificate = tuple[ssl.SSLContext, Path]


@pytest.fixture(name="certificate", scope="module")
def _certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, socket_enabled: None) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(name="hub")
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as hub:
        hub.repositories[REPOSITORY] = write_model(tmp_path / "origin", weights=1000)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture(name="encrypted")
def _encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Certificate
) -> Iterator[FakeHub]:
    with running_hub(certificate[0]) as hub:
        hub.repositories[REPOSITORY] = write_model(tmp_path / "origin", weights=1000)
        monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
        yield hub


def port_of(hub: FakeHub) -> int:
    return int(hub.endpoint.rpartition(":")[2])


SPELLINGS = ["http://{}", "{}", "https://{}", "HTTP://{}/", "http://me:p%20w%2F%23@{}"]
RAW = ["http://me:p%20w/#@{}", "me:p%20w/#@{}"]


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("spelling", [*SPELLINGS, *RAW])
def test_a_proxy_leads_to_an_encrypted_hub(
    encrypted: FakeHub, monkeypatch: pytest.MonkeyPatch, variable: str, spelling: str
):
    """It is asked for a tunnel, in each spelling; the Hub's certificate is checked beyond it."""
    with running_http_proxy(port_of(encrypted), PASSWORD if "@" in spelling else None) as proxy:
        monkeypatch.setenv(variable, spelling.format(proxy.address))
        assert ask_hub_model(REPOSITORY).weights
        assert proxy.asked == {("CONNECT", "hub.example:443")}


@pytest.mark.parametrize("spelling", [s for s in (*SPELLINGS, *RAW) if "https" not in s])
def test_a_proxy_is_asked_for_the_whole_address_of_a_hub_without_tls(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, spelling: str
):
    """Many proxies make tunnels to encrypted services only."""
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.token = "secret"
    with running_http_proxy(port_of(hub), PASSWORD if "@" in spelling else None) as proxy:
        monkeypatch.setenv("HTTP_PROXY", spelling.format(proxy.address))
        assert ask_hub_model(REPOSITORY).weights
        assert ("GET", "http://hub.example/org/tiny/resolve/main/config.json") in proxy.asked


@pytest.mark.parametrize("endpoint", ["http://hub.example", "https://hub.example"])
def test_a_proxy_that_wants_a_password_is_told(
    encrypted: FakeHub, monkeypatch: pytest.MonkeyPatch, endpoint: str
):
    """The cure names the variables that hold it."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with running_http_proxy(port_of(encrypted), PASSWORD) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://me:wrong@{proxy.address}")
        with pytest.raises(ModelDownloadError, match="Proxy Authentication Required") as caught:
            ask_hub_model(REPOSITORY)
    assert "HTTPS_PROXY" in caught.value.hint
    assert "wrong" not in str(caught.value)
    del caught
    gc.collect()  # a socket that was left open is told now


@pytest.mark.parametrize("way", ["direct", "proxy"])
def test_a_certificate_that_nobody_trusts_is_told(
    encrypted: FakeHub, monkeypatch: pytest.MonkeyPatch, way: str
):
    """It is no network that is down; `SSL_CERT_FILE` cures it."""
    with running_http_proxy(port_of(encrypted)) as proxy:
        if way == "direct":
            monkeypatch.setenv("HF_ENDPOINT", encrypted.endpoint)
        else:
            monkeypatch.setenv("HTTPS_PROXY", proxy.address)
        assert ask_hub_model(REPOSITORY).weights
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(ModelDownloadError, match="is not trusted") as caught:
            ask_hub_model(REPOSITORY)
    assert "SSL_CERT_FILE" in caught.value.hint


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def test_a_hub_at_an_address_of_the_sixth_version_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its brackets are no part of the address."""
    if not has_ipv6():
        pytest.skip("this machine has no address of the sixth version, as many containers")
    with running_hub(host="::1") as hub:
        hub.repositories[REPOSITORY] = write_model(tmp_path / "origin", weights=1000)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert ask_hub_model(REPOSITORY).weights


def test_the_token_goes_to_no_other_host(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
):
    """Files may be answered from anywhere."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.token = "secret"
    with running_hub() as other:
        other.repositories[REPOSITORY] = write_model(tmp_path / "other", weights=1000)
        hub.elsewhere = other.endpoint
        assert ask_hub_model(REPOSITORY).weights
        assert other.requests
        assert other.authorizations == {""}


def test_a_hub_that_redirects_for_ever_is_left(hub: FakeHub):
    """One typed error, after a few requests."""
    hub.elsewhere = hub.endpoint
    with pytest.raises(ModelDownloadError):
        ask_hub_model(REPOSITORY)


@pytest.mark.parametrize("place", ["ftp://a/b", "file:///etc/passwd", "http://[", "http://a:b/"])
def test_a_redirect_to_something_else_is_not_followed(hub: FakeHub, place: str):
    """What is no address of the web is one typed error."""
    hub.elsewhere = place
    with pytest.raises(ModelDownloadError):
        ask_hub_model(REPOSITORY)
