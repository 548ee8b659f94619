"""Settings that leave each other without effect are told, once, by every class."""

import warnings
from typing import Any

import pytest

import langchain_car_vllm
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.settings import ServerFields

CLASSES = [
    found
    for name in langchain_car_vllm.__all__
    if isinstance(found := getattr(langchain_car_vllm, name), type)
    and issubclass(found, ServerFields)
]
MODEL = "org/model"
ELSEWHERE = "http://127.0.0.1:9/v1"
EVERY_CLASS = pytest.mark.parametrize("cls", CLASSES)
OF_OUR_SERVER = {
    "revision": "v2",
    "keep_alive": "1h",
    "startup_timeout": 5,
    "auto_install": False,
    "auto_pull": False,
    "server_args": ["--max-num-seqs", "4"],
    "server_env": {"TOKEN": "hush"},
}


def told(make: Any) -> list[warnings.WarningMessage]:
    """Return the warnings of three constructions."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            make()
    return caught


@EVERY_CLASS
def test_a_key_without_its_endpoint_is_told_once(cls):
    """Its secret is not, and the line is the program's."""
    (warning,) = told(lambda: cls(MODEL, api_key="s3cret"))
    assert "`api_key` has no effect without `base_url`" in str(warning.message)
    assert "s3cret" not in str(warning.message)
    assert warning.filename == __file__


@EVERY_CLASS
@pytest.mark.parametrize("name", OF_OUR_SERVER)
def test_what_is_about_a_server_of_ours_is_told_beside_another(cls, name):
    """Each setting by its name, and no value of it."""
    given = {name: OF_OUR_SERVER[name]}
    (warning,) = told(lambda: cls(MODEL, base_url=ELSEWHERE, **given))
    assert f"with `base_url`, `{name}` has no effect" in str(warning.message)
    assert "hush" not in str(warning.message)
    assert told(lambda: cls(MODEL, **given)) == []


@EVERY_CLASS
def test_a_revision_of_a_directory_is_told(cls, tmp_path):
    """It holds what it holds; no copy of another time is looked for."""
    (tmp_path / "config.json").write_text("{}")
    (warning,) = told(lambda: cls(str(tmp_path), revision="v2"))
    assert "`revision` has no effect" in str(warning.message)
    assert told(lambda: cls(MODEL, revision="v2")) == []


def test_several_are_told_in_one_sentence():
    """In the order of the reference."""
    given = {"server_args": ["--x"], "revision": "v2"}
    (warning,) = told(lambda: ChatVllmMlx(MODEL, base_url=ELSEWHERE, **given))
    assert "`revision` and `server_args` have no effect" in str(warning.message)


@EVERY_CLASS
@pytest.mark.parametrize("slash", ["", "/"])
def test_what_the_environment_brings_is_no_mistake_of_a_program(cls, slash, monkeypatch):
    """It chooses the endpoint, or brings a key for those that are named, for many programs."""
    monkeypatch.setenv("CAR_VLLM_MLX_API_KEY", "s3cret")
    assert told(lambda: cls(MODEL)) == []
    monkeypatch.setenv("CAR_VLLM_MLX_KEEP_ALIVE", "1h")
    assert told(lambda: cls(MODEL, base_url=ELSEWHERE)) == []
    monkeypatch.setenv("CAR_VLLM_MLX_BASE_URL", ELSEWHERE + slash)
    assert told(lambda: cls(MODEL, **OF_OUR_SERVER)) == []


@EVERY_CLASS
def test_what_fits_is_not_told(cls):
    """Nor is what comes back from pickling, copies and LangChain's own configurable fields."""
    assert told(lambda: cls(MODEL, base_url=ELSEWHERE, api_key="s3cret", timeout=5)) == []
    assert told(lambda: cls(**dict(cls(MODEL, base_url=ELSEWHERE, api_key="s3cret")))) == []
    assert told(lambda: cls(**{k: v for k, v in dict(cls(MODEL)).items() if v is not None})) == []


def test_a_call_that_names_a_keep_alive_is_told(socket_enabled: None):
    """Nothing is kept alive there; a model of our own takes it."""
    llm = ChatVllmMlx(MODEL, base_url=ELSEWHERE)
    (warning,) = told(lambda: llm._call(None, {"keep_alive": 0}))
    assert "`keep_alive` has no effect" in str(warning.message)
    assert told(lambda: ChatVllmMlx(MODEL)._call(None, {"keep_alive": 0})) == []
