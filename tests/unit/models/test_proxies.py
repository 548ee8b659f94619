"""The Hub behind proxies of every kind, as its own client would reach it."""

import pytest
from fakes.hub import running_hub, write_model
from fakes.socks_proxy import running_socks_proxy
from hypothesis import given
from hypothesis import strategies as st

from langchain_car_vllm.errors import ModelDownloadError
from langchain_car_vllm.models.hub import ask_hub_model
from langchain_car_vllm.models.proxies import find_proxy
from langchain_car_vllm.server.child_environment import download_environment
from langchain_car_vllm.support.proxy_variables import is_socks, proxy_variables

REPOSITORY = "org/tiny"
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def hub(tmp_path, monkeypatch, socket_enabled):
    """A hub whose name only a proxy knows."""
    with running_hub() as hub:
        hub.repositories[REPOSITORY] = write_model(tmp_path / "origin", weights=1000)
        hub.port = int(hub.endpoint.rpartition(":")[2])
        monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
        yield hub


@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTP_PROXY", "http_proxy", "all_proxy"])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "SOCKS5", "socks"])
def test_a_socks_proxy_leads_to_the_hub(hub, monkeypatch, variable, scheme):
    """Under each name and in each spelling; the proxy looks the host up."""
    with running_socks_proxy(hub.port) as proxy:
        monkeypatch.setenv(variable, f"{scheme}://{proxy.address}")
        assert ask_hub_model(REPOSITORY).weights
        assert set(proxy.asked) == {("hub.example", 80)}


def test_an_encrypted_hub_is_asked_through_it_too(hub, monkeypatch):
    """What answers without TLS is no Hub, and the proxy was asked for the right port."""
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    with running_socks_proxy(hub.port) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5h://{proxy.address}")
        with pytest.raises(ModelDownloadError, match="proxy"):
            ask_hub_model(REPOSITORY)
        assert proxy.asked == [("hub.example", 443)]


def test_all_proxy_may_speak_http(hub, monkeypatch):
    """The fake hub takes whole addresses for paths, as a proxy does for its own."""
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{hub.port}")
    assert ask_hub_model(REPOSITORY).weights
    assert hub.requests


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_loopback_goes_through_no_proxy(hub, monkeypatch, scheme, host):
    """A mirror on this machine is asked directly, whatever the variables say."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://{host}:{hub.port}")
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", f"{scheme}://127.0.0.1:9")
    assert ask_hub_model(REPOSITORY).weights


def test_what_is_excepted_goes_through_no_proxy(hub, monkeypatch):
    """`NO_PROXY` holds for SOCKS as for HTTP."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    assert find_proxy("https://hub.example/x") == "socks5://127.0.0.1:9"
    monkeypatch.setenv("NO_PROXY", "hub.example,other")
    assert find_proxy("https://hub.example/x") is None
    assert find_proxy("https://another.example/x") == "socks5://127.0.0.1:9"


@pytest.mark.parametrize(
    "proxy",
    [
        *("socks5://127.0.0.1:9", "socks4://127.0.0.1:9", "http://127.0.0.1:9", "socks7://x:1"),
        *("socks5://", "socks5://[", "socks5://x:port", "nonsense", "http://[::1", "://"),
    ],
)
def test_a_proxy_that_leads_nowhere_is_named_as_the_cause(hub, monkeypatch, proxy):
    """Dead, unknown or misspelt: one typed error whose cure names the variables."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ModelDownloadError) as caught:
        ask_hub_model(REPOSITORY)
    assert "ALL_PROXY" in caught.value.hint


def test_a_proxy_that_refuses_is_told(hub, monkeypatch):
    """Its own words are passed on."""
    with running_socks_proxy(None) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5://{proxy.address}")
        with pytest.raises(ModelDownloadError, match="not allowed") as caught:
            ask_hub_model(REPOSITORY)
    assert "ALL_PROXY" in caught.value.hint


_hosts = st.lists(st.sampled_from(["a.b", " c ", "localhost", "", "10.0.0.0/8"]), max_size=4)


@given(
    st.dictionaries(
        st.sampled_from([*NAMES, *map(str.upper, NAMES)]),
        st.one_of(_hosts.map(",".join), st.just("*"), st.just("socks://h:1")),
    )
)
def test_children_send_nothing_of_loopback_through_a_proxy(variables):
    """Where there is a proxy, this machine is excepted under both names, and nothing is lost."""
    found = proxy_variables({**variables, "PATH": "/bin"})
    given_proxies = {n for n, v in variables.items() if v and n.lower() != "no_proxy"}
    assert {n for n in found if n.lower() != "no_proxy"} == given_proxies
    assert not [n for n in given_proxies if found[n].startswith("socks://")]
    if given_proxies:
        excepted = found["no_proxy"].split(",")
        assert found["NO_PROXY"] == found["no_proxy"]
        assert excepted == ["*"] or {"localhost", "127.0.0.1", "::1"} <= set(excepted)
        said = variables.get("no_proxy") or variables.get("NO_PROXY") or ""
        assert {part.strip() for part in said.split(",") if part.strip()} <= set(excepted)
    else:
        assert found == {n: v for n, v in variables.items() if v}


def test_a_download_is_told_of_loopback():
    """The Hub's client reads what a child process inherits."""
    found = download_environment({"ALL_PROXY": "socks://a:1", "no_proxy": "b"})
    assert found["ALL_PROXY"] == "socks5h://a:1"
    assert found["NO_PROXY"] == found["no_proxy"] == "b,localhost,127.0.0.1,::1"


def test_socks_is_known_by_its_scheme():
    """In any case, and by nothing else."""
    assert is_socks("SOCKS5h://a")
    assert not is_socks("http://socks:1")
