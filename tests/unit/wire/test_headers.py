"""Keys and headers: what can be sent is, and what cannot is refused without being shown."""

import asyncio
from collections.abc import Iterator
from typing import Any

import h11
import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from hypothesis import given
from hypothesis import strategies as st
from langchain_core import exceptions as core

import langchain_car_vllm
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import CarVllmError, ConfigurationError
from langchain_car_vllm.settings import ServerFields
from langchain_car_vllm.wire.request.headers import check_headers
from langchain_car_vllm.wire.transport.error_mapping import map_errors

CLASSES = [
    found
    for name in langchain_car_vllm.__all__
    if isinstance(found := getattr(langchain_car_vllm, name), type)
    and issubclass(found, ServerFields)
]
ELSEWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that wants a key."""
    with Server(Dialect("m", api_key="sk-hush")) as running:
        yield running


@pytest.mark.parametrize("key", ["sk-hush\n", "sk-hush\r\n", " sk-hush", "sk-hush\t"])
@pytest.mark.parametrize("place", ["setting", "variable"])
def test_a_key_may_end_as_a_file_of_it_does(server, key, place, monkeypatch):
    """`$(cat key)` has no line break, and what reads the file has one."""
    if place == "variable":
        monkeypatch.setenv("CAR_VLLM_MLX_API_KEY", key)
    given_key = {"api_key": key} if place == "setting" else {}
    llm = ChatVllmMlx("m", base_url=server.base_url, **given_key)
    assert llm.invoke("hi").text
    assert asyncio.run(llm.ainvoke("hi")).text


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_key", "sk-hush\nx"),
        ("api_key", "sk-hush\xe9"),
        ("api_key", "sk-hush\0"),
        ("default_headers", {"x-key": "hush\n"}),
        ("default_headers", {"x-key": "h\xfcush"}),
        ("default_headers", {"x-key": " hush"}),
        ("default_headers", {"x key": "hush"}),
        ("default_headers", {"": "hush"}),
    ],
)
def test_what_no_header_can_hold_is_refused_and_not_shown(cls, name, value):
    """The HTTP library would show the key, in what looks like a failed connection."""
    with pytest.raises(ConfigurationError, match=f"`{name}` contains") as caught:
        cls("m", base_url=ELSEWHERE, **{name: value})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("value", ["hush\n", "h\xfcsh", 5, None, b"hush"])
def test_a_header_of_a_call_is_checked_too(value):
    """In the call, in `bind` and in `model_kwargs`; nothing is sent."""
    headers: dict[str, Any] = {"x-key": value}
    llm = ChatVllmMlx("m", base_url=ELSEWHERE)
    for call in (
        llm.bind(extra_headers=headers).invoke,
        lambda m: llm.invoke(m, extra_headers=headers),
    ):
        with pytest.raises(ConfigurationError, match="`extra_headers` contains") as caught:
            call("hi")
        assert "hush" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="`extra_headers` contains"):
        ChatVllmMlx("m", base_url=ELSEWHERE, model_kwargs={"extra_headers": headers})


@given(st.dictionaries(st.text(max_size=6).map("x-{}".format), st.text(max_size=8), max_size=3))
def test_what_passes_can_be_sent(headers):
    """Judged by the library that would refuse it while sending."""
    try:
        check_headers("x", headers)
    except ConfigurationError:
        return
    sent = [("host", "x"), *((name, value) for name, value in headers.items())]
    h11.Request(method="GET", target="/", headers=sent)


def test_a_request_that_http_does_not_allow_is_no_lost_connection():
    """Whatever gets so far; its text may hold a key."""
    import httpcore2

    endpoint = Endpoint(base_url=ELSEWHERE, api_key=None, served_model="m")
    with pytest.raises(CarVllmError) as caught, map_errors(endpoint, None, sent=dict):
        raise httpcore2.LocalProtocolError("Illegal header value b'Bearer sk-hush'")
    assert isinstance(caught.value, core.ModelInvalidRequestError)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Connection", "Expect"])
def test_no_header_says_where_a_request_ends(server, name):
    """One of the user's would contradict the request's own; HTTP's library raised its own error."""
    llm = ChatVllmMlx("m", base_url=server.base_url, api_key="sk-hush")
    with pytest.raises(ConfigurationError, match="belongs to the connection"):
        llm.invoke("hi", extra_headers={name: "5"})
    with pytest.raises(ConfigurationError, match="belongs to the connection"):
        ChatVllmMlx("m", base_url=server.base_url, default_headers={name: "5"})
    assert llm.invoke("hi", extra_headers={"Host": "other.example"}).text
