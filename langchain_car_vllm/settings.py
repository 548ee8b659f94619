"""What a user can set: the server of a model, and the answers of a chat model."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    FieldSerializationInfo,
    SecretStr,
    field_serializer,
    model_validator,
)

from langchain_car_vllm import environment
from langchain_car_vllm.checked_fields import CheckedFields
from langchain_car_vllm.connection import Target
from langchain_car_vllm.durations import seconds
from langchain_car_vllm.endpoint import Endpoint, Headers
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models import ModelId, parse_model_id
from langchain_car_vllm.models.adapter import adapter_name, adapter_source, check_is_no_folder
from langchain_car_vllm.models.catalog import catalog
from langchain_car_vllm.models.families import serving_of_name
from langchain_car_vllm.models.ids import anchor_path
from langchain_car_vllm.models.snapshot import check_revision
from langchain_car_vllm.models.speculation import MTP
from langchain_car_vllm.secrets_masking import masked_settings
from langchain_car_vllm.server.spec import Kind, ServerSpec
from langchain_car_vllm.setting_checks import (
    EXAMPLE,
    check_endpoint,
    check_hosts,
    check_listener,
    check_positive,
    check_server,
    checked_url,
    endpoint_key,
    warn_of_no_effect,
)
from langchain_car_vllm.support.process_state import import_whole
from langchain_car_vllm.support.secret_names import without_user
from langchain_car_vllm.support.threads import is_on_loop
from langchain_car_vllm.wire.reasoning import Reasoning
from langchain_car_vllm.wire.request import parameters
from langchain_car_vllm.wire.request.parameter_values import (
    Count,
    Number,
    checked_values,
    logprob_fields,
)
from langchain_car_vllm.wire.transport.remote import check_served

# Read now: a model may be constructed on an event loop, where no file may be read.
catalog()


class ServerFields(CheckedFields):
    """A model and the server that serves it: configuration only, no client, port or process.

    Construction reads local files at most, on an event loop not even those; it never uses the
    network and starts nothing.
    """

    model_config = ConfigDict(defer_build=True)

    model: str
    """Catalog name, Hub repository or local directory."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; the default branch without one."""
    keep_alive: str | Number = Field(default_factory=environment.CAR_VLLM_MLX_KEEP_ALIVE.read)
    """How long the server stays up after its last request: seconds, `"10m"`, 0 or -1 (forever)."""
    startup_timeout: Number | None = None
    """Seconds to wait for the server to become ready; no limit without one."""
    on_progress: Callable[..., None] | None = Field(default=None, exclude=True, repr=False)
    """Called with a `Progress` while a call waits, from any thread: for the server, and for the
    first token if that takes longer than two seconds."""
    auto_install: bool = Field(default_factory=environment.CAR_VLLM_MLX_AUTO_INSTALL.read)
    """Whether `vllm-mlx` may be installed if it is missing."""
    auto_pull: bool = True
    """Whether the model may be downloaded if it is missing."""
    server_args: list[str] = Field(default_factory=list)
    """Appended to the server's command line."""
    server_env: dict[str, SecretStr] = Field(default_factory=dict, exclude=True, repr=False)
    """Added to the server's environment; never serialised, logged or traced."""
    base_url: str | None = Field(default_factory=environment.CAR_VLLM_MLX_BASE_URL.read)
    """An endpoint that somebody else runs; nothing is installed, started or stopped then."""
    api_key: SecretStr | None = Field(default_factory=endpoint_key)
    """The key of `base_url`; without a `base_url` it has no effect, and a warning says so."""
    default_headers: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)
    """Sent with every request; never serialised, since they may hold a key."""

    _wire: ClassVar[str]
    """The module that talks to the server; only calls import it."""

    @field_serializer("base_url", "server_args", "extra_body", "model_kwargs", check_fields=False)
    def _serialize_masked(self, value: Any, info: FieldSerializationInfo) -> Any:
        return masked_settings({info.field_name: value})[info.field_name]

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, value if name is None else masked_settings({name: value})[name]

    @model_validator(mode="after")
    def _check_connection(self) -> Self:
        if not self.model.strip():
            raise ConfigurationError("`model` is empty", hint=EXAMPLE)
        if self.base_url is not None:
            self.base_url = checked_url(self.base_url)
        else:
            parse_model_id(self.model, read_files=not is_on_loop())
            self.model = anchor_path(self.model)
        seconds(self.keep_alive, "keep_alive", lowest=-1)
        if self.startup_timeout is not None:
            check_positive("startup_timeout", self.startup_timeout)
        if self.revision is not None:
            check_revision(self.revision)
        check_server(self.server_args, self.server_env)
        check_listener(self.on_progress)
        environment.check_variables()
        key = check_endpoint(self.api_key, self.default_headers)
        if key is not None:  # else nobody set it
            self.api_key = key
        warn_of_no_effect(self)
        self._has_unread_files = self.base_url is None and is_on_loop()
        return self

    def _model_id(self, model: str | None = None) -> ModelId:
        name = self.model if model is None else model
        if self.base_url is not None:
            name = name.removeprefix("vllm-mlx/")
            return ModelId(name=name, source=name, is_local=False)
        read_files = not is_on_loop()  # a call looks into a directory in a thread
        if name.startswith((".", "~")):
            return parse_model_id(name, read_files=read_files)
        return _known_model_id(name, read_files=read_files)

    def _read_files(self) -> None:
        """Do off the loop what a construction on an event loop left undone."""
        if self.base_url is None:
            parse_model_id(self.model)
        self._has_unread_files = False

    def _name(self, model: object = None) -> str:
        """Return the model's name for traces, also of one that does not exist."""
        if not isinstance(model, str | None):
            return str(model)  # refused by the call itself
        try:
            return self._model_id(model).name
        except ConfigurationError:
            return model or self.model

    def _spec(
        self,
        model: str | None = None,
        *,
        engine: Literal["auto", "simple", "batched"] = "auto",
        kind: Kind = "chat",
        keep_alive: str | float | None = None,
    ) -> ServerSpec:
        found = self._model_id(model)
        adapter, draft = self._adapter(), self._draft()
        alive = self.keep_alive if keep_alive is None else keep_alive
        return ServerSpec(
            source=found.source,
            served_name=found.name if adapter is None else f"{found.name}+{adapter_name(adapter)}",
            revision=self.revision,
            engine=engine,
            server_args=tuple(self.server_args),
            server_env=tuple(
                (name, secret.get_secret_value()) for name, secret in self.server_env.items()
            ),
            kind=kind,
            adapter=adapter,
            draft=draft,
            keep_alive=seconds(alive, "keep_alive", lowest=-1),
            auto_install=self.auto_install,
            auto_pull=self.auto_pull,
        )

    def _external(self, model: str | None) -> Endpoint | None:
        if self.base_url is None:
            return None
        name = self._model_id(model).name
        return Endpoint(
            base_url=self.base_url,
            api_key=self.api_key.get_secret_value() if self.api_key else None,
            served_model=name,
            **{**serving_of_name(name).facts(), "engine": self._engine()},
        )

    def _engine(self) -> str | None:
        """Return the engine that the user names for an endpoint, None where it is to be asked."""
        return None

    def _adapter(self) -> str | None:
        """Return the adapter on top of the model, None for none."""
        return None

    def _draft(self) -> str | None:
        """Return what drafts tokens, None for nothing."""
        return None

    def _patience(self) -> float | None:
        """Return the seconds that a request may take, None for no limit."""
        return None

    def _target(self, spec: ServerSpec, model: str | None = None) -> Target:
        """Return whom a request to a model goes to."""
        return Target(
            spec,
            self._external(model),
            self._wire,
            self.startup_timeout,
            self.on_progress,
            self._header_items(),
            self._patience(),
            self._read_files if self._has_unread_files else None,
        )

    def _unload(self, spec: ServerSpec, *, force: bool) -> None:
        if self.base_url is not None:
            raise ConfigurationError(
                f"`{without_user(self.base_url)}` is run by somebody else "
                "and cannot be unloaded from here"
            )
        import_whole("langchain_car_vllm.server.client.stop")  # not needed for construction
        from langchain_car_vllm import server  # noqa: PLC0415

        server.stop_server(server.directory_of(spec), force=force)

    def _header_items(self) -> Headers:
        return tuple(sorted(self.default_headers.items()))


