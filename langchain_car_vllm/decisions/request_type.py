"""What a decision model is asked: a type of which a JSON schema can be made, and its checks.

LangChain's own names a part of itself by a word that stands for nothing outside its module, so that
pydantic refuses to describe it (langchain-core 1.8).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.decisions import Question
from langchain_core.messages import BaseMessage
from pydantic import InstanceOf, TypeAdapter, ValidationError
from typing_extensions import TypeAliasType, TypedDict

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.support.printable import format_value

_QUESTION: TypeAdapter[Any] = TypeAdapter(Question)
_Value = TypeAliasType(
    "_Value",
    "str | int | float | bool | InstanceOf[BaseMessage] | Sequence[_Value] | Mapping[str, _Value]"
    " | None",
)


class DecisionRequest(TypedDict):
    """A state, and the questions about it."""

    state: str | InstanceOf[BaseMessage] | Sequence[_Value] | Mapping[str, _Value]
    questions: Mapping[str, Question]


def check_request(given: Any) -> None:
    """Refuse what is not a request; LangChain would end in an error of Python's own.

    Raises:
        ConfigurationError: It has no state, or no questions by name.
    """
    if not isinstance(given, Mapping) or not {"state", "questions"} <= given.keys():
        problem = "a request needs a `state` and `questions`"
    elif not isinstance(given["questions"], Mapping):
        problem = "`questions` must be a dictionary"
    else:
        return
    raise ConfigurationError(problem, hint='write `{"state": ..., "questions": {"name": ...}}`')


def check_questions(questions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the questions as LangChain's objects.

    Raises:
        ConfigurationError: There are none, or one cannot be asked.
    """
    if not questions:
        raise ConfigurationError("there are no questions", hint="give at least one")
    for name in questions:
        if not isinstance(name, str):
            raise ConfigurationError(
                f"the name of a question must be a text, not `{format_value(name)}`"
            )
    try:
        return {name: _QUESTION.validate_python(q) for name, q in questions.items()}
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigurationError(
            f"a question cannot be asked: {first['msg']}",
            hint="use `Noul`, `Choice`, `Score` or `Box` of `langchain_core.decisions`",
        ) from None
