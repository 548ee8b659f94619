"""The type of what a decision model is asked, of which a JSON schema can be made.

LangChain's own names a part of itself by a word that stands for nothing outside its module, so that
pydantic refuses to describe it (langchain-core 1.8).
"""

from collections.abc import Mapping, Sequence

from langchain_core.decisions import Question
from langchain_core.messages import BaseMessage
from pydantic import InstanceOf
from typing_extensions import TypeAliasType, TypedDict

_Value = TypeAliasType(
    "_Value",
    "str | int | float | bool | InstanceOf[BaseMessage] | Sequence[_Value] | Mapping[str, _Value]"
    " | None",
)


class DecisionRequest(TypedDict):
    """A state, and the questions about it."""

    state: str | InstanceOf[BaseMessage] | Sequence[_Value] | Mapping[str, _Value]
    questions: Mapping[str, Question]
