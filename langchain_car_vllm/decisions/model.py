"""`VllmMlxDecisions`: typed questions, answered with the probabilities of a chat model."""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar, cast

from langchain_core.decisions import (
    BaseDecisionModel,
    Box,
    BoxAnswer,
    Choice,
    ChoiceAnswer,
    ClassifierResponse,
    Noul,
    NoulAnswer,
    Question,
    Score,
    ScoreAnswer,
    State,
)
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.runnables import RunnableConfig
from pydantic import TypeAdapter, ValidationError, model_validator

from langchain_car_vllm.chat_models import ChatVllmMlx
from langchain_car_vllm.decisions.label_bisection import (
    Alphabet,
    Bias,
    Comparison,
    compare_labels,
    find_alphabet,
)
from langchain_car_vllm.decisions.prompts import (
    MOST_LABELS,
    Label,
    box_schema,
    edges_of,
    labels_of,
    lettered_labels,
    messages_for,
    messages_for_box,
    shares_of,
)
from langchain_car_vllm.decisions.request_type import DecisionRequest, check_request
from langchain_car_vllm.errors import (
    CarVllmError,
    ConfigurationError,
    InvalidRequestError,
    ServerFailedError,
)
from langchain_car_vllm.masked_serializable import MaskedSerializable
from langchain_car_vllm.setting_checks import check_positive
from langchain_car_vllm.settings import ServerFields
from langchain_car_vllm.support.user_warnings import warn_user
from langchain_car_vllm.wire.reasoning import PROVIDER

_QUESTION: TypeAdapter[Any] = TypeAdapter(Question)
_LITTLE = 0.1
_Answer = TypeVar("_Answer")


class UnlabelledAnswerWarning(UserWarning):
    """The model would rather have written something else than one of the labels."""


