"""`VllmMlxDecisions`: typed questions, answered with the probabilities of a chat model."""

import re
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, Unpack, cast

from langchain_core.decisions import (
    BaseDecisionModel,
    Box,
    Choice,
    ClassifierResponse,
    Noul,
    Question,
    Score,
    State,
)
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from pydantic import model_validator

from langchain_car_vllm.chat_models import ChatVllmMlx
from langchain_car_vllm.decisions.collected_answers import CollectedAnswers
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
    labels_of,
    lettered_labels,
    messages_for,
    messages_for_box,
)
from langchain_car_vllm.decisions.request_type import (
    DecisionRequest,
    check_questions,
    check_request,
)
from langchain_car_vllm.errors import CarVllmError, ConfigurationError, InvalidRequestError
from langchain_car_vllm.masked_serializable import MaskedSerializable
from langchain_car_vllm.setting_checks import check_positive
from langchain_car_vllm.settings import ServerFields
from langchain_car_vllm.wire.reasoning import PROVIDER
from langchain_car_vllm.wire.request.parameter_values import Number

if TYPE_CHECKING:
    from langchain_car_vllm.arguments import DecisionArguments, ModelName


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

    if TYPE_CHECKING:

        def __init__(
            self, model: ModelName = ..., /, **given: Unpack[DecisionArguments]
        ) -> None: ...

    timeout: Number | None = None
    """Seconds an answer may take once the server is ready."""
    engine: Literal["auto", "simple", "batched"] = "auto"
    """As in the `ChatVllmMlx` whose server is to be shared."""
    both_orders: bool = True
    """Whether the labels of a `Choice` are put to the model in both orders and the probabilities
    averaged: models favour positions, often the first."""

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
            ConfigurationError: It has no state, or no questions by name; or a parameter was passed,
                of which there are none.
        """
        _check_no_parameters(kwargs)
        check_request(input)
        return super().invoke(input, config)

    async def ainvoke(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> ClassifierResponse:
        """Return the same without blocking the event loop."""
        _check_no_parameters(kwargs)
        check_request(input)
        return await super().ainvoke(input, config)

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
        decision = CollectedAnswers(self.model)
        chat = self._chat()
        for name, question in check_questions(questions).items():
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
        decision: CollectedAnswers,
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


def _check_no_parameters(given: Iterable[str]) -> None:
    """Refuse what LangChain's own class would drop in silence."""
    for name in given:
        raise ConfigurationError(
            f"a decision takes no parameter `{name}`",
            hint="settings such as `keep_alive` belong to the model: `VllmMlxDecisions(model, "
            "keep_alive=0)`",
        )


def _check_lacks_logprobs(error: InvalidRequestError) -> None:
    """Raise what a server refuses for another reason than the log probabilities."""
    if not re.search(r"log.?prob", error.message, re.IGNORECASE):
        raise error
