"""What a model says to the questions of one request, and the answers that are made of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.decisions import (
    BoxAnswer,
    Choice,
    ChoiceAnswer,
    ClassifierResponse,
    Noul,
    NoulAnswer,
    Score,
    ScoreAnswer,
)
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata, add_usage

from langchain_car_vllm.decisions.label_bisection import Comparison
from langchain_car_vllm.decisions.prompts import MOST_LABELS, Label, edges_of, shares_of
from langchain_car_vllm.errors import InvalidRequestError, ServerFailedError
from langchain_car_vllm.support.user_warnings import UnlabelledAnswerWarning, warn_user

_LITTLE = 0.1
_Answer = TypeVar("_Answer")


class CollectedAnswers:
    """The answers to one request, as they come."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._answers: dict[str, Any] = {}
        self._shares: dict[str, list[list[float]]] = {}
        self._usage: UsageMetadata | None = None
        self._id: str | None = None

    def note(self, name: str, labels: Sequence[Label], answer: AIMessage) -> None:
        """Note what one request says of the labels."""
        self._count(answer)
        content = (answer.response_metadata.get("logprobs") or {}).get("content")
        if not content:
            raise InvalidRequestError("this server returns no log probabilities")
        shares = _read(lambda: shares_of(content[0], labels))
        total = sum(shares)
        if not total:
            raise ServerFailedError(
                f"none of the labels of `{name}` is among the {MOST_LABELS} likeliest first tokens",
                hint="use a larger model, or one that answers without thinking",
            )
        if total < _LITTLE:
            warn_user(
                f"only {total:.0%} of the model's probable answers to `{name}` are labels: use a "
                "larger model, or clearer instructions",
                UnlabelledAnswerWarning,
            )
        self._note_shares(name, shares)

    def restart(self, name: str) -> None:
        """Forget what was noted of a question's labels."""
        self._shares.pop(name, None)

    def note_comparison(self, name: str, labels: Sequence[Label], comparison: Comparison) -> None:
        """Note what a comparison says of the labels."""
        if comparison.natural not in [label.key for label in labels]:
            warn_user(
                f"the model would answer something other than a label to `{name}`: use a larger "
                "model, or clearer instructions",
                UnlabelledAnswerWarning,
            )
        self._note_shares(name, comparison.shares)

    def read_token(self, answer: AIMessage) -> str:
        """Return what an answer of one token says, also where a parser takes it for a thought."""
        self._count(answer)
        return answer.text or str(answer.additional_kwargs.get("reasoning_content") or "")

    def _note_shares(self, name: str, shares: Sequence[float]) -> None:
        total = sum(shares)
        self._shares.setdefault(name, []).append([share / total for share in shares])

    def settle(self, name: str, question: Noul | Choice | Score) -> None:
        """Make the answer of what was noted."""
        ways = self._shares[name]
        found = [sum(shares) / len(ways) for shares in zip(*ways, strict=True)]
        if isinstance(question, Noul):
            self._answers[name] = NoulAnswer(type="noul", noul=min(found[0], 1.0))
            return
        best = max(range(len(found)), key=found.__getitem__)
        confidence = min(found[best], 1.0)
        if isinstance(question, Choice):
            names = list(question.criteria)
            self._answers[name] = ChoiceAnswer(
                type="choice",
                choice=names[best],
                probabilities=dict(zip(names, found, strict=True)),
                confidence=confidence,
            )
            return
        self._answers[name] = ScoreAnswer(
            type="score",
            score=sum(level * share for level, share in enumerate(found)),
            legend=dict(enumerate(question.criteria)),
            probabilities=dict(enumerate(found)),
            confidence=confidence,
        )

    def note_box(self, name: str, found: Mapping[str, Any]) -> None:
        """Make the answer of a box's edges."""
        self._count(found["raw"])
        if found["parsing_error"] is not None:
            raise found["parsing_error"]
        edges = _read(lambda: edges_of(found["parsed"]))
        self._answers[name] = BoxAnswer.model_validate({"type": "box", "box": edges})

    def response(self) -> ClassifierResponse:
        """Return all answers."""
        return ClassifierResponse(
            model=self._model, answers=self._answers, usage=self._usage, request_id=self._id
        )

    def _count(self, answer: AIMessage) -> None:
        self._usage = add_usage(self._usage, answer.usage_metadata)
        self._id = answer.response_metadata.get("id")


def _read(make: Callable[[], _Answer]) -> _Answer:
    try:
        return make()
    except (KeyError, TypeError, ValueError) as error:
        raise ServerFailedError("the server's log probabilities cannot be read") from error