class VllmMlxDecisions(MaskedSerializable, ServerFields, BaseDecisionModel, defer_build=False):
    """Answers typed questions with the probabilities of a model that `vllm-mlx` serves.

    It shares the server of a `ChatVllmMlx` with the same model and settings. Each label has a key
    of one token, and its probability is that of the key as the first token of the answer, so labels
    of any length compare fairly. How well calibrated the probabilities are is up to the model.
    `confidence` is the probability of the likeliest label.

    A server that tells no log probabilities, such as a `vllm-mlx` that was started by hand, is
    asked for one-token answers under a changing `logit_bias` instead: at most eight for each label
    and four more, for each order. Shares are then known to a sixteenth of a logit, those below
    0.0003 as 0.

    Example:
        ```python
        from langchain_car_vllm import VllmMlxDecisions
        from langchain_core.decisions import Choice

        decide = VllmMlxDecisions(model="vllm-mlx/qwen3.6-35b-a3b:4bit")
        team = Choice(instructions="Who helps?", criteria={"billing": None, "technical": None})
        answers = decide.invoke(
            {"state": "My card was charged twice.", "questions": {"team": team}}
        )
        answers.choices["team"].probabilities
        ```

    Raises:
        ConfigurationError: A setting or a question cannot work.
    """

    timeout: float | None = None
    """Seconds an answer may take once the server is ready."""
    engine: Literal["auto", "simple", "batched"] = "auto"
    """As in the `ChatVllmMlx` whose server is to be shared."""
    both_orders: bool = True
    """Whether the labels of a `Choice` are put to the model in both orders and the probabilities
    averaged: models favour places, often the first."""

    _wire: ClassVar[str] = "langchain_car_vllm.wire.chat"

    @model_validator(mode="after")
    def _check_deciding(self) -> Self:
        if self.timeout is not None:
            check_positive("timeout", self.timeout)
        return self

    @property
    def _provider(self) -> str:
        return PROVIDER

    @property
    def InputType(self) -> Any:  # noqa: N802 - LangChain's name
        """The type of what is asked, from which schemas are made."""
        return DecisionRequest

    def invoke(
        self,
        input: Any,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> ClassifierResponse:
        """Return the answers to the questions of a request.

        Raises:
            ConfigurationError: It has no state, or no questions by name.
        """
        check_request(input)
        return super().invoke(input, config, **kwargs)

    async def ainvoke(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> ClassifierResponse:
        """Return the same without blocking the event loop."""
        check_request(input)
        return await super().ainvoke(input, config, **kwargs)

    def _classify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        asking = self._asking(state, questions)
        answer: Any = None
        while isinstance(request := _next(asking, answer), _Request):
            try:
                answer = request.model.invoke(request.messages, **request.settings)
            except InvalidRequestError as error:
                answer = error
        return request

    async def _aclassify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        asking = self._asking(state, questions)
        answer: Any = None
        while isinstance(request := _next(asking, answer), _Request):
            try:
                answer = await request.model.ainvoke(request.messages, **request.settings)
            except InvalidRequestError as error:
                answer = error
        return request

    def _asking(
        self, state: State, questions: dict[str, Question]
    ) -> Generator["_Request", Any, ClassifierResponse]:
        """Yield each request, and take its answer; there is no I/O here."""
        decision = _Decision(self.model)
        chat = self._chat()
        for name, question in _check_questions(questions).items():
            if isinstance(question, Box):
                seeing = chat.with_structured_output(box_schema(), include_raw=True)
                found = yield _Request(seeing, messages_for_box(state, question), {})
                decision.note_box(name, found)
                continue
            try:
                for labels, messages in self._ways(state, question):
                    answer = yield _Request(chat, messages, _ASKING)
                    decision.note(name, labels, answer)
            except InvalidRequestError as error:
                _check_lacks_logprobs(error)
                decision.restart(name)
                for labels, messages in self._ways(state, question, lettered=True):
                    comparison = yield from self._compare(chat, messages, labels, decision)
                    decision.note_comparison(name, labels, comparison)
            decision.settle(name, question)
        return decision.response()

    def _compare(
        self,
        chat: ChatVllmMlx,
        messages: list[BaseMessage],
        labels: Sequence[Label],
        decision: "_Decision",
    ) -> Generator["_Request", Any, Comparison]:
        """Ask for one-token answers until it is known how likely labels are."""
        steps = self._steps(labels)
        bias = next(steps)
        while True:
            answer = yield _Request(chat, messages, {**_BIASED, "logit_bias": bias})
            try:
                bias = steps.send(decision.read_token(answer))
            except StopIteration as end:
                return cast("Comparison", end.value)

    def _steps(self, labels: Sequence[Label]) -> Generator[Bias, str, Comparison]:
        """Return the way to a comparison, which finds out once where the characters stand."""
        place = (self.base_url, self.model)
        alphabet = _alphabets.get(place)
        if alphabet is None:
            alphabet = yield from find_alphabet()
        try:
            found = yield from compare_labels([label.key for label in labels], alphabet)
        except CarVllmError:
            _alphabets.pop(place, None)  # another model may have the name by now
            raise
        _alphabets[place] = alphabet
        return found

    def _ways(
        self, state: State, question: Noul | Choice | Score, *, lettered: bool = False
    ) -> list[tuple[list[Label], list[BaseMessage]]]:
        """Return the requests of a question, each with its labels in the question's order."""
        labels = labels_of(question)
        if lettered:
            labels = lettered_labels(labels)
        ways = [(labels, messages_for(state, question, labels))]
        if isinstance(question, Choice) and self.both_orders and len(labels) > 1:
            keys = [label.key for label in labels]
            meanings = [label.meaning for label in labels]
            turned = [Label(*pair) for pair in zip(keys, reversed(meanings), strict=True)]
            ways.append((turned[::-1], messages_for(state, question, turned)))
        return ways

    def _chat(self) -> ChatVllmMlx:
        names = (*ServerFields.model_fields, "engine", "timeout")
        return ChatVllmMlx(**{name: getattr(self, name) for name in names})


class _Request(NamedTuple):
    """What is asked next, and of whom."""

    model: Any
    messages: list[BaseMessage]
    settings: dict[str, Any]


def _next(
    asking: Generator[_Request, Any, ClassifierResponse], answer: Any
) -> _Request | ClassifierResponse:
    """Hand over an answer, or the error that came in its place; return what comes next."""
    try:
        if isinstance(answer, InvalidRequestError):
            return asking.throw(answer)
        return asking.send(answer)
    except StopIteration as end:
        return cast("ClassifierResponse", end.value)


_ASKING: dict[str, Any] = {
    "logprobs": True,
    "top_logprobs": MOST_LABELS,
    "max_tokens": 1,
    "temperature": 0,
    "reasoning": False,
}
_BIASED: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "reasoning": False}
_alphabets: dict[tuple[str | None, str], Alphabet] = {}
"""Where the characters stand in the vocabularies of models that were asked."""


def _check_lacks_logprobs(error: InvalidRequestError) -> None:
    """Raise what a server refuses for another reason than the log probabilities."""
    if not re.search(r"log.?prob", error.message, re.IGNORECASE):
        raise error


def _check_questions(questions: Mapping[str, Any]) -> dict[str, Any]:
    if not questions:
        raise ConfigurationError("there are no questions", hint="give at least one")
    for name in questions:
        if not isinstance(name, str):
            raise ConfigurationError(f"the name of a question must be a text, not `{name!r}`")
    try:
        return {name: _QUESTION.validate_python(q) for name, q in questions.items()}
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigurationError(
            f"a question cannot be asked: {first['msg']}",
            hint="use `Noul`, `Choice`, `Score` or `Box` of `langchain_core.decisions`",
        ) from None


class _Decision:
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
            raise InvalidRequestError("this server tells no log probabilities")
        shares = _read(lambda: shares_of(content[0], labels))
        total = sum(shares)
        if not total:
            raise ServerFailedError(
                f"none of the labels of `{name}` is among the {MOST_LABELS} likeliest first tokens",
                hint="use a larger model, or one that answers without thinking",
            )
        if total < _LITTLE:
            warn_user(
                f"only {total:.0%} of what the model would answer to `{name}` are labels: use a "
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
                f"the model would answer something else than a label to `{name}`: use a larger "
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
