"""The delegation of a call: the server is held while its wrapped ChatOpenAI answers.

The wrapped `ChatOpenAI` converts the messages; streaming goes its own way for speed.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_car_vllm.connection import Connection, Replay, aconnect, connect
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.models.ids import written
from langchain_car_vllm.models.profile import chosen_of
from langchain_car_vllm.progress.run_events import AsyncRun, Run
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.setting_checks import warn_beside_endpoint
from langchain_car_vllm.settings import ChatSettings
from langchain_car_vllm.support.owned_generators import Owned
from langchain_car_vllm.support.threads import is_on_loop, run_wait
from langchain_car_vllm.wire.chat_cache import cached_chat, chat_for
from langchain_car_vllm.wire.output_parser import response_format_of
from langchain_car_vllm.wire.request import parameters
from langchain_car_vllm.wire.request.parameter_values import checked_values
from langchain_car_vllm.wire.request.tools import (
    forbids_parallel_calls,
    normalize_choice,
    openai_tools,
    tool_name,
)

if TYPE_CHECKING:
    from langchain_car_vllm.wire.chat import WireChat


class Call(NamedTuple):
    """One call: what is left of its arguments once the model is known.

    Attributes:
        model: The model that the call names, None for the configured one.
        spec: The server that is to answer.
        stop: Texts that end the answer.
        given: The parameters that the wrapped `ChatOpenAI` gets.
    """

    model: str | None
    spec: ServerSpec
    stop: list[str]
    given: dict[str, Any]

    def terms(self, connection: Connection, run: Run) -> dict[str, Any]:
        """Return what the wrapped `ChatOpenAI` is told beside messages and stops."""
        return {"gate": connection.gate, "stopwatch": run.stopwatch, **self.given}


class DelegatingChatModel(ChatSettings, BaseChatModel):
    """A chat model whose answers come from a server that it holds.

    The wrapped `ChatOpenAI` converts the messages; streaming goes its own way for speed. A
    call whose server crashes before anything was seen of the answer is sent once more.
    """

    _wire: ClassVar[str] = "langchain_car_vllm.wire.chat"

    async def _acall(self, stop: list[str] | None, kwargs: dict[str, Any]) -> Call:
        """Look into directories in a thread, then do what `_call` does."""
        model = kwargs.get("model")
        if self._has_unread_files:
            await run_wait(self._read_files)
        if isinstance(model, str | os.PathLike):
            await run_wait(self._model_id, written(model))
        return self._call(stop, kwargs)

    def _call(self, stop: list[str] | None, kwargs: dict[str, Any]) -> Call:
        if self._has_unread_files and not is_on_loop():
            self._read_files()
        given = {**self._parameters, **kwargs}
        parameters.check_names(given, parameters.IN_A_CALL)
        given = checked_values(given)
        model, keep_alive = given.pop("model", None), given.pop("keep_alive", None)
        warn_beside_endpoint(self.base_url, [] if keep_alive is None else ["keep_alive"])
        given = parameters.without_ignored(given)
        given["tools"] = openai_tools(given.get("tools") or ())
        names = [tool_name(tool) for tool in given["tools"]]
        if forbids_parallel_calls(given.get("tool_choice")):
            given["parallel_tool_calls"] = False
        given["tool_choice"] = normalize_choice(given.get("tool_choice"), names)
        given["response_format"] = response_format_of(given.get("response_format"))
        is_free = given["tool_choice"] in (None, "auto")
        if is_free and given["tools"] and given.get("parallel_tool_calls") is False:
            parameters.warn_once("parallel_tool_calls")
        given["fetch_media"] = self.fetch_media
        given["streams_tool_calls"] = self.disable_streaming is False or None
        if (self.profile or {}).get("name") == self._name(model):
            chosen = chosen_of(cast("Mapping[str, Any] | None", self.profile))
            given.setdefault("max_input_tokens", chosen.get("max_input_tokens"))
        return Call(
            model=model,
            spec=self._spec(model, engine=self.engine, keep_alive=keep_alive),
            stop=self._stops(stop),
            given=given,
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, replay = self._call(stop, kwargs), Replay()
        run = Run(call.spec.served_name, run_manager)
        while True:
            with connect(self._target(call.spec, call.model), run) as connection:
                try:
                    return self._chat_for(call, connection)._generate(  # noqa: SLF001
                        messages, call.stop, run_manager, **call.terms(connection, run)
                    )
                except Replay.BROKEN as error:
                    replay.decide(error, connection.explain(), connection)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, replay = await self._acall(stop, kwargs), Replay()
        run = AsyncRun(call.spec.served_name, run_manager)
        while True:
            async with aconnect(self._target(call.spec, call.model), run) as connection:
                try:
                    chat = await self._achat_for(call, connection)
                    return await chat._agenerate(  # noqa: SLF001
                        messages, call.stop, run_manager, **call.terms(connection, run)
                    )
                except Replay.BROKEN as error:
                    replay.decide(error, await connection.aexplain(), connection)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call, replay = self._call(stop, kwargs), Replay()
        run = Run(call.spec.served_name, run_manager)
        while True:
            with connect(self._target(call.spec, call.model), run) as connection:
                try:
                    chunks = self._chat_for(call, connection)._stream(  # noqa: SLF001
                        messages, call.stop, run_manager, **call.terms(connection, run)
                    )
                    with closing(chunks):
                        for chunk in chunks:
                            replay.seen = True
                            connection.watch.mark_answered()
                            yield chunk
                except Replay.BROKEN as error:
                    replay.decide(error, connection.explain(), connection)
                else:
                    return

    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        return Owned(self._achunks(messages, stop, run_manager, kwargs))

    async def _achunks(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: AsyncCallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        call, replay = await self._acall(stop, kwargs), Replay()
        run = AsyncRun(call.spec.served_name, run_manager)
        while True:
            async with aconnect(self._target(call.spec, call.model), run) as connection:
                try:
                    chat = await self._achat_for(call, connection)
                    chunks = chat._astream(  # noqa: SLF001
                        messages, call.stop, run_manager, **call.terms(connection, run)
                    )
                    async with aclosing(chunks):
                        async for chunk in chunks:
                            replay.seen = True
                            connection.watch.mark_answered()
                            yield chunk
                except Replay.BROKEN as error:
                    replay.decide(error, await connection.aexplain(), connection)
                else:
                    return

    def _meet(self, model: str | None, spec: ServerSpec, endpoint: Endpoint) -> None:
        """Note what a server is, before anything is sent to it.

        Args:
            model: The one that the call names, None for the configured one.
            spec: What was asked for.
            endpoint: The server that is held.
        """
        del model
        if endpoint.managed:
            _seen[spec.settings] = endpoint

    def _chat_for(self, call: Call, connection: Connection) -> "WireChat":
        self._meet(call.model, call.spec, connection.endpoint)
        return self._chat(connection.endpoint)

    def _chat(self, endpoint: Endpoint) -> "WireChat":
        return chat_for(endpoint, self._header_items(), self.max_retries)

    async def _achat_for(self, call: Call, connection: Connection) -> "WireChat":
        self._meet(call.model, call.spec, connection.endpoint)
        found = cached_chat(connection.endpoint, self._header_items(), self.max_retries)
        if found is None:  # the first call imports and builds, which would block the loop
            found = await run_wait(self._chat, connection.endpoint)
        return found

    def _stops(self, stop: list[str] | None) -> list[str]:
        given: Any = self.stop if stop is None else stop
        found = checked_values({"stop": given})["stop"] or []
        if isinstance(found, str):
            return [found]
        return sorted(found) if isinstance(given, set | frozenset) else found


_seen: dict[ServerSpec, Endpoint] = {}


def last_seen(spec: ServerSpec) -> Endpoint | None:
    """Return where a call of this process last found a server, without looking for it again."""
    return _seen.get(spec.settings)
