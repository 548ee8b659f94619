"""Variables: declared once, read with a type, refused with their name, and in the documentation."""

import importlib.util
import os
from pathlib import Path

import pytest

from langchain_car_vllm import ChatVllmMlx, environment
from langchain_car_vllm.environment import VARIABLES
from langchain_car_vllm.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


def _script():
    spec = importlib.util.spec_from_file_location("variables", ROOT / "scripts" / "variables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", _script().PAGES)
def test_the_tables_are_current(page: str):
    """`make variables` would change nothing."""
    assert (ROOT / page).read_text(encoding="utf-8") == _script().filled(page)


def test_constants_are_named_like_their_variables():
    """What is found in the code by a variable's name is its declaration."""
    constants = {k: v for k, v in vars(environment).items() if isinstance(v, environment.Variable)}
    assert {k: v.name for k, v in constants.items()} == {name: name for name in VARIABLES}


@pytest.mark.parametrize("variable", VARIABLES.values(), ids=VARIABLES)
def test_an_empty_variable_is_unset(
    variable: environment.Variable[object], monkeypatch: pytest.MonkeyPatch
):
    """Its default is what both give."""
    monkeypatch.setenv(variable.name, "")
    assert variable.read() == variable.default
    monkeypatch.delenv(variable.name)
    assert variable.read() == variable.default


@pytest.mark.parametrize("text", ["0", "false", "No", "OFF", " 0 "])
def test_what_turns_off(text: str, monkeypatch: pytest.MonkeyPatch):
    """The usual words for no are understood in any case."""
    monkeypatch.setenv("CAR_VLLM_MLX_AUTO_INSTALL", text)
    assert ChatVllmMlx(model="a/b").auto_install is False


BAD = {
    "CAR_HOME": ["somewhere", "~/x", "/"],
    "CAR_VLLM_MLX_RUNTIME": ["somewhere", "~/x", "/", "//"],
    "CAR_VLLM_MLX_KEEP_ALIVE": ["often", "-2", "nan"],
    "CAR_VLLM_MLX_AUTO_INSTALL": ["nope", "2"],
    "CAR_VLLM_MLX_CAFFEINATE": ["nope", "2"],
    "CAR_VLLM_MLX_ADMISSION": ["nope", "2"],
    "CAR_VLLM_MLX_MEMORY_GB": ["much", "0", "-1", "nan", "inf"],
    "CAR_VLLM_MLX_DOWNLOAD_STALL": ["long", "-1", "inf", "nan"],
    "CAR_VLLM_MLX_LOAD_STALL": ["long", "-1", "inf", "nan"],
    "CAR_VLLM_MLX_MAX_QUEUE": ["many", "-1", "inf", "nan"],
    "CAR_VLLM_MLX_PROGRESS": ["perhaps"],
    "CAR_VLLM_MLX_WIRED": ["yes"],
}


def test_every_typed_variable_has_bad_values_here():
    """A new kind of value gets its counter-examples."""
    typed = {v.name for v in VARIABLES.values() if v.parse not in (str, os.path.expanduser)}
    assert typed == set(BAD)


@pytest.mark.parametrize("name", ["CAR_VLLM_MLX_BIN", "CAR_UV", "CAR_VLLM_PYTHON"])
def test_a_program_may_be_named_from_home(name: str, home: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a `.env` file, which no shell reads; a supervisor has it like that as well."""
    monkeypatch.setenv(name, "~/bin/program")
    assert VARIABLES[name].read() == str(home / "bin" / "program")


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, texts in BAD.items() for t in texts])
def test_what_cannot_work_is_refused_at_construction(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
):
    """The error names the variable and shows the value; the cure is its meaning."""
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigurationError) as caught:
        ChatVllmMlx(model="a/b")
    assert name in caught.value.message
    assert text in caught.value.message
    assert caught.value.hint


def test_variables_are_overridden_for_a_while(monkeypatch: pytest.MonkeyPatch):
    """Afterwards each is as it was, set or not."""
    monkeypatch.setenv("CAR_UV", "/a")
    with environment.overridden({"CAR_UV": "/b", "CAR_VLLM_PYTHON": "/c"}):
        assert environment.CAR_UV.read() == "/b"
        assert environment.inherited_environment()["CAR_VLLM_PYTHON"] == "/c"
    assert environment.CAR_UV.read() == "/a"
    assert environment.CAR_VLLM_PYTHON.read() is None
