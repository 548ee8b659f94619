"""Images on the real server: tiny models of three architectures, on both engines."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from company_load import picture
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import Runnable
from pydantic import BaseModel, Field

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of
from langchain_car_vllm.wire.errors import StructuredOutputError

MODELS = Path(__file__).parents[1] / ".models"
BUILDER = Path(__file__).with_name("tiny_vlm.py")


RED, BLUE = picture(255, 0), picture(0, 255)


class Digit(BaseModel):
    """A digit."""

    digit: int = Field(ge=0, le=9)


def look() -> str:
    """Look."""
    return ""


def asked(*images: dict[str, str]) -> list[BaseMessage]:
    return [HumanMessage([{"type": "text", "text": "what"}, *images])]


def seen(picture: dict[str, str]) -> list[BaseMessage]:
    """Return a history in which a tool has brought a picture."""
    return [
        HumanMessage("look"),
        AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}]),
        ToolMessage([{"type": "text", "text": "here"}, picture], tool_call_id="1"),
    ]


def streamed(model: Runnable[Any, Any], messages: list[BaseMessage], **given: Any) -> Any:
    whole = None
    for part in model.stream(messages, **given):
        whole = part if whole is None or not isinstance(part, BaseMessage) else whole + part
    return whole


Ask = Callable[..., Any]


@pytest.fixture(params=["invoke", "stream"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Streamed or not, the last of an object's parts counts."""
    return streamed if request.param == "stream" else lambda m, *a, **k: m.invoke(*a, **k)


def said(message: BaseMessage) -> str:
    return message.text + str(message.additional_kwargs.get("reasoning_content"))


@pytest.fixture(
    scope="module",
    params=[
        ("qwen3_5", "simple"),
        pytest.param(("qwen3_5", "batched"), marks=pytest.mark.full),
        *(
            pytest.param((architecture, engine), marks=pytest.mark.full)
            for architecture in ("qwen3_vl", "gemma4")
            for engine in ("simple", "batched")
        ),
    ],
    ids="-".join,
)
def model(
    request: pytest.FixtureRequest, smollm2: str, fast_cpu: dict[str, str]
) -> Iterator[ChatVllmMlx]:
    """A tiny model that sees."""
    architecture, engine = request.param
    folder = MODELS / f"tiny-{architecture}"
    if not (folder / "config.json").exists():
        python = interpreter_of(ensure_runtime().server)
        command = [str(python), str(BUILDER), architecture, str(folder), "--tokenizer", smollm2]
        subprocess.run(command, check=True)
    found = ChatVllmMlx(
        model=str(folder), engine=engine, temperature=0, max_tokens=8, server_env=fast_cpu
    )
    yield found
    found.unload(force=True)


pytestmark = pytest.mark.filterwarnings("ignore:.*used up its tokens:UserWarning")


def test_the_image_decides_and_a_repeated_one_answers_the_same(model: ChatVllmMlx):
    """Also after a whole answer of the same request, which breaks a plain stream."""
    red = said(model.invoke(asked(RED)))
    assert said(model.invoke(asked(BLUE))) != red
    assert said(model.invoke(asked(RED))) == red
    whole = None
    for chunk in model.stream(asked(RED)):
        whole = chunk if whole is None else whole + chunk
    assert said(whole) == red


def test_one_and_two_images_and_their_order_count(model: ChatVllmMlx, ask: Ask):
    """The batched engine's cache alone would mix the order up."""
    both = said(ask(model, asked(RED, BLUE)))
    assert said(ask(model, asked(BLUE, RED))) != both
    assert said(ask(model, asked(RED))) != both
    assert said(ask(model, asked(RED, BLUE))) == both


def test_images_of_earlier_turns_and_of_tools_count(model: ChatVllmMlx, ask: Ask):
    """The model sees them on both engines."""
    turns = [[*asked(one), AIMessage("yes"), HumanMessage("and?")] for one in (RED, BLUE)]
    assert said(ask(model, turns[0])) != said(ask(model, turns[1]))
    bound = model.bind_tools([look])
    assert said(ask(bound, seen(RED))) != said(ask(bound, seen(BLUE)))


def test_an_image_goes_with_a_schema(model: ChatVllmMlx, ask: Ask):
    """A constrained answer about one image, or two, or one that a tool brought, fits."""
    structured = model.with_structured_output(Digit)
    for messages in (asked(RED), asked(RED, BLUE), seen(RED)):
        assert isinstance(ask(structured, messages, max_tokens=200), Digit)


def test_an_image_goes_with_a_forced_call(model: ChatVllmMlx, ask: Ask):
    """Also beside tools that have already brought one."""
    forced = model.bind_tools([look], tool_choice="any")
    for messages in (asked(RED), seen(RED)):
        assert ask(forced, messages, max_tokens=200).tool_calls[0]["name"] == "look"


def test_a_tool_step_with_a_schema_ends_in_the_object(model: ChatVllmMlx, ask: Ask):
    """As `create_agent` asks after a tool has brought an image."""
    step = model.bind(tools=[look], response_format=Digit)
    assert Digit.model_validate_json(ask(step, seen(RED), max_tokens=200).text)


def test_an_answer_that_was_cut_off_says_so(model: ChatVllmMlx, ask: Ask):
    """Also where the engine calls it whole, and an object that was cut off names `max_tokens`."""
    for messages in (asked(RED), [HumanMessage("what")]):
        assert ask(model, messages).response_metadata["finish_reason"] == "length"
    structured = model.with_structured_output(Digit)
    with pytest.raises(StructuredOutputError, match="max_tokens"):
        ask(structured, asked(RED), max_tokens=4)


def test_a_text_goes_to_a_model_that_sees(model: ChatVllmMlx, ask: Ask):
    """Without an image it is asked as any other."""
    assert said(ask(model, [HumanMessage("what")]))
