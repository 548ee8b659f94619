"""What constructors take, for type checkers and editors: more than what the fields then hold."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Literal, TypedDict

from langchain_core.caches import BaseCache
from langchain_core.callbacks import Callbacks
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.rate_limiters import BaseRateLimiter
from pydantic import SecretStr

from langchain_car_vllm.wire.reasoning import Reasoning

ModelName = str | PathLike[str]
Texts = list[str] | tuple[str, ...]


class ServerArguments(TypedDict, total=False):
    """Of every model: a server, and how it is reached."""

    model: ModelName
    revision: str | None
    keep_alive: str | float
    startup_timeout: float | None
    on_progress: Callable[..., None] | None
    auto_install: bool
    auto_pull: bool
    server_args: Texts
    server_env: Mapping[str, str | SecretStr]
    base_url: str | None
    api_key: str | SecretStr | None
    default_headers: Mapping[str, str]


class BatchArguments(ServerArguments, total=False):
    """Of what answers batches of texts."""

    timeout: float | None
    batch_size: int


class RerankerArguments(BatchArguments, total=False):
    """Of a reranker."""

    top_n: int | None


class DecisionArguments(ServerArguments, total=False):
    """Of a model of decisions."""

    timeout: float | None
    engine: Literal["auto", "simple", "batched"]
    both_orders: bool
    name: str | None


class ChatArguments(ServerArguments, total=False):
    """Of a chat model, LangChain's own among them."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    max_tokens: int | None
    stop: str | Texts | None
    timeout: float | None
    max_retries: int
    reasoning: Reasoning
    thinking_budget: int | None
    logprobs: bool | None
    top_logprobs: int | None
    adapter: ModelName | None
    draft: bool | ModelName | None
    streaming: bool | None
    disable_streaming: bool | Literal["tool_calling"] | None
    engine: Literal["auto", "simple", "batched"]
    validate_model_on_init: bool
    model_kwargs: Mapping[str, Any]
    fetch_media: bool | Texts | None
    extra_body: Mapping[str, Any] | None
    name: str | None
    cache: BaseCache | bool | None
    verbose: bool
    callbacks: Callbacks
    tags: list[str] | None
    metadata: dict[str, Any] | None
    custom_get_token_ids: Callable[[str], list[int]] | None
    rate_limiter: BaseRateLimiter | None
    output_version: str | None
    profile: ModelProfile | None
