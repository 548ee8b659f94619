import pytest

from langchain_car_vllm.models import ModelFacts
from langchain_car_vllm.models.compatibility import facts_for_version
from langchain_car_vllm.runtime.versions import version_warning


def facts(tool_call=None, reasoning=None, **sampling):
    return ModelFacts(tool_call, reasoning, False, None, sampling=sampling)


@pytest.mark.parametrize(
    ("version", "tool_call", "reasoning", "expected"),
    [
        ("0.6.0", "step3p5", "step3p5", ("step3p5", "step3p5")),
        ("0.5.0", "deepseek_v4", "deepseek_v4", ("deepseek_v4", "deepseek_v4")),
        ("0.4.1", "step3p5", "step3p5", ("qwen", "qwen3")),
        ("0.4.1", "deepseek_v4", "deepseek_v4", (None, "deepseek_r1")),
        ("0.3.0", "mistral", "mistral", ("mistral", None)),
        ("0.4.0", "mistral", "mistral", ("mistral", "mistral")),
        ("0.3.0", "qwen", "qwen3", ("qwen", "qwen3")),
        ("0.3.0", None, None, (None, None)),
        (None, "step3p5", "step3p5", ("step3p5", "step3p5")),
    ],
)
def test_parsers_that_a_version_lacks_are_replaced(version, tool_call, reasoning, expected):
    """An older server is never given a parser that it would refuse to start with."""
    found = facts_for_version(facts(tool_call, reasoning), version)
    assert (found.tool_call_parser, found.reasoning_parser) == expected


def test_options_that_a_version_lacks_are_left_out():
    """An older server is never given a sampling default that it has no option for."""
    wanted = facts(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1)
    assert facts_for_version(wanted, "0.3.0").sampling == {"temperature": 0.6, "top_p": 0.9}
    assert facts_for_version(wanted, "0.4.0").sampling == wanted.sampling


@pytest.mark.parametrize("version", ["0.6.0", "0.6.3", "1.0", None])
def test_a_recent_version_needs_no_warning(version):
    """From 0.6.0 on, and where nobody knows, nothing is said."""
    assert version_warning(version) is None


def test_an_older_version_is_warned_about():
    """Below 0.6.0 one sentence says what is missing and how to get it."""
    warning = version_warning("0.5.0")
    assert warning.startswith("vllm-mlx 0.5.0 is older than 0.6.0: ")
    assert "empty answer" in warning
    assert "Stream(gpu)" not in warning
    assert "car-vllm install --upgrade" in warning
    assert "Stream(gpu)" in version_warning("0.4.1")
