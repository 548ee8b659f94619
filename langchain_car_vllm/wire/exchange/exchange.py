"""One call of the model: one request, or a second where the first did not bring what was asked.

There is no I/O here. An exchange yields its attempts; whoever drives it sends each attempt's body,
feeds it the bytes that come back and asks for the next one. The drivers, one synchronous and one
asynchronous, therefore decide nothing.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.support.user_warnings import warn_user
from langchain_car_vllm.wire.answer.reader import Answer, Delta, Filter, Usage
from langchain_car_vllm.wire.answer.result import AnswerEnd, CallCollector
from langchain_car_vllm.wire.errors import AnswerError, InvalidRequestError
from langchain_car_vllm.wire.request.turns import order_turns

Body = dict[str, Any]
Names = Mapping[str, str] | None
"""The user's names of tools that went out under another one, by that one."""
# mlx-lm 0.31.3 mixes up the logits processors of a batch in which a request has none: grammars are
# lost, land on other answers, or stop the engine. A bias of nothing is a processor. Servers of ours
# are mended when they are launched.
NO_BIAS = {"0": 0.0}
_BAD_REQUEST, _INVALID_OUTPUT = 400, 422
_TEMPLATE = "chat template"
# What other servers than vllm-mlx may not know, and we send of our own accord.
_OPTIONAL = ("enable_thinking", "chat_template_kwargs", "timeout", "stream_options")
_CHARACTERS_PER_TOKEN = 4
_FEW_TOKENS = 3  # an end of turn and its white space


def _reason(last: "Attempt") -> str:
    """Return why an answer ended: a call that was cut off is not a whole one."""
    if last.called:
        return "length" if last.answer.finish_reason == "length" else "tool_calls"
    return "stop" if last.answer.done else last.answer.finish_reason or "stop"


class EmptyAnswerWarning(UserWarning):
    """The model used up all its tokens before it began to answer, or the answer got lost."""


class CutOffCallWarning(UserWarning):
    """A tool call was cut off, and is among the `invalid_tool_calls`."""


class InvalidCallWarning(UserWarning):
    """The answer is nothing but tool calls that nobody can run."""


