"""`ChatVllmMlx`: what a user of LangChain sees of it."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import Runnable
from pydantic import ValidatorFunctionWrapHandler, field_validator, model_validator

from langchain_car_vllm import __version__
from langchain_car_vllm.caching import CachingChatModel
from langchain_car_vllm.connection import aconnect, connect
from langchain_car_vllm.delegation import last_seen
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.masked_serializable import MaskedSerializable
from langchain_car_vllm.models.profile import Profile, chosen_of, model_profile, served_profile
from langchain_car_vllm.secrets_masking import masked_settings
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.setting_checks import check_positive
from langchain_car_vllm.support.process_state import import_whole
from langchain_car_vllm.support.threads import is_on_loop
from langchain_car_vllm.wire.output_parser import (
    Method,
    check_method,
    parser_for,
    response_format,
    with_parser,
)
from langchain_car_vllm.wire.reasoning import PROVIDER
from langchain_car_vllm.wire.request.schema import traced_schema
from langchain_car_vllm.wire.request.tools import (
    Tool,
    ToolChoice,
    forbids_parallel_calls,
    named_choice,
    normalize_choice,
    openai_tools,
    tool_name,
)
from langchain_car_vllm.wire.request.unreadable_blocks import mend_unreadable_blocks

if TYPE_CHECKING:
    from langchain_car_vllm.arguments import ChatArguments, ModelName


class ChatVllmMlx(MaskedSerializable, CachingChatModel, defer_build=False):
    """Chat model that installs, starts and supervises `vllm-mlx` by itself.

    The first call finds `vllm-mlx` or installs it, downloads the model, starts the server and waits
    until it answers; later calls of any process of the same user share that server, which stops by
    itself after `keep_alive`. A wrapped `ChatOpenAI` converts the messages; streaming goes its own
    way for speed.

    The object holds configuration only, so it can be pickled, copied and configured freely.

    Instantiate and stream:
        ```python
        from langchain_car_vllm import ChatVllmMlx

        llm = ChatVllmMlx(model="vllm-mlx/qwen3.6-35b-a3b:4bit", temperature=0.2)
        for chunk in llm.stream("Name three moons."):
            print(chunk.text, end="")
        ```

    Tools; a forced choice (`"any"` or a name) ends in a valid call or a `ForcedToolCallError`:
        ```python
        def weather(city: str) -> str:
            \"\"\"Get the weather in a city.\"\"\"
            return "sunny"


        llm.bind_tools([weather], tool_choice="any").invoke("Paris?").tool_calls
        # [{"name": "weather", "args": {"city": "Paris"}, "id": "...", "type": "tool_call"}]
        ```

    Structured output, constrained token by token:
        ```python
        from pydantic import BaseModel


        class Moon(BaseModel):
            name: str
            planet: str


        llm.with_structured_output(Moon).invoke("Name a moon.")
        # Moon(name="Phobos", planet="Mars")
        ```

    Reasoning, where the model thinks:
        ```python
        answer = llm.bind(reasoning=True, thinking_budget=512).invoke("17 * 23?")
        answer.additional_kwargs.get("reasoning_content")  # and `reasoning` in `content_blocks`
        ```

    Images, from bytes, a `Path` or an address, where the model takes them:
        ```python
        from pathlib import Path

        image = {"type": "image", "url": Path("moon.png")}
        llm.invoke([{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}])
        ```

    An endpoint that somebody else runs is used as it is:
        ```python
        ChatVllmMlx(model="served-name", base_url="http://127.0.0.1:8000/v1")
        ```

    Raises:
        ConfigurationError: A setting cannot work; the message says what to write instead.
        UnknownModelError: The model id names nothing that can be served.
    """

    if TYPE_CHECKING:

        def __init__(self, model: ModelName = ..., /, **given: Unpack[ChatArguments]) -> None: ...

    @field_validator("profile", mode="wrap")
    @classmethod
    def _keep_profile(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """Have a copy of this model know what of its profile the user chose."""
        return copy(value) if isinstance(value, Profile) else check(value)

    @model_validator(mode="after")
    def _complete_profile(self) -> Self:
        """Put what the user set over what is known; a copy for another model begins anew."""
        given: dict[str, Any] = self.profile or {}  # type: ignore[assignment]
        for name in ("max_input_tokens", "max_output_tokens"):
            if given.get(name) is not None:
                check_positive(f"profile.{name}", given[name])
        is_named, is_ours = "name" in given, given.get("name") == self._model_id().name
        if is_ours and isinstance(given, Profile):
            return self
        known: dict[str, Any] = self._known_at_once()
        if is_named:  # it was known of this model or another one before the user changed it
            given = {k: v for k, v in given.items() if is_ours and known.get(k) != v}
        self._set_unchecked("profile", Profile(known, given))
        return self

    @model_validator(mode="after")
    def _set_car_vllm_version(self) -> Self:
        self._add_version("langchain-car-vllm", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "vllm-mlx-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        found = {"model": self.model, "revision": self.revision, **self._parameters}
        if self.adapter is not None:
            found["adapter"] = self.adapter
        if self.stop:
            found["stop"] = self.stop
        return masked_settings(found)

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        params = super()._get_invocation_params(stop=stop, **kwargs)
        given = {**params, **self._identifying_params, "stop": self._stops(stop) or None, **kwargs}
        return masked_settings(given)

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
        if stops := self._stops(stop):
            found["ls_stop"] = stops
        return found

    def _resolve_model_profile(self) -> ModelProfile | None:
        return cast("ModelProfile", Profile(self._known_at_once(), {}))

    def _known_at_once(self) -> dict[str, Any]:
        """Read no file for somebody else's endpoint, and none on an event loop."""
        return self._known_profile(read_files=self.base_url is None and not is_on_loop())

    def _known_profile(self, *, read_files: bool) -> dict[str, Any]:
        fitting = self._fitting_context() if read_files else None
        return model_profile(self._model_id(), fitting, read_files=read_files)

    def _fitting_context(self) -> int | None:
        """Return how many tokens fit this machine."""
        import_whole("langchain_car_vllm.server.known_model")  # for a server of ours alone
        from langchain_car_vllm.server.known_model import fitting_context  # noqa: PLC0415

        try:
            return fitting_context(self._spec(engine=self.engine))
        except ConfigurationError:
            return None

    def _read_files(self) -> None:
        super()._read_files()
        self._learn(self._known_profile(read_files=self.base_url is None))

    def _meet(self, model: str | None, spec: ServerSpec, endpoint: Endpoint) -> None:
        """Learn from the server what fits: it knows the files, and what it may have."""
        if endpoint.managed and (self.profile or {}).get("name") == self._name(model):
            self._learn(served_profile(self._model_id(), endpoint))
        super()._meet(model, spec, endpoint)

    def _learn(self, known: Mapping[str, Any]) -> None:
        profile: Any = self.profile
        if not isinstance(profile, Profile) or profile.known is not known:
            self._set_unchecked("profile", Profile(known, chosen_of(profile)))

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        total: dict[str, int] = {}
        for output in llm_outputs:
            for name, count in ((output or {}).get("token_usage") or {}).items():
                total[name] = total.get(name, 0) + count
        return {"token_usage": total, "model_name": self._name()}

    def warm_up(
        self,
        messages: LanguageModelInput | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> None:
        """Start the server now, and have it read a system prompt and tools before they are needed.

        The request is rendered as the real one will be, with another last user text (the server
        reuses nothing for an exact repeat), and asks for a single token.

        Args:
            messages: The beginning of the conversations to come.
            tools: The tools that will be bound.
        """
        if messages is None and tools is None:
            spec = self._spec(engine=self.engine)
            with connect(self._target(spec)) as connection:
                self._meet(None, spec, connection.endpoint)
            return
        self._generate(self._warming(messages), **_warming_parameters(tools))

    async def awarm_up(
        self,
        messages: LanguageModelInput | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> None:
        """Do what `warm_up` does without blocking the event loop."""
        if messages is None and tools is None:
            spec = self._spec(engine=self.engine)
            async with aconnect(self._target(spec)) as connection:
                self._meet(None, spec, connection.endpoint)
            return
        await self._agenerate(self._warming(messages), **_warming_parameters(tools))

    def _warming(self, messages: LanguageModelInput | None) -> list[BaseMessage]:
        found = [] if messages is None else list(self._convert_input(messages).to_messages())
        if found and isinstance(found[-1], HumanMessage):
            found.pop()
        return [*found, HumanMessage(_WARMING_TEXT)]

    def unload(self, *, force: bool = False) -> None:
        """Stop the server and free its memory; the next call starts it again.

        Args:
            force: Whether to stop it although it is answering somebody, whose requests then raise
                `ServerStoppedError`.

        Raises:
            ServerBusyError: It is answering, and `force` is off.
            ConfigurationError: The endpoint is run by somebody else.
        """
        self._unload(self._spec(engine=self.engine), force=force)

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        prompt = super()._convert_input(model_input)
        mended = mend_unreadable_blocks(prompt.to_messages())
        return prompt if mended is None else ChatPromptValue(messages=mended)

    def get_token_ids(self, text: str) -> list[int]:
        """Return the tokens of a text by `custom_get_token_ids`: the server gives none away.

        Raises:
            ConfigurationError: There is no such function.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        raise ConfigurationError(
            "the server does not return token ids", hint="count tokens with `get_num_tokens(...)`"
        )

    def get_num_tokens(self, text: str) -> int:
        """Return how many tokens a text has.

        The server's tokenizer counts where a call of this process has found it running and no event
        loop would be blocked; otherwise it is a rough count that needs no network. A function that
        was given as `custom_get_token_ids` counts instead.
        """
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return self.get_num_tokens_from_messages([HumanMessage(text)])

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Tool] | None = None
    ) -> int:
        """Return how many tokens messages and tools have, counted as `get_num_tokens` does."""
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens_from_messages(messages, tools)
        converted = openai_tools(tools or ())
        endpoint = self._external(None) or last_seen(self._spec(engine=self.engine))
        if messages and endpoint is not None and not is_on_loop():
            counted = self._chat(endpoint).count_tokens(list(messages), converted)
            if counted is not None:
                return counted
        return count_tokens_approximately(messages, tools=[*converted] or None)

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
        choice = normalize_choice(tool_choice, [tool_name(tool) for tool in converted])
        if choice is not None:
            kwargs["tool_choice"] = choice
        if forbids_parallel_calls(tool_choice):
            parallel_tool_calls = False
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
                model call a tool; `json_mode` is `json_schema` where there is a schema, and any
                JSON object without one.
            include_raw: Return `raw`, `parsed` and `parsing_error` instead of the object alone.
            strict: Whether the answer must follow the schema to the letter.
            **kwargs: More parameters of the call.

        Raises:
            ConfigurationError: The combination cannot work.
        """
        check_method(method, schema, strict=strict, given=kwargs)
        options: dict[str, Any] = {"method": method}
        if method != "json_mode":
            options["strict"] = strict
        traced = None if schema is None else traced_schema(schema)
        kwargs["ls_structured_output_format"] = {"kwargs": options, "schema": traced}
        if method == "function_calling":
            choice = named_choice(tool_name(openai_tools([schema])[0]))
            bound = self.bind_tools([schema], tool_choice=choice, strict=strict, **kwargs)
        else:
            free = {"type": "json_object"}
            form = free if schema is None else response_format(schema, strict=strict)
            bound = self.bind(response_format=form, **kwargs)
        return with_parser(bound, parser_for(schema, method), include_raw=include_raw)


_WARMING_TEXT = "(warm-up)"


def _warming_parameters(tools: Sequence[Tool] | None) -> dict[str, Any]:
    return {"max_tokens": 1, "tools": openai_tools(tools or ())}
