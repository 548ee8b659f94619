"""The object of an answer with the raw message beside it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel, ConfigDict, create_model

from langchain_car_vllm.errors import ForcedToolCallError
from langchain_car_vllm.wire.errors import StructuredOutputError

_OF_THE_ANSWER = (StructuredOutputError, ForcedToolCallError)
"""What says that the model's answer is not what was asked for."""


class RawAndParsed(RunnableSerializable[Any, dict[str, Any]]):
    """A model and its parser, whose output has `raw`, `parsed` and `parsing_error`.

    A stream gives the parts of the raw message as they come, then the object.

    Attributes:
        bound: The model.
        parser: What turns its message into the object.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    bound: Runnable[Any, Any]
    parser: Runnable[Any, Any]
    name: str | None = "structured_output"

    @property
    def InputType(self) -> Any:  # noqa: N802 - LangChain's name
        """The type of the input, which is the model's."""
        return self.bound.InputType

    @property
    def OutputType(self) -> Any:  # noqa: N802 - LangChain's name
        """The type of the output."""
        return dict[str, Any]

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[Any]:
        """Return a pydantic class that describes the input."""
        return self.bound.get_input_schema(config)

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """Return a pydantic class that describes the output."""
        parsed: Any = self.parser.get_output_schema(config)
        fields = {"raw": Any, "parsed": parsed | None, "parsing_error": Any}
        required: dict[str, Any] = {name: (kind, ...) for name, kind in fields.items()}
        return create_model(self.get_name("Output"), **required)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """Return the message and the object."""
        return self._call_with_config(self._answer, input, config, **kwargs)

    async def ainvoke(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the same without blocking the event loop."""
        return await self._acall_with_config(self._aanswer, input, config, **kwargs)

    def transform(
        self,
        input: Iterator[Any],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Yield the parts of the message, then the object."""
        yield from self._transform_stream_with_config(input, self._parts, config, **kwargs)

    async def atransform(
        self,
        input: AsyncIterator[Any],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """Yield the same without blocking the event loop."""
        parts = self._atransform_stream_with_config(input, self._aparts, config, **kwargs)
        async for part in parts:
            yield part

    def stream(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Yield the parts of the message, then the object."""
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(
        self,
        input: Any,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """Yield the same without blocking the event loop."""

        async def inputs() -> AsyncIterator[Any]:
            yield input

        async for part in self.atransform(inputs(), config, **kwargs):
            yield part

    def _answer(
        self,
        given: Any,
        run_manager: Any,  # noqa: ARG002
        config: RunnableConfig,
        **kwargs: Any,
    ) -> dict[str, Any]:
        try:
            raw = self.bound.invoke(given, config, **kwargs)
        except _OF_THE_ANSWER as error:
            return {"raw": _message_of(error), **_failure(error)}
        return {"raw": raw, **self._parse(raw, config)}

    async def _aanswer(
        self,
        given: Any,
        run_manager: Any,  # noqa: ARG002
        config: RunnableConfig,
        **kwargs: Any,
    ) -> dict[str, Any]:
        try:
            raw = await self.bound.ainvoke(given, config, **kwargs)
        except _OF_THE_ANSWER as error:
            return {"raw": _message_of(error), **_failure(error)}
        return {"raw": raw, **await self._aparse(raw, config)}

    def _parts(
        self,
        inputs: Iterator[Any],
        run_manager: Any,  # noqa: ARG002
        config: RunnableConfig,
        **kwargs: Any,
    ) -> Iterator[AddableDict]:
        chunks: list[Any] = []
        try:
            for chunk in self.bound.stream(_sum(list(inputs)), config, **kwargs):
                chunks.append(chunk)
                yield AddableDict(raw=chunk)
        except _OF_THE_ANSWER as error:
            if not chunks:
                yield AddableDict(raw=_message_of(error))
            yield AddableDict(_failure(error))
            return
        yield AddableDict(self._parse(_sum(chunks), config))

    async def _aparts(
        self,
        inputs: AsyncIterator[Any],
        run_manager: Any,  # noqa: ARG002
        config: RunnableConfig,
        **kwargs: Any,
    ) -> AsyncIterator[AddableDict]:
        chunks: list[Any] = []
        given = [part async for part in inputs]
        try:
            async for chunk in self.bound.astream(_sum(given), config, **kwargs):
                chunks.append(chunk)
                yield AddableDict(raw=chunk)
        except _OF_THE_ANSWER as error:
            if not chunks:
                yield AddableDict(raw=_message_of(error))
            yield AddableDict(_failure(error))
            return
        yield AddableDict(await self._aparse(_sum(chunks), config))

    def _parse(self, raw: Any, config: RunnableConfig) -> dict[str, Any]:
        try:
            return {"parsed": self.parser.invoke(raw, config), "parsing_error": None}
        except Exception as error:  # noqa: BLE001 - what a parser may raise is its own affair
            return _failure(error)

    async def _aparse(self, raw: Any, config: RunnableConfig) -> dict[str, Any]:
        try:
            return {"parsed": await self.parser.ainvoke(raw, config), "parsing_error": None}
        except Exception as error:  # noqa: BLE001
            return _failure(error)


def _sum(parts: list[Any]) -> Any:
    first, *rest = parts
    if not rest:
        return first
    if hasattr(first, "tool_call_chunks"):
        return first + rest  # LangChain adds many chunks of a message at once
    for part in rest:
        first = first + part
    return first


def _failure(error: Exception) -> dict[str, Any]:
    return {"parsed": None, "parsing_error": error}


def _message_of(error: Exception) -> AIMessage:
    """Return what the model wrote where the answer was refused before it became a message."""
    told = error if isinstance(error, StructuredOutputError) else error.__cause__
    return AIMessage(content=getattr(told, "llm_output", None) or "")
