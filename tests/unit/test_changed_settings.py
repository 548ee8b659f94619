"""Settings that are changed later, by an assignment or in a copy, are checked like new ones."""

from pathlib import Path
from typing import Any

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from unit.refusals import MODEL, assigned_wrongly

import langchain_car_vllm
from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.settings import ServerFields

CLASSES = [
    found
    for name in langchain_car_vllm.__all__
    if isinstance(found := getattr(langchain_car_vllm, name), type)
    and issubclass(found, ServerFields)
]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ""),
        ("model", 5),
        ("model", "nonsense"),
        ("base_url", "nonsense"),
        ("api_key", 5),
        ("api_key", "a\nb"),
        ("timeout", "x"),
        ("keep_alive", "soon"),
        ("server_args", ["--port", "1"]),
        ("default_headers", {"a b": "c"}),
        ("nonsense", 1),
        ("num_ctx", 1),
    ],
)
def test_an_assignment_is_checked_as_a_constructor_is(cls, name, value):
    """It ended without a type, or went unseen, in the next call; what was set before stays."""
    with pytest.raises(ConfigurationError) as caught:
        cls(**{"model": MODEL, name: value})
    assert str(assigned_wrongly(cls(MODEL), (name, value))) == str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_assigned_is_read_as_in_a_constructor(cls, tmp_path: Path, monkeypatch):
    """A path is anchored, a key is no longer shown, an address loses its last slash."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "qwen3"}')
    monkeypatch.chdir(tmp_path)
    model, same = cls(MODEL), cls(MODEL)
    model.model = Path("other")
    assert model.model == cls(Path("other")).model == str(tmp_path / "other")
    model.base_url = "http://127.0.0.1:9/v1/"
    model.api_key = "hush\n"
    assert model.base_url == "http://127.0.0.1:9/v1"
    assert model.api_key.get_secret_value() == "hush"
    assert "hush" not in repr(model)
    assert model.model_fields_set >= {"model", "base_url", "api_key"}
    assert same == cls(MODEL)


def test_an_assigned_model_has_its_own_profile():
    """The former one's was kept; what the user sets goes over what is known."""
    model = ChatVllmMlx(MODEL, profile={"max_input_tokens": 7})
    other = "mlx-community/Qwen3-4B-4bit"
    model.temperature = 0.5
    assert model.profile["max_input_tokens"] == 7
    model.model = other
    assert model.profile == ChatVllmMlx(other).profile
    model.profile = {"max_input_tokens": 9}
    assert model.profile == ChatVllmMlx(other, profile={"max_input_tokens": 9}).profile


def test_what_langchain_assigns_is_its_own():
    """It may be of any kind, and costs nothing; a subclass may assign while it is made."""

    class Own(ChatVllmMlx):
        label: str = ""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.label = "mine"

    model = Own(model=MODEL)
    handlers: Any = object()
    model.callbacks = handlers
    assert model.callbacks is handlers
    assert model.label == "mine"


def test_an_assignment_asks_nobody(socket_enabled: None):
    """`validate_model_on_init` is about construction."""
    with Server(Dialect("m")) as server:
        model = ChatVllmMlx("m", base_url=server.base_url, validate_model_on_init=True)
        asked = len(server.dialect.paths)
        model.temperature = 0.5
        model.model = "other"
        assert len(server.dialect.paths) == asked > 0
    assert model.validate_model_on_init


@pytest.mark.parametrize("cls", [ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker])
def test_a_changed_copy_is_as_good_as_a_new_model(cls):
    """A key becomes a secret, an unknown name is refused, what was not set stays unset."""
    model = cls(model="m", base_url="http://127.0.0.1:9/v1")
    copied = model.model_copy(update={"api_key": "hush", "default_headers": {"a": "hush"}})
    assert copied._external(None).api_key == "hush"
    assert "hush" not in f"{copied!r}{copied}"
    assert model.api_key is None
    assert "revision" not in copied.model_fields_set
    with pytest.raises(ConfigurationError, match="nonsense"):
        model.model_copy(update={"nonsense": 5})
