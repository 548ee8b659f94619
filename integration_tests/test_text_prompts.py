"""Text models with recurrent layers or windows: right answers in company, and flat turns."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from beside_document import answered_first, words
from beside_mends import told_by
from text_prompts_harness import BUDGET

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of

HERE = Path(__file__).parent
MODELS = HERE.parent / ".models"
FAMILIES = ["gemma3_text", "gpt_oss", "granitemoehybrid", "jamba", "kimi_linear", "qwen3_next"]
WINDOWS = {"gemma3_text", "gpt_oss"}
SLOW = set(FAMILIES) - {"kimi_linear"}
# In company most of their answers are others without the mends. Those of qwen3_next differ on some
# CPUs; the others need longer prompts for that, or never do.
DIFFERING = {"jamba", "kimi_linear"}
Build = Callable[[str], str]


@pytest.fixture(scope="session")
def build(smollm2: str) -> Build:
    """Return what builds a tiny model of a family where it is missing, and returns its folder."""

    def built(family: str) -> str:
        folder = MODELS / f"tiny-{family}"
        if not (folder / "config.json").exists():
            python = str(interpreter_of(ensure_runtime().server))
            command = [python, str(HERE / "tiny_text.py"), family, str(folder)]
            subprocess.run([*command, "--tokenizer", smollm2], check=True)
        return str(folder)

    return built


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[pytest.mark.full] if family in SLOW else [])
        for family in FAMILIES
    ],
)
def test_each_turn_finds_the_one_before_and_company_changes_nothing(
    tmp_path: Path, build: Build, family: str
):
    """Without the mends nothing but the first turn is found, and company changes answers.

    Nor does a budget for thoughts count what the prompt has, an earlier thought's end among it.
    """
    model, harness = build(family), HERE / "text_prompts_harness.py"
    mended, plain = (told_by(harness, tmp_path, model, mode)[-1] for mode in ("mended", "plain"))
    kinds = ("company", "repeated", "other end", "others", "beside", "penalty")
    assert {kind: mended[kind] for kind in kinds} == dict.fromkeys(kinds, 0)
    assert plain["company"] or family not in DIFFERING
    assert mended["thoughts"] == [BUDGET, BUDGET]
    assert plain["thoughts"] == [None, None]
    turns = mended["turns"]
    assert [found for _, found in turns[1:]] == [talked for talked, _ in turns[:-1]]
    assert plain["turns"][-1][1] < turns[-2][0]
    system, first, *others = mended["shared"]
    assert first == 0
    assert others == [system, system]
    assert sum(plain["shared"][1:]) == 0
    ended, short = mended["ended"]
    assert ended == short or family in WINDOWS


def test_a_batch_is_answered_as_its_questions_are_alone(build: Build, fast_cpu: dict[str, str]):
    """On the real server, with the settings that users have."""
    questions = ["Name a city. " * count for count in (1, 7, 30, 60)]
    model = ChatVllmMlx(
        model=build("kimi_linear"), temperature=0, max_tokens=8, server_env=fast_cpu
    )
    alone = [model.invoke(question).text for question in questions]
    model.unload(force=True)
    assert [answer.text for answer in model.batch(questions)] == alone


def test_a_short_question_does_not_wait_for_a_long_document(build: Build, fast_cpu: dict[str, str]):
    """Although prompts are read one after the other: it is read between two parts of another."""
    model = ChatVllmMlx(
        model=build("kimi_linear"), temperature=0, max_tokens=4, server_env=fast_cpu
    )
    assert answered_first(model, words(5000), "three words", "two words") == 2
