"""What a user can set about the answers of a chat model."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.served_model import ServedModel
from langchain_car_vllm.wire.reasoning import Reasoning
from langchain_car_vllm.wire.request import parameters
from langchain_car_vllm.wire.transport.remote import check_served


class ChatSettings(ServedModel):
    """How a chat model answers, beside the server that it answers from."""

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
    # LangChain's field with another default: a copy for another model then decides anew.
    disable_streaming: bool | Literal["tool_calling"] | None = None
    """Whether streams come in one part, always or with tools; None leaves it to the family."""
    engine: Literal["auto", "simple", "batched"] = "auto"
    """`batched` answers several at once, `simple` one after the other."""
    validate_model_on_init: bool = False
    """Whether construction checks that the model can be had and will fit, which asks the Hub."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More parameters of a call, checked like those named here."""
    fetch_media: bool | list[str] | None = None
    """Which addresses in messages are fetched. None: public ones in the user's own messages; True:
    those in tool results too; False: none; a list of hosts: these alone, wherever they lead."""
    extra_body: dict[str, Any] | None = None
    """Fields for the request's body, sent unchecked."""

    @model_validator(mode="after")
    def _check_generation(self) -> Self:
        for name in ("timeout", "max_tokens", "thinking_budget", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"`{name}` must be more than 0, not {value}")
        for name in ("temperature", "top_p", "top_k", "min_p", "max_retries"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigurationError(f"`{name}` must be 0 or more, not {value}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not value <= 1:
                raise ConfigurationError(f"`{name}` must be at most 1, not {value}")
        parameters.check_names(self.model_kwargs, parameters.IN_A_CALL)
        if self.validate_model_on_init:
            self._check_available()
        return self

    def _engine(self) -> str | None:
        return None if self.engine == "auto" else self.engine

    def _patience(self) -> float | None:
        return self.timeout

    def _check_available(self) -> None:
        """Refuse a model that no call could be answered by."""
        if endpoint := self._external(None):
            check_served(endpoint, self._header_items())
            return
        # Not needed by a construction that asks nobody.
        from langchain_car_vllm.server.plan import asked_plan  # noqa: PLC0415

        asked_plan(self._spec(engine=self.engine)).check()

    @property
    def _parameters(self) -> dict[str, Any]:
        """What goes into every call, as the user set it."""
        names = (*parameters.SAMPLING, "reasoning", "thinking_budget", "timeout", "extra_body")
        found = {name: getattr(self, name) for name in names}
        return {k: v for k, v in found.items() if v is not None} | self.model_kwargs
