"""What runnables tell of themselves, as servers of them and pictures of graphs ask for it."""

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda
from pydantic import BaseModel

import langchain_car_vllm
from langchain_car_vllm import ChatVllmMlx

MODEL = "vllm-mlx/qwen3.6-35b-a3b:4bit"


class Moon(BaseModel):
    """A moon."""

    name: str


MADE: dict[str, Runnable[Any, Any]] = {
    name: found(MODEL)
    for name in langchain_car_vllm.__all__
    if isinstance(found := getattr(langchain_car_vllm, name), type) and issubclass(found, Runnable)
}
CHAT = ChatVllmMlx(MODEL)
MADE |= {f"{name} in a chain": made | RunnableLambda(str) for name, made in MADE.items()} | {
    "tools": CHAT.bind_tools([Moon]),
    "structured output": CHAT.with_structured_output(Moon),
    "raw structured output": CHAT.with_structured_output(Moon, include_raw=True),
    "fields": CHAT.configurable_fields(temperature=ConfigurableField("temperature")),
    "retry": CHAT.with_retry(),
    "fallbacks": CHAT.with_fallbacks([ChatVllmMlx(MODEL, temperature=0.5)]),
}
TELLS: dict[str, Callable[[Runnable[Any, Any]], Any]] = {
    "input": lambda made: made.get_input_jsonschema(),
    "output": lambda made: made.get_output_jsonschema(),
    "settings": lambda made: made.config_schema().model_json_schema(),
    "graph": lambda made: made.get_graph().to_json(with_schemas=True),
    "picture": lambda made: made.get_graph().draw_mermaid(),
}


@pytest.mark.parametrize("told", TELLS)
@pytest.mark.parametrize("name", MADE)
def test_a_runnable_tells_its_schemas(name: str, told: str):
    """LangServe and the Studio ask every runnable, however it is put together."""
    assert TELLS[told](MADE[name])


STATES = ["text", {"a": [1, None, {"b": True}]}, ["x", 2.5], {"content": "hi", "type": "human"}]


@pytest.mark.parametrize("state", STATES, ids=str)
def test_a_request_for_decisions_fits_its_schema(state: Any):
    """LangChain's own type of a state names itself by a word that pydantic cannot find."""
    pytest.importorskip("langchain_core.decisions", reason="langchain-core before 1.8")
    decide = MADE["VllmMlxDecisions"]
    asked = {"state": state, "questions": {"q": {"type": "noul", "instructions": "Is it?"}}}
    jsonschema.validate(asked, decide.get_input_jsonschema())
    read: Any = decide.get_input_schema()
    assert read.model_validate(asked).root["state"] == state
    message = HumanMessage("hi")
    assert read.model_validate({**asked, "state": [message]}).root["state"] == [message]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**asked, "state": 5}, decide.get_input_jsonschema())


def test_structured_output_takes_what_its_model_takes():
    """With the raw message beside it, too: nothing told a playground what to ask for."""
    structured = MADE["raw structured output"]
    assert structured.InputType == CHAT.InputType
    assert structured.get_input_jsonschema() == CHAT.get_input_jsonschema()