class ChatSettings(ServerFields):
    """How a chat model answers, beside the server that it answers from."""

    temperature: Number | None = None
    """Randomness, 0 for none; the server's default is 0.7 if the model sets none."""
    top_p: Number | None = None
    """Share of the probability that is sampled from."""
    top_k: Count | None = None
    """How many tokens are sampled from; 0 for all."""
    min_p: Number | None = None
    """Least probability, relative to the likeliest token."""
    repetition_penalty: Number | None = None
    """Above 1 repetition becomes less likely."""
    presence_penalty: Number | None = None
    """Above 0 new words become more likely."""
    max_tokens: Count | None = None
    """Maximum number of tokens in an answer, thinking included."""
    stop: list[str] | str | None = None
    """Texts that end the answer; they never reach the user."""
    timeout: Number | None = None
    """Seconds a whole answer may take, or a stream may pause, once the server is ready."""
    max_retries: Count = 2
    """How often a request is repeated if the server refuses it for the moment."""
    reasoning: Reasoning = None
    """Whether the model thinks, or how hard; None leaves it to the model."""
    thinking_budget: Count | None = None
    """Maximum number of tokens for thinking, if it is written in `<think>`; None for no limit."""
    logprobs: bool | None = None
    """Whether the answer has the log probability of each token, in `response_metadata`."""
    top_logprobs: Count | None = None
    """How many alternatives to each token are listed with theirs, 20 at most."""
    adapter: str | None = None
    """A LoRA adapter on top of the model, as `mlx_lm.lora` writes it: a folder or a repository."""
    draft: bool | str | None = None
    """Speculative decoding: several tokens are guessed ahead and the model checks them at once, so
    that the speed changes and the answers do not. True to guess with the model's own MTP heads, the
    name of a small draft model for a model with vision, None for off."""
    streaming: bool | None = None
    """Whether `invoke` streams to callbacks; None leaves it to the caller."""
    # LangChain's field with another default: a copy for another model then decides anew.
    disable_streaming: bool | Literal["tool_calling"] | None = None
    """Whether `stream` yields an answer in one part: True always, `"tool_calling"` with tools,
    False never. None: with tools, where the server would lose this model's calls in a stream."""
    engine: Literal["auto", "simple", "batched"] = "auto"
    """`batched` answers several requests at once, `simple` one at a time; `auto` is batched
    unless the installed packages would answer wrongly. Each value has a server of its own, so use
    the same one in all your programs."""
    validate_model_on_init: bool = False
    """Whether construction checks that the model is available and will fit, which asks the Hub; on
    an event loop the first call checks instead."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More parameters of a call, checked like those named here."""
    fetch_media: bool | list[str] | None = None
    """Which addresses in messages are fetched. None: public ones in the user's own messages; True:
    those in tool results too; False: none; a list of hosts: these alone, wherever they lead."""
    extra_body: dict[str, Any] | None = None
    """Fields for the request's body, sent unchecked."""

    @model_validator(mode="after")
    def _check_adapter(self) -> Self:
        if not is_on_loop():
            self._check_adapter_name()
        if self._adapter() is not None and self.base_url is not None:
            raise ConfigurationError(
                "`adapter` needs a server that this package starts, and `base_url` names another",
                hint="start that server with the adapter, or fuse it: `python -m mlx_lm fuse`",
            )
        self._draft()
        if self.adapter is not None:
            self.adapter = anchor_path(self.adapter)
        if isinstance(self.draft, str):
            self.draft = anchor_path(self.draft)
        if self.draft and self.base_url is not None:
            raise ConfigurationError(
                "`draft` needs a server that this package starts, and `base_url` names another"
            )
        return self

    @model_validator(mode="after")
    def _check_generation(self) -> Self:
        names = (*parameters.SAMPLING, "timeout", "thinking_budget", "top_logprobs")
        checked_values({name: getattr(self, name) for name in names})
        if self.max_retries < 0:
            raise ConfigurationError(f"`max_retries` must be 0 or more, not {self.max_retries}")
        parameters.check_names(self.model_kwargs, parameters.IN_A_CALL)
        self.model_kwargs = checked_values(self.model_kwargs)
        logprob_fields({"logprobs": self.logprobs, "top_logprobs": self.top_logprobs})
        check_hosts(self.fetch_media)
        return self

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.validate_model_on_init and is_on_loop():
            self._has_unread_files = True  # the first call checks it, in a thread
        elif self.validate_model_on_init:
            self._check_available()
        return self

    def _check_adapter_name(self) -> None:
        if self.adapter is not None:
            check_is_no_folder(self.adapter)

    def _read_files(self) -> None:
        self._check_adapter_name()
        if self.validate_model_on_init:
            self._check_available()
        super()._read_files()

    def _engine(self) -> str | None:
        return None if self.engine == "auto" else self.engine

    def _draft(self) -> str | None:
        if isinstance(self.draft, str):
            return self._model_id(self.draft).source
        return MTP if self.draft else None

    def _adapter(self) -> str | None:
        return None if self.adapter is None else adapter_source(self.adapter)

    def _patience(self) -> float | None:
        return self.timeout

    def _check_available(self) -> None:
        """Refuse a model that no call could be answered by."""
        if endpoint := self._external(None):
            check_served(endpoint, self._header_items())
            return
        import_whole("langchain_car_vllm.server.plan")  # not needed where nobody is asked
        from langchain_car_vllm.server.plan import asked_plan  # noqa: PLC0415

        asked_plan(self._spec(engine=self.engine)).check()

    @property
    def _parameters(self) -> dict[str, Any]:
        """What goes into every call, as the user set it."""
        names = [*parameters.SAMPLING, "reasoning", "thinking_budget", "timeout", "extra_body"]
        names += ["logprobs", "top_logprobs"]
        found = {name: getattr(self, name) for name in names}
        return {k: v for k, v in found.items() if v is not None} | self.model_kwargs


@lru_cache(maxsize=256)
def _known_model_id(name: str, *, read_files: bool) -> ModelId:
    """Remember what a name stands for wherever it is said: each call asks several times."""
    return parse_model_id(name, read_files=read_files)
