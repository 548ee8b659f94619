"""What works at run time is what type checkers accept, and nothing else."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

import langchain_car_vllm
from langchain_car_vllm import arguments

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "typed_program.py"
WRONG = """
from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings
ChatVllmMlx("org/repo", warmth=1)
ChatVllmMlx("org/repo", temperature="hot")
ChatVllmMlx(5)
VllmMlxEmbeddings("org/repo", top_n=3)
"""
PLUGIN = "[mypy]\nplugins = pydantic.mypy\n"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="the types are checked with mypy"
)


def errors_of(program: Path, settings: str, folder: Path) -> list[str]:
    """Return what mypy says of a program of somebody who has the package installed."""
    config = folder / "mypy.ini"
    config.write_text(settings)
    cache = ROOT / ".mypy_cache" / "programs"
    options = ["--strict", f"--config-file={config}", f"--cache-dir={cache}"]
    command = [sys.executable, "-m", "mypy", *options, "--no-error-summary", str(program)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert not ran.stderr
    return [line for line in ran.stdout.splitlines() if ": error: " in line]


@pytest.mark.parametrize("settings", ["[mypy]\n", PLUGIN], ids=["plain", "plugin"])
def test_a_program_of_a_user_has_no_error_of_type(settings, tmp_path):
    """With pydantic's plugin and without; `ChatVllmMlx("org/repo")` was refused."""
    assert errors_of(PROGRAM, settings, tmp_path) == []


def test_a_wrong_argument_is_an_error_of_type(tmp_path):
    """Each of them, as it is one at run time."""
    program = tmp_path / "wrong.py"
    program.write_text(WRONG)
    assert len(errors_of(program, "[mypy]\n", tmp_path)) == WRONG.count("\n") - 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_same_program_runs(tmp_path):
    """What type checkers accept can be constructed."""
    pytest.importorskip("langchain_core.decisions", reason="langchain-core before 1.8")
    import typed_program

    (tmp_path / "config.json").write_text("{}")
    models, others = typed_program.models(tmp_path), typed_program.others(tmp_path)
    assert all(model.model for model in (*models, *others[0], *others[1], others[2]))


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("ChatVllmMlx", arguments.ChatArguments),
        ("VllmMlxEmbeddings", arguments.BatchArguments),
        ("VllmMlxReranker", arguments.RerankerArguments),
        ("VllmMlxDecisions", arguments.DecisionArguments),
    ],
)
def test_each_setting_is_an_argument(name: str, taken):
    """The two lists cannot drift apart."""
    if name not in langchain_car_vllm.__all__:
        pytest.skip("langchain-core before 1.8")
    model: type[BaseModel] = getattr(langchain_car_vllm, name)
    assert taken.__annotations__.keys() == model.model_fields.keys()
