"""The wrapped `ChatOpenAI` as far as it converts messages and counts their tokens."""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import PrivateAttr

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.wire.errors import AnswerError, InvalidRequestError
from langchain_car_vllm.wire.exchange.attempt import Body
from langchain_car_vllm.wire.reasoning import REASONING
from langchain_car_vllm.wire.request.media_access import NO_ACCESS, MediaAccess
from langchain_car_vllm.wire.request.message_memo import MessageMemo
from langchain_car_vllm.wire.request.messages import to_server_messages
from langchain_car_vllm.wire.request.token_count import (
    PATH,
    SECONDS,
    PromptLimit,
    count_request,
    measure_request,
    prompt_limit,
    read_count,
)
from langchain_car_vllm.wire.transport.connection_pools import Address
from langchain_car_vllm.wire.whole_answers import WholeAnswers


class CountingChat(ChatOpenAI):
    """A `ChatOpenAI` that writes messages in the server's forms and has its tokenizer count them.

    Attributes:
        endpoint: Whom it talks to.
        address: Where it talks to, and as whom.
    """

    endpoint: Endpoint
    address: Address
    _memo: MessageMemo = PrivateAttr(default_factory=MessageMemo)

    def _use_responses_api(self, payload: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def _sent_messages(
        self, messages: Sequence[BaseMessage], access: MediaAccess = NO_ACCESS
    ) -> list[dict[str, Any]]:
        """Return the messages as the server takes them, with what the model thought."""

        def convert(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
            ready = to_server_messages(messages, self.endpoint, access)
            payload = BaseChatOpenAI._get_request_payload(self, ready)  # noqa: SLF001
            sent: list[dict[str, Any]] = payload["messages"]
            for message, answer in zip(ready, sent, strict=True):
                if thought := message.additional_kwargs.get(REASONING):
                    answer[REASONING] = thought
            return sent

        return self._memo.convert(messages, convert)

    def count_tokens(
        self, messages: list[BaseMessage], tools: Sequence[dict[str, Any]] = ()
    ) -> int | None:
        """Return how many tokens a conversation has, by the server's tokenizer.

        Returns:
            The number without the chat template, None where the server does not tell.
        """
        try:
            sent = self._sent_messages(messages)
        except (InvalidRequestError, RecursionError):  # such as an image that cannot be fetched
            return None
        return self._count({"messages": sent, "tools": list(tools)})

    def _count(self, body: Body) -> int | None:
        try:
            return read_count(self._counter().post(PATH, _count_body(body)))
        except AnswerError:
            return None

    async def _acount(self, body: Body) -> int | None:
        try:
            return read_count(await self._counter().apost(PATH, _count_body(body)))
        except AnswerError:
            return None

    def _counter(self) -> WholeAnswers:
        return WholeAnswers(self.endpoint, self.address.headers, SECONDS)

    def _asked_tokens(self, body: Body, limit: PromptLimit, room: int | None) -> int:
        """Return what a request asks for in all; what can never fit is refused."""
        size = measure_request(body)
        counted = self._count(body) if size.needs_count(limit, room) else None
        return size.asked_tokens(limit, room, counted)

    async def _aasked_tokens(self, body: Body, limit: PromptLimit, room: int | None) -> int:
        size = measure_request(body)
        counted = await self._acount(body) if size.needs_count(limit, room) else None
        return size.asked_tokens(limit, room, counted)

    def _limit(self, given: dict[str, Any]) -> PromptLimit:
        """Return how many tokens a prompt may have: the server's limits, and the user's own."""
        served = self.endpoint
        chosen = given.get("max_input_tokens")
        return prompt_limit(served.context_window, served.max_input_tokens, chosen)


def _count_body(body: Body) -> Body:
    return count_request(body["messages"], body.get("tools") or ())