class Attempt:
    """One request and what comes back of it.

    Args:
        body: The body.
        filters: What the answer passes through.
        names: The user's names of tools that went out under another one.
        promotes: Whether reasoning becomes the answer where there is no other.
        repeats_loss: Whether the exchange asks again where the answer got lost.

    Attributes:
        answer: What came back so far.
        called: Whether a tool call went to the user.
        error: How the server failed or refused, None where it did not.
    """

    def __init__(
        self,
        body: Body,
        filters: Sequence[Filter] = (),
        names: Names = None,
        *,
        promotes: bool = True,
        repeats_loss: bool = False,
    ) -> None:
        self.body = body
        self._filters, self._names = filters, names
        self._promotes, self._repeats_loss = promotes, repeats_loss
        self.answer = self._new_answer()
        self.called = False
        self.error: AnswerError | None = None
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls = CallCollector()

    @property
    def unseen_error(self) -> AnswerError | None:
        """How it failed before anything was seen of its answer, None where it did not."""
        return None if self.answer.events else self.error

    @property
    def is_lost(self) -> bool:
        """Whether the model wrote something of which nothing came."""
        written = self.answer.usage.completion if self.answer.usage else 0
        return not self.answer.events and written >= _FEW_TOKENS

    def _new_answer(self) -> Answer:
        return Answer(
            streamed=bool(self.body.get("stream")),
            filters=self._filters,
            most=self.body.get("max_tokens"),
            names=self._names,
            wants_logprobs=bool(self.body.get("logprobs")),
        )

    def restart(self) -> None:
        """Forget what came back, of which nothing has gone to the user."""
        self.answer = self._new_answer()

    @property
    def text(self) -> str:
        """The answer as the user gets it."""
        return "".join(self._texts)

    @property
    def thought(self) -> str:
        """The reasoning as the user gets it."""
        return "".join(self._thoughts)

    @property
    def done(self) -> bool:
        """Nothing more is wanted: the connection may be closed."""
        return self.answer.done

    def feed(self, data: bytes) -> list[Delta]:
        """Return what `data` completes for the user."""
        return self._note(self.answer.feed(data))

    def end(self) -> list[Delta]:
        """Return what is left for the user once the answer has ended."""
        return self.answer.with_logprobs(self._end())

    def _end(self) -> list[Delta]:
        deltas = self._note(self.answer.end())
        if self.answer.finish_reason == "length":
            deltas.extend(self._spoil_calls())
        elif self.called and not self.text.strip():
            self._warn_of_invalid_calls()
        if not self._promotes or self.answer.done:
            return deltas
        if not self.called and not self.text.strip() and self.thought:
            deltas.extend(self._note(self._promote_thought()))
        elif self.is_lost and not self._repeats_loss:
            self._warn_of_loss()
        elif not self.is_lost and not self.called and not self.text.strip():
            self._warn_of_silence()
        return deltas

    def _spoil_calls(self) -> list[Delta]:
        """Keep calls that were cut off from being taken for whole ones.

        LangChain completes what a stream leaves unfinished, and an agent would run it.
        """
        spoils = self._calls.spoils()
        if not spoils:
            return []
        warn_user(
            "the model used up its tokens in the middle of a tool call: raise `max_tokens`",
            CutOffCallWarning,
        )
        return [Delta(calls=spoils)]

    def _warn_of_invalid_calls(self) -> None:
        """Warn of an answer that an agent would take for an empty one, and end with."""
        valid, invalid = self._calls.parse()
        if invalid and not valid:
            warn_user(
                f"the model called `{invalid[0]['name']}` with arguments that are not a JSON "
                "object, and said nothing else: see the `invalid_tool_calls` of the answer",
                InvalidCallWarning,
            )

    def usage(self) -> Usage | None:
        """Return the tokens, guessed where the answer was cut short before the server told."""
        if self.answer.usage is None and self.answer.done:
            said = sum(len(str(m.get("content") or "")) for m in self.body["messages"])
            return Usage(
                prompt=said // _CHARACTERS_PER_TOKEN,
                completion=self.answer.events,
                estimated=True,
            )
        return self.answer.usage

    def _note(self, deltas: list[Delta]) -> list[Delta]:
        for delta in deltas:
            if delta.text:
                self._texts.append(delta.text)
            if delta.thought:
                self._thoughts.append(delta.thought)
            if delta.calls:
                self.called = True
                self._calls.feed(delta.calls)
        return deltas

    def _promote_thought(self) -> list[Delta]:
        """Give the reasoning as the answer where a parser took the whole answer for reasoning."""
        if self.answer.finish_reason == "stop":
            return self.answer.add(Delta(text=self.thought))
        if self.body.get("max_tokens") == 1:
            return []  # nobody expects an answer in one token
        warn_user(
            "the model used up its tokens while it was thinking and gave no answer: "
            "raise `max_tokens`, set `thinking_budget`, or turn `reasoning` off",
            EmptyAnswerWarning,
        )
        return []

    def _warn_of_loss(self) -> None:
        """Warn of tokens of which nothing came: the server takes a broken tool call away."""
        usage = self.answer.usage or Usage()
        warn_user(
            f"the answer is empty although the model wrote {usage.completion} tokens: the server's "
            "parsers kept them, such as a tool call that is not JSON",
            EmptyAnswerWarning,
        )

    def _warn_of_silence(self) -> None:
        """Warn of a model that ended its turn at once, which looks like a fault of the server."""
        is_wanted = self.body.get("max_tokens") == 1 or self.body.get("stop")
        if self.answer.finish_reason == "stop" and not is_wanted:
            warn_user(
                "the answer is empty: the model ended its turn at once. Put what it is to do into "
                "the last message, or use a larger model",
                EmptyAnswerWarning,
            )


