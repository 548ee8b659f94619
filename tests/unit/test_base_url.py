"""Addresses of endpoints that somebody else runs."""

import re
import warnings

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.load import dumps, loads
from unit.refusals import refused

import langchain_car_vllm
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.setting_checks import endpoint_url


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "localhost:8000", "ftp://host/v1", "http://"])
def test_a_base_url_without_a_scheme_is_refused(url):
    """The message shows how it should begin, and what was meant."""
    assert "?" in (refused("base_url", base_url=url).hint or "") or url == "http://"
    assert "http://" in str(refused("base_url", base_url=url))


def test_the_address_that_was_meant_is_the_root_of_an_api():
    """Whoever forgets the scheme has most likely forgotten `/v1` as well."""
    assert "`http://localhost:8000/v1`" in refused("base_url", base_url="localhost:8000").hint


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("http//x:1/v1", "http://x:1/v1"),
        ("https:/x/v1", "https://x/v1"),
        ("http:x/v1", "http://x/v1"),
        ("HTTP//x", "http://x/v1"),
        ("//x/v1", "http://x/v1"),
        ("http://https://x/v1", "http://x/v1"),
        ("httpbin.org/v1", "http://httpbin.org/v1"),
        ('"https://x/v1"', "https://x/v1"),
        ("http://x/v1'", "http://x/v1"),
        ("`x`", "http://x/v1"),
        ("http//u:hush@x/v1", "http://x/v1"),
    ],
)
def test_a_scheme_that_is_written_amiss_is_mended(url: str, meant: str, monkeypatch):
    """In code and in the environment, where quotes come along with what was pasted."""
    error = refused("base_url", base_url=url)
    assert error.hint == f"did you mean `{meant}`?"
    assert "hush" not in str(error)
    monkeypatch.setenv("CAR_VLLM_MLX_BASE_URL", url)
    with pytest.raises(ConfigurationError, match=r"^CAR_VLLM_MLX_BASE_URL must ") as caught:
        ChatVllmMlx(model="m")
    assert caught.value.hint == error.hint


SCHEMES = ["http", "https", "htps", ":", "/", "//", "://", '"', "'", "`", " "]
PARTS = [*SCHEMES, "x", "v1", "/v1", ":8000", "u:p@", "[::1]", "?a", "#", "é", "\\", "."]


@example(["[::1]", "/", "`", "http"])
@given(st.lists(st.sampled_from(PARTS), max_size=7))
def test_what_is_suggested_is_taken(written: list[str]):
    """No hint leads to the next error."""
    try:
        ChatVllmMlx(model="m", base_url="".join(written))
    except ConfigurationError as error:
        for meant in re.findall(r"`(https?://[^`]*)`", error.hint or ""):
            assert ChatVllmMlx(model="m", base_url=meant).base_url == meant


@given(address=st.text(st.sampled_from("ab1:/@[]%\\\n\t é１.-_~|^{}\"'"), max_size=30))
def test_an_address_that_is_taken_is_one_that_the_client_can_ask(address):
    """The client imports for long, so it is not asked about addresses of an ordinary form."""
    try:
        model = ChatVllmMlx(model="m", base_url=f"http://{address}")
    except ConfigurationError:
        return
    assert httpx2.URL(model.base_url).host


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1\n", " http://127.0.0.1:9/v1/ "])
def test_an_address_may_come_out_of_a_file(url, monkeypatch):
    """The line break at a file's end is no part of it, wherever the address comes from."""
    assert ChatVllmMlx(model="m", base_url=url).base_url == "http://127.0.0.1:9/v1"
    monkeypatch.setenv("CAR_VLLM_MLX_BASE_URL", url)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ChatVllmMlx(model="m", revision="a").base_url == endpoint_url()


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("CAR_VLLM_MLX_BASE_URL", "localhost:8000", "base_url"),
        ("CAR_VLLM_MLX_BASE_URL", "http://localhost:x/v1", "base_url"),
        ("CAR_VLLM_MLX_API_KEY", "a\nb", "api_key"),
    ],
)
def test_a_variable_that_cannot_work_is_named(name, value, setting, monkeypatch):
    """Whoever set it looks for its name; whoever wrote the same in code for the setting's."""
    monkeypatch.setenv("CAR_VLLM_MLX_BASE_URL", "http://localhost:9/v1")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"^{name} "):
        ChatVllmMlx(model="m")
    monkeypatch.setenv(name, "http://localhost:9/v1")
    with pytest.raises(ConfigurationError, match=f"^`{setting}` "):
        ChatVllmMlx(model="m", **{setting: value})


@pytest.mark.filterwarnings("ignore:.*is in beta")
@pytest.mark.parametrize(
    "name", [n for n in langchain_car_vllm.__all__ if n in ("ChatVllmMlx", "VllmMlxDecisions")]
)
def test_a_model_that_was_kept_from_the_environments_endpoint_is_loaded_as_one(name, monkeypatch):
    """An address or a key that is refused in code is refused wherever the model is loaded."""
    cls = getattr(langchain_car_vllm, name)
    changed = cls(model="org/model")
    changed.base_url = None
    own = [
        cls(model="org/model", base_url=None),
        cls(model="org/model").model_copy(update={"base_url": None}),
        changed,
    ]
    keyless = cls(model="m", base_url="http://127.0.0.1:9/v1", api_key=None)
    open_ = cls(model="org/model")
    monkeypatch.setenv("CAR_VLLM_MLX_BASE_URL", "http://127.0.0.1:8/v1")
    monkeypatch.setenv("CAR_VLLM_MLX_API_KEY", "hush")
    own.append(cls(model="org/model", base_url=None))
    assert [loaded(model).base_url for model in own] == [None] * 4
    assert loaded(keyless).api_key is None
    assert loaded(open_).base_url == endpoint_url()


def loaded(model):
    return loads(
        dumps(model),
        allowed_objects=[type(model)],
        secrets_from_env=True,
        valid_namespaces=["langchain_car_vllm"],
    )
