"""One request of an exchange, and what comes back of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_car_vllm.support.user_warnings import (
    CutOffCallWarning,
    EmptyAnswerWarning,
    InvalidCallWarning,
    warn_user,
)
from langchain_car_vllm.wire.answer.call_collector import CallCollector
from langchain_car_vllm.wire.answer.reader import Answer, Delta, Filter
from langchain_car_vllm.wire.answer.token_usage import Usage
from langchain_car_vllm.wire.errors import AnswerError

Body = dict[str, Any]
Names = Mapping[str, str] | None
"""The user's names of tools that went out under another one, by that one."""
_CHARACTERS_PER_TOKEN = 4
_FEW_TOKENS = 3  # an end of turn and its white space


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
    def finish_reason(self) -> str:
        """Why the answer ended: a call that was cut off is not a whole one."""
        if self.called:
            return "length" if self.answer.finish_reason == "length" else "tool_calls"
        return "stop" if self.answer.done else self.answer.finish_reason or "stop"

    @property
    def done(self) -> bool:
        """Nothing more is wanted: the connection may be closed."""
        return self.answer.done

    @property
    def is_ended(self) -> bool:
        """The server has said that nothing more follows."""
        return self.answer.is_ended

    def feed(self, data: bytes) -> list[Delta]:
        """Return what `data` completes for the user."""
        return self._note(self.answer.feed(data))

    def end(self) -> list[Delta]:
        """Return what is left for the user once the answer has ended."""
        return self.answer.with_logprobs(self._end())

    def _end(self) -> list[Delta]:
        deltas = self._note(self.answer.end())
        deltas.extend(self._spoil_calls())
        if self.called and self.answer.finish_reason != "length" and not self.text.strip():
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

        LangChain completes what a stream leaves unfinished, and an agent would run it. Servers
        such as vLLM give calls for the reason also where the tokens ran out.
        """
        is_length = self.answer.finish_reason == "length"
        spoils = tuple(part for part in self._calls.spoils() if part["args"] or is_length)
        if not spoils:
            return []
        warn_user(
            "the model used up its tokens in the middle of a tool call: raise `max_tokens`"
            if is_length
            else "a tool call has no end and was not accepted as complete: raise `max_tokens` "
            "if it was cut off",
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
            f"the answer is empty although the model wrote {usage.completion} tokens: the "
            "server's parsers dropped them, such as a tool call that is not JSON",
            EmptyAnswerWarning,
        )

    def _warn_of_silence(self) -> None:
        """Warn of a model that ended its turn at once, which looks like a fault of the server."""
        is_wanted = self.body.get("max_tokens") == 1 or self.body.get("stop")
        reason = self.answer.finish_reason
        if is_wanted or reason == "length":
            return
        warn_user(
            "the answer is empty: the model ended its turn at once. Put the task into the last "
            "message, or use a larger model"
            if reason == "stop"
            else f"the answer is empty: the server ended it with the reason `{reason}`",
            EmptyAnswerWarning,
        )