class Exchange:
    """A plain call: one attempt, whose answer goes to the user as it is.

    Args:
        body: The JSON body.
        filters: What the answer's deltas pass through.
        names: The user's names of tools that went out under another one.
        attached: Whether somebody else runs the server, which then may be any server.

    Attributes:
        body: The first request's body.
    """

    def __init__(
        self,
        body: Body,
        filters: Sequence[Filter] = (),
        names: Names = None,
        *,
        attached: bool = False,
    ) -> None:
        self.body = body
        self._names = names
        self._attached = attached
        self._filters = filters
        self._sent: list[Attempt] = []

    def attempts(self) -> Iterator[Attempt]:
        """Yield the requests to send, each after the one before was answered in full."""
        repeats = bool(self.body.get("stream") and self.body.get("tools"))
        attempt = yield from self._try(self.body, self._filters, repeats_loss=repeats)
        if repeats and attempt.is_lost:  # a parser took a call away that is not JSON
            whole = {k: v for k, v in attempt.body.items() if k not in ("stream", "stream_options")}
            yield from self._try(whole, self._filters)

    def answer_end(self) -> AnswerEnd:
        """Return what stands at the end of the answer, once it has ended."""
        last = self._sent[-1]
        answer = last.answer
        rest = answer.take_logprobs()
        return AnswerEnd(
            finish_reason=_reason(last),
            model=answer.model or str(self.body["model"]),
            usage=self._usage(),
            id=answer.id,
            drafts=answer.drafts,
            extra={**self._extra(), **({"logprobs": {"content": [*rest]}} if rest else {})},
        )

    def explain(self, error: AnswerError) -> Exception:
        """Return what the user is told of an error, and keep it for what comes next."""
        self._sent[-1].error = error
        return self._told(error)

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        """Go on where there is another attempt for what went wrong."""
        try:
            yield
        except CarVllmError:
            error = self._sent[-1].unseen_error
            is_mended = self._other_body(self._sent[-1].body, error) is not None
            if error is None or not (is_mended or self._forgives(error)):
                raise

    def _try(
        self,
        body: Body,
        filters: Sequence[Filter] = (),
        *,
        promotes: bool = True,
        repeats_loss: bool = False,
    ) -> Generator[Attempt, None, Attempt]:
        """Yield an attempt, and others as long as the server refuses what can be left out.

        Returns:
            The last of them.
        """
        while True:
            attempt = Attempt(
                body, filters, self._names, promotes=promotes, repeats_loss=repeats_loss
            )
            self._sent.append(attempt)
            yield attempt
            other = self._other_body(body, attempt.unseen_error)
            if other is None:
                return attempt
            self._sent.pop()
            body = other

    def _told(self, error: AnswerError) -> Exception:
        """Return what the user is told of an error."""
        return error

    def _forgives(self, error: AnswerError) -> bool:  # noqa: ARG002
        """Tell whether another way is left where the last attempt failed so."""
        return False

    def _other_body(self, body: Body, error: AnswerError | None) -> Body | None:
        """Return the body as a server may take it that refused it so, None where it stays."""
        if not isinstance(error, InvalidRequestError):
            return None
        if error.status == _BAD_REQUEST and _TEMPLATE in error.message:
            messages = order_turns(body["messages"], "alternating")
            return {**body, "messages": messages} if messages != body["messages"] else None
        if not self._attached:
            return None
        if error.status == _INVALID_OUTPUT and "response_format" in body:
            # A gateway hides the batched engine, which loses grammars (see NO_BIAS).
            return {**body, "logit_bias": NO_BIAS} if "logit_bias" not in body else None
        strange = [name for name in _OPTIONAL if name in body and name in error.message]
        return {k: v for k, v in body.items() if k not in strange} if strange else None

    def _extra(self) -> dict[str, Any]:
        return {}

    def _usage(self) -> Usage | None:
        known = [usage for attempt in self._sent if (usage := attempt.usage())]
        if not known:
            return None
        cached = [usage.cached for usage in known if usage.cached is not None]
        thought = [usage.reasoning for usage in known if usage.reasoning is not None]
        return Usage(
            prompt=sum(usage.prompt for usage in known),
            completion=sum(usage.completion for usage in known),
            cached=sum(cached) if cached else None,
            estimated=any(usage.estimated for usage in known),
            reasoning=sum(thought) if thought else None,
        )
