"""One call of the model: one request, or a second where the first did not bring what was asked.

There is no I/O here. An exchange yields its attempts; whoever drives it sends each attempt's body,
feeds it the bytes that come back and asks for the next one. The drivers, one synchronous and one
asynchronous, therefore decide nothing.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.wire.answer.reader import Filter
from langchain_car_vllm.wire.answer.result import AnswerEnd
from langchain_car_vllm.wire.answer.token_usage import Usage
from langchain_car_vllm.wire.errors import AnswerError, InvalidRequestError
from langchain_car_vllm.wire.exchange.attempt import Attempt, Body, Names
from langchain_car_vllm.wire.request.turns import order_turns

# mlx-lm 0.31.3 mixes up the logits processors of a batch in which a request has none: grammars are
# lost, land on other answers, or stop the engine. A bias of nothing is a processor. Servers of ours
# are mended when they are launched.
NO_BIAS = {"0": 0.0}
_BAD_REQUEST, _INVALID_OUTPUT = 400, 422
_TEMPLATE = "chat template"
# What other servers than vllm-mlx may not know, and we send of our own accord.
_OPTIONAL = ("enable_thinking", "chat_template_kwargs", "timeout", "stream_options")


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
        rest = answer.last_logprobs()
        return AnswerEnd(
            finish_reason=last.finish_reason,
            model=answer.model or str(self.body["model"]),
            usage=self._usage(),
            id=answer.id,
            drafts=answer.drafts,
            extra={**self._extra(), **({"logprobs": {"content": [*rest]}} if rest else {})},
        )

    def explain(self, error: AnswerError) -> Exception:
        """Return what the user is told of an error, and keep it for what comes next."""
        self._sent[-1].error = error
        return self._translate(error)

    @contextmanager
    def forgive(self) -> Iterator[None]:
        """Go on where there is another attempt for what went wrong."""
        try:
            yield
        except CarVllmError:
            error = self._sent[-1].unseen_error
            is_mended = self._other_body(self._sent[-1].body, error) is not None
            if error is None or not (is_mended or self._has_other_way(error)):
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

    def _translate(self, error: AnswerError) -> Exception:
        """Return what the user is told of an error."""
        return error

    def _has_other_way(self, error: AnswerError) -> bool:  # noqa: ARG002
        """Tell whether another way is left where the last attempt failed so."""
        return False

    def _other_body(self, body: Body, error: AnswerError | None) -> Body | None:
        """Return the body as a server may take it that refused it so, None where it stays."""
        if not isinstance(error, InvalidRequestError) or error.status is None:
            return None  # nobody was asked
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
