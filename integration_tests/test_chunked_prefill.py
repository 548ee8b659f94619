"""Multimodal models on default settings: constrained answers while prompts are read in pieces."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from beside_document import answered_first, words
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from pydantic import BaseModel, Field

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of

MODELS = Path(__file__).parents[1] / ".models"
BUILDER = Path(__file__).with_name("tiny_vlm.py")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:.*used up its tokens:UserWarning"),
]


class Digit(BaseModel):
    """A digit."""

    digit: int = Field(ge=0, le=9)


@pytest.fixture(scope="module", params=["qwen3_5", pytest.param("gemma4", marks=pytest.mark.full)])
def model(
    request: pytest.FixtureRequest, smollm2: str, fast_cpu: dict[str, str]
) -> Iterator[ChatVllmMlx]:
    """A tiny multimodal model, as a user has it who sets nothing else."""
    folder = MODELS / f"tiny-{request.param}"
    if not (folder / "config.json").exists():
        python = interpreter_of(ensure_runtime().server)
        command = [str(python), str(BUILDER), request.param, str(folder), "--tokenizer", smollm2]
        subprocess.run(command, check=True)
    found = ChatVllmMlx(model=str(folder), temperature=0, max_tokens=8, server_env=fast_cpu)
    yield found
    found.unload(force=True)


def test_constrained_answers_of_long_repeated_and_grown_prompts(model: ChatVllmMlx):
    """Prompts longer than a piece, the same once more, and a conversation that grows."""
    structured = model.with_structured_output(Digit)
    long = words(400)
    for prompt in ("two words", "two words", long, long):
        assert isinstance(structured.invoke(prompt, max_tokens=40), Digit)
    history = [HumanMessage(long)]
    for _ in range(3):
        history += [AIMessage("yes"), HumanMessage(words(60))]
        assert isinstance(structured.invoke(history, max_tokens=40), Digit)


def test_penalties_are_the_same_in_pieces_and_in_one(model: ChatVllmMlx):
    """A repeated prompt takes the other way through the server, with the same answer."""
    prompt = words(150)
    first = model.invoke(prompt, extra_body={"repetition_penalty": 1.8}, max_tokens=12)
    again = model.invoke(prompt, extra_body={"repetition_penalty": 1.8}, max_tokens=12)
    assert str(first.content) + str(first.additional_kwargs) == str(again.content) + str(
        again.additional_kwargs
    )


def test_a_short_question_does_not_wait_for_a_long_document(model: ChatVllmMlx):
    """Nor does the next turn of a long conversation: each is read between two parts of another."""
    history: list[BaseMessage] = [SystemMessage(words(300)), HumanMessage("one")]
    history += [model.invoke(history), HumanMessage("two")]
    assert answered_first(model, words(4000), history, "three words") == 2


def test_forced_calls_on_a_long_prompt(model: ChatVllmMlx):
    """A call is made although the prompt is read in pieces."""
    bound = model.bind_tools([Digit], tool_choice="Digit")
    (call,) = bound.invoke(words(400), max_tokens=60).tool_calls
    assert call["name"] == "Digit"
