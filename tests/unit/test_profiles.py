"""What pickers of models and deepagents read of this package."""

import ast
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import langchain_car_vllm
from langchain_car_vllm import ChatVllmMlx

ROOT = Path(__file__).parents[2]


def test_the_profiles_of_the_catalog_are_current():
    """They are what the catalog makes."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "model_profiles.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_profiles_can_be_read_without_an_import():
    """They are one literal, and each key is a model of this package that says the same."""
    page = Path(langchain_car_vllm.__file__).parent / "data" / "_profiles.py"
    [assigned] = [n for n in ast.parse(page.read_text()).body if isinstance(n, ast.AnnAssign)]
    assert ast.unparse(assigned.target) == "_PROFILES"
    profiles = ast.literal_eval(assigned.value)
    assert len(profiles) >= 5
    for name, profile in profiles.items():
        known = dict(ChatVllmMlx(model=name).profile or {})
        fitting = ("max_input_tokens", "max_output_tokens")
        assert {k: v for k, v in known.items() if k not in fitting} == {
            k: v for k, v in profile.items() if k not in fitting
        }


@pytest.mark.parametrize("group", ["provider_profiles", "harness_profiles"])
def test_the_entry_points_of_deepagents_lead_to_functions(group):
    """deepagents calls them without arguments."""
    [found] = entry_points(group=f"deepagents.{group}", name="vllm_mlx")
    assert callable(found.load())


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        (
            "mlx-community/gpt-oss-20b-MXFP4-Q8",
            "reasoning_effort_levels",
            ["low", "medium", "high"],
        ),
        ("mlx-community/gpt-oss-20b-MXFP4-Q8", "reasoning_effort_default", "medium"),
        ("mlx-community/Qwen3-4B-4bit", "reasoning_effort_levels", None),
        ("mlx-community/Qwen3-4B-4bit", "mid_conversation_system_messages", True),
        ("vllm-mlx/qwen3.6-35b-a3b:4bit", "mid_conversation_system_messages", False),
        ("vllm-mlx/qwen3.6-35b-a3b:4bit", "attachment", True),
        ("vllm-mlx/qwen3.6-35b-a3b:4bit", "mid_conversation_tools", False),
        ("mlx-community/Qwen3-4B-4bit", "temperature", True),
    ],
)
def test_the_profile_has_the_keys_of_newer_cores(model, key, value):
    """What is not known of a model is absent."""
    assert dict(ChatVllmMlx(model=model).profile or {}).get(key) == value


def test_prompt_and_answer_share_the_window():
    """An answer can be as long as what is left of it at most."""
    profile = dict(ChatVllmMlx(model="vllm-mlx/gemma-4-e4b-it").profile or {})
    assert profile["max_output_tokens"] == profile["max_input_tokens"]


DEEP_AGENT = """
from deepagents._models import resolve_model
from deepagents.profiles.harness.harness_profiles import _harness_profile_for_model
model = resolve_model("vllm_mlx:mlx-community/Qwen3-4B-4bit")
profile = _harness_profile_for_model(model, None)
assert type(model).__name__ == "ChatVllmMlx", model
assert profile.general_purpose_subagent.enabled is False
assert "read_file" in profile.tool_description_overrides
"""


def test_deepagents_takes_both_profiles():
    """A name alone gives a model and its harness, with nothing registered by hand."""
    pytest.importorskip("deepagents")
    done = subprocess.run(
        [sys.executable, "-c", DEEP_AGENT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
