"""LangChain's caches: an answer is given again for exactly what it was made of."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.globals import get_llm_cache
from langchain_core.load import dumpd
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from pydantic import ConfigDict

from langchain_car_vllm.delegation import DelegatingChatModel
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.file_stamps import current_stamp
from langchain_car_vllm.secrets_masking import masked_settings, secrets_digest
from langchain_car_vllm.support.process_state import KeptProperty
from langchain_car_vllm.support.threads import run_wait
from langchain_car_vllm.wire.output_parser import response_format_of
from langchain_car_vllm.wire.request.parameter_values import checked_values
from langchain_car_vllm.wire.request.tools import openai_tools

_Medium = Path | memoryview

_files: ContextVar[str] = ContextVar("langchain_car_vllm.files", default="")
"""What is known of the files that the answer of this call depends on."""


class CachingChatModel(DelegatingChatModel):
    """A chat model that the keys of LangChain's caches describe in full.

    LangChain makes a key of what it writes down of the model, the parameters and the messages.
    Added are parameters as they are sent, a digest of what is never shown, and stamps of files.
    """

    model_config = ConfigDict(defer_build=True, ignored_types=(KeptProperty,))

    @KeptProperty
    def _serialized(self) -> dict[str, Any]:
        """What LangChain writes down of the model, in its traces too."""
        found: dict[str, Any] = dumpd(self)
        return found

    # What was written down is kept in the object: a copy with another setting would be traced as
    # the old one.
    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied.__dict__.pop("_serialized", None)
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = super().__deepcopy__(memo)
        copied.__dict__.pop("_serialized", None)
        return copied

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.__dict__.pop("_serialized", None)

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Return what LangChain writes down, parameters as they are sent."""
        found = super().to_json()
        if found["type"] == "constructor" and (given := found["kwargs"].get("model_kwargs")):
            found["kwargs"]["model_kwargs"] = _spelt_out(given)
        return found

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        vars(self).pop("_serialized", None)  # a setting may have been changed in place
        settings = {**vars(self), "model_kwargs": _spelt_out(self.model_kwargs)}
        given = masked_settings(_spelt_out(kwargs))
        try:
            told = super()._get_llm_string(stop=self._stops(stop), **given)
            return told + secrets_digest({**settings, **kwargs}) + _files.get()
        except RecursionError as error:
            raise ConfigurationError("a parameter of the call nests too deeply") from error

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        found = self._files_of(messages, kwargs)
        with _known(_stamps(*found) if found else ""):
            return super()._generate_with_cache(messages, stop, run_manager, **kwargs)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        found = self._files_of(messages, kwargs)
        with _known(await run_wait(_stamps, *found) if found else ""):
            return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)

    def _files_of(
        self, messages: Sequence[BaseMessage], given: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], list[_Medium]] | None:
        """Return the model and the media whose files are to be looked at for a key."""
        is_cached = isinstance(self.cache, BaseCache) or get_llm_cache() is not None
        if not is_cached or self.cache is False:
            return None
        given = checked_values(given)
        weights: tuple[str, ...] = ()
        with suppress(ConfigurationError):  # the call itself refuses it
            spec = self._spec(given.get("model"))
            weights = (spec.source, spec.adapter or "")
        media = [found for message in messages for found in _outside(message.content)]
        is_local = any(source.startswith("/") for source in weights)
        return (weights, media) if media or is_local else None


@contextmanager
def _known(files: str) -> Iterator[None]:
    token = _files.set(files)
    try:
        yield
    finally:
        with suppress(ValueError):  # a task of a closed loop is collected in another context
            _files.reset(token)


def _spelt_out(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as they are sent: an object shows its name and place in memory alone."""
    found = checked_values(given)
    if found.get("tools"):
        found["tools"] = openai_tools(found["tools"])
    if found.get("response_format") is not None:
        found["response_format"] = response_format_of(found["response_format"])
    return found


def _outside(content: Any) -> Iterator[_Medium]:
    """Yield what a content names without telling it: files, and memory."""
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from _outside(part)
    elif isinstance(content, _Medium):
        yield content


def _stamps(weights: Sequence[str], media: Sequence[_Medium]) -> str:
    """Return what changes when one of the files is written or replaced."""
    found = (current_stamp(*weights) if weights else None, [_stamp(medium) for medium in media])
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def _stamp(medium: _Medium) -> object:
    if isinstance(medium, memoryview):
        return medium.tobytes()
    try:
        found = medium.expanduser().stat()
    except (OSError, RuntimeError, ValueError):  # the call itself tells
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
