"""`ChatVllmMlx`: what a user configures, and the delegation of each call."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field, model_validator

from langchain_car_vllm import __version__
from langchain_car_vllm.connection import Connection, Replay, ServedModel
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models import family_facts, model_profile
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.wire import parameters
from langchain_car_vllm.wire.reasoning import PROVIDER, Reasoning
from langchain_car_vllm.wire.structured import (
    Method,
    check_method,
    parser_for,
    response_format,
    with_parser,
)
from langchain_car_vllm.wire.tools import (
    Tool,
    ToolChoice,
    normalized_choice,
    openai_tools,
    tool_name,
)

if TYPE_CHECKING:
    from langchain_car_vllm.wire.chat import WireChat


class ChatVllmMlx(ServedModel, BaseChatModel):
    """Chat model that installs, starts and supervises `vllm-mlx` by itself.

    The first call finds `vllm-mlx` or installs it, downloads the model, starts the server and waits
    until it answers; later calls of any process of the same user share that server, which stops by
    itself after `keep_alive`. A call's answer comes from a wrapped `ChatOpenAI`.

    The object holds configuration only, so it can be pickled, copied and configured freely.

    Example:
        ```python
        from langchain_car_vllm import ChatVllmMlx

        llm = ChatVllmMlx(model="vllm-mlx/qwen3-4b:4bit")
        for chunk in llm.stream("Name three moons."):
            print(chunk.text, end="")
        ```

    Raises:
        ConfigurationError: A setting cannot work; the message says what to write instead.
        UnknownModelError: The model id names nothing that can be served.
    """

    temperature: float | None = None
    """Randomness, 0 for none; the server's default is 0.7 where the model brings none."""
    top_p: float | None = None
    """Share of the probability that is sampled from."""
    top_k: int | None = None
    """How many tokens are sampled from; 0 for all."""
    min_p: float | None = None
    """Least probability, relative to the likeliest token."""
    repetition_penalty: float | None = None
    """Above 1 repetition becomes less likely."""
    presence_penalty: float | None = None
    """Above 0 new words become more likely."""
    max_tokens: int | None = None
    """Most tokens of an answer, thinking included."""
    stop: list[str] | str | None = None
    """Texts that end the answer; they never reach the user."""
    timeout: float | None = None
    """Seconds a whole answer may take, or a stream may pause, once the server is ready."""
    max_retries: int = 2
    """How often a request is repeated that the server refused for the moment."""
    reasoning: Reasoning = None
    """Whether the model thinks, or how hard; None leaves it to the model."""
    thinking_budget: int | None = None
    """Most tokens to think; None for no limit."""
    streaming: bool | None = None
    """Whether `invoke` streams to callbacks; None leaves it to who calls."""
    engine: Literal["auto", "simple", "batched"] = "auto"
    """`batched` answers several at once, `simple` one after the other."""
    validate_model_on_init: bool = False
    """Whether construction fails where the model is neither here nor may be downloaded."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More parameters of a call, checked like those named here."""
    extra_body: dict[str, Any] | None = None
    """Fields for the request's body, sent unchecked."""

    @model_validator(mode="after")
    def _check_generation(self) -> Self:
        for name in ("timeout", "max_tokens", "thinking_budget"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"`{name}` must be more than 0, not {value}")
        for name in ("temperature", "top_k", "min_p", "max_retries"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigurationError(f"`{name}` must be 0 or more, not {value}")
        parameters.check_names(self.model_kwargs, _CALL_NAMES)
        if "disable_streaming" not in self.model_fields_set and not _streams_calls(self.model):
            self.disable_streaming = "tool_calling"
        return self

    @model_validator(mode="after")
    def _set_car_vllm_version(self) -> Self:
        self._add_version("langchain-car-vllm", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "vllm-mlx-chat"

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return whether LangChain can write the model down and load it again."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The fields that are secrets, and the variables they come from."""
        return {"api_key": "CAR_VLLM_MLX_API_KEY"}

    @property
    def _parameters(self) -> dict[str, Any]:
        """What goes into every call, as the user set it."""
        names = (*parameters.SAMPLING, "reasoning", "thinking_budget", "timeout", "extra_body")
        found = {name: getattr(self, name) for name in names}
        return {k: v for k, v in found.items() if v is not None} | self.model_kwargs

    @property
    def _identifying_params(self) -> dict[str, Any]:
        found = {"model": self.model, "revision": self.revision, **self._parameters}
        if self.stop:
            found["stop"] = self.stop
        return found

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        params = super()._get_invocation_params(stop=stop, **kwargs)
        return {**params, **self._identifying_params, "stop": stop or self.stop, **kwargs}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        given = {**self._parameters, **kwargs}
        found = LangSmithParams(
            ls_provider=PROVIDER,
            ls_model_name=self._name(given.get("model")),
            ls_model_type="chat",
        )
        if (temperature := given.get("temperature")) is not None:
            found["ls_temperature"] = temperature
        if (most := given.get("max_tokens")) is not None:
            found["ls_max_tokens"] = most
        if stops := _stops(stop if stop is not None else self.stop):
            found["ls_stop"] = stops
        return found

    def _resolve_model_profile(self) -> ModelProfile | None:
        return cast("ModelProfile", model_profile(self._model_id()))

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        total: dict[str, int] = {}
        for output in llm_outputs:
            for name, count in ((output or {}).get("token_usage") or {}).items():
                total[name] = total.get(name, 0) + count
        return {"token_usage": total, "model_name": self._name()}

    def _call(self, stop: list[str] | None, kwargs: dict[str, Any]) -> "_Call":
        given = {**self._parameters, **kwargs}
        parameters.check_names(given, _CALL_NAMES)
        model = given.pop("model", None)
        given = parameters.kept(given)
        if tools := given.get("tools"):
            given["tools"] = openai_tools(tools)
        return _Call(
            model=model,
            spec=self._spec(model, engine=self.engine),
            stop=_stops(stop if stop is not None else self.stop),
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
        while True:
            with self._connection(call.spec, call.model) as connection:
                try:
                    return self._wrapped(connection)._generate(  # noqa: SLF001
                        messages, call.stop, run_manager, **call.given
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
        call, replay = self._call(stop, kwargs), Replay()
        while True:
            async with self._aconnection(call.spec, call.model) as connection:
                try:
                    chat = await self._awrapped(connection)
                    return await chat._agenerate(  # noqa: SLF001
                        messages, call.stop, run_manager, **call.given
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
        while True:
            with self._connection(call.spec, call.model) as connection:
                try:
                    chunks = self._wrapped(connection)._stream(  # noqa: SLF001
                        messages, call.stop, run_manager, **call.given
                    )
                    with closing(chunks):
                        for chunk in chunks:
                            replay.seen = True
                            yield chunk
                except Replay.BROKEN as error:
                    replay.decide(error, connection.explain(), connection)
                else:
                    return

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call, replay = self._call(stop, kwargs), Replay()
        while True:
            async with self._aconnection(call.spec, call.model) as connection:
                try:
                    chat = await self._awrapped(connection)
                    chunks = chat._astream(  # noqa: SLF001
                        messages, call.stop, run_manager, **call.given
                    )
                    async with aclosing(chunks):
                        async for chunk in chunks:
                            replay.seen = True
                            yield chunk
                except Replay.BROKEN as error:
                    replay.decide(error, await connection.aexplain(), connection)
                else:
                    return

    def _wrapped(self, connection: Connection) -> "WireChat":
        from langchain_car_vllm.wire.chat import wrapped  # noqa: PLC0415 - imports openai

        return wrapped(connection.endpoint, self._header_items(), self.max_retries)

    async def _awrapped(self, connection: Connection) -> "WireChat":
        chat = sys.modules.get("langchain_car_vllm.wire.chat")
        key = (connection.endpoint, self._header_items(), self.max_retries)
        found: WireChat | None = chat.find_wrapped(*key) if chat else None
        if found is None:  # the first call imports and builds, which would block the loop
            found = await asyncio.to_thread(self._wrapped, connection)
        return found

    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: ToolChoice = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools it may, or must, call.

        Args:
            tools: Functions, pydantic classes, TypedDicts, LangChain tools or JSON schemas.
            tool_choice: `"auto"` or None leaves it to the model, `"none"` forbids it, `"any"`,
                `"required"` or True forces a call, a name forces that tool.
            strict: Whether the arguments must follow the schema to the letter.
            parallel_tool_calls: False for at most one call where a call is forced.
            **kwargs: More parameters of the call.

        Raises:
            ConfigurationError: The server takes no tool of that name, or the choice names none.
        """
        converted = openai_tools(tools, strict=strict)
        choice = normalized_choice(tool_choice, [tool_name(tool) for tool in converted])
        if choice is not None:
            kwargs["tool_choice"] = choice
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return cast("Runnable[LanguageModelInput, AIMessage]", self.bind(tools=converted, **kwargs))

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return the model followed by a parser, so that it answers with objects.

        Args:
            schema: A pydantic class, TypedDict, JSON schema or function schema.
            method: `json_schema` constrains every token to the schema; `function_calling` makes the
                model call a tool; `json_mode` constrains it to any JSON object.
            include_raw: Return `raw`, `parsed` and `parsing_error` instead of the object alone.
            strict: Whether the answer must follow the schema to the letter.
            **kwargs: More parameters of the call.

        Raises:
            ConfigurationError: The combination cannot work.
        """
        check_method(method, schema, strict=strict)
        options: dict[str, Any] = {"method": method}
        if method != "json_mode":
            options["strict"] = strict
        kwargs["ls_structured_output_format"] = {"kwargs": options, "schema": schema}
        if method == "function_calling":
            name = tool_name(openai_tools([schema])[0])
            bound = self.bind_tools([schema], tool_choice=name, strict=strict, **kwargs)
        elif method == "json_schema":
            bound = self.bind(response_format=response_format(schema, strict=strict), **kwargs)
        else:
            bound = self.bind(response_format={"type": "json_object"}, **kwargs)
        return with_parser(bound, parser_for(schema, method), include_raw=include_raw)


class _Call(NamedTuple):
    """One call: what is left of its arguments once the model is known."""

    model: str | None
    spec: ServerSpec
    stop: list[str]
    given: dict[str, Any]


_CALL_NAMES = frozenset({*parameters.SAMPLING, *parameters.OURS, *parameters.SERVERS, "model"})


def _stops(stop: Sequence[str] | str | None) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop or ())


def _streams_calls(model: str) -> bool:
    return family_facts(model).streams_tool_calls
