"""LangChain's caches: an answer is given again for exactly what it was made of."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, Self

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.globals import get_llm_cache
from langchain_core.load import dumpd
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from pydantic import ConfigDict

from langchain_car_vllm.delegation import DelegatingChatModel
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.file_stamps import current_stamp
from langchain_car_vllm.secrets_masking import masked_settings, secrets_digest
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.support.process_state import KeptProperty
from langchain_car_vllm.support.threads import run_wait
from langchain_car_vllm.wire.output_parser import response_format_of
from langchain_car_vllm.wire.request.parameter_values import checked_values
from langchain_car_vllm.wire.request.tools import openai_tools

_Medium = Path | memoryview
_Folders = tuple[str, str]
"""Of a model and of its adapter; a repository is none, nor is an empty name."""


class _Files(NamedTuple):
    """What is known of the files that the answer of a call depends on.

    Attributes:
        folders: Where the weights are.
        weights: What tells their files from later ones, None where nothing does.
        media: The same of each medium.
    """

    folders: _Folders
    weights: str | None
    media: tuple[object, ...]

    def digest(self) -> str:
        return hashlib.sha256(repr((self.weights, self.media)).encode()).hexdigest()[:16]


class _OtherWeights(Exception):  # noqa: N818 - it is met by nobody
    """The server that would answer has loaded other files than those that the key tells of."""

    def __init__(self, weights: str) -> None:
        super().__init__(weights)
        self.weights = weights


_files: ContextVar[_Files | None] = ContextVar("langchain_car_vllm.files", default=None)


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
            files = _files.get()
            return told + secrets_digest({**settings, **kwargs}) + (files.digest() if files else "")
        except RecursionError as error:
            raise ConfigurationError("a parameter of the call is nested too deeply") from error

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        named = self._files_of(messages, kwargs)
        files = _look_at(*named) if named else None
        while True:
            with _known(files):
                try:
                    return super()._generate_with_cache(messages, stop, run_manager, **kwargs)
                except _OtherWeights as other:
                    files = files and files._replace(weights=other.weights)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        named = self._files_of(messages, kwargs)
        files = await run_wait(_look_at, *named) if named else None
        while True:
            with _known(files):
                try:
                    return await super()._agenerate_with_cache(
                        messages, stop, run_manager, **kwargs
                    )
                except _OtherWeights as other:
                    files = files and files._replace(weights=other.weights)

    def _meet(self, model: str | None, spec: ServerSpec, endpoint: Endpoint) -> None:
        """Have an answer kept as one of the weights that the server has loaded.

        A server that somebody uses goes on with its weights after others were written.
        """
        super()._meet(model, spec, endpoint)
        files = _files.get()
        if files is None or endpoint.files is None or files.folders != _folders(spec):
            return
        if endpoint.files != files.weights:
            raise _OtherWeights(endpoint.files)

    def _files_of(
        self, messages: Sequence[BaseMessage], given: Mapping[str, Any]
    ) -> tuple[_Folders, list[_Medium]] | None:
        """Return the folders and the media whose files are to be looked at for a key."""
        is_cached = isinstance(self.cache, BaseCache) or get_llm_cache() is not None
        if not is_cached or self.cache is False:
            return None
        given = checked_values(given)
        folders = ("", "")
        with suppress(ConfigurationError):  # the call itself refuses it
            folders = _folders(self._spec(given.get("model")))
        media = [found for message in messages for found in _outside(message.content)]
        is_local = any(folder.startswith("/") for folder in folders)
        return (folders, media) if media or is_local else None


def _folders(spec: ServerSpec) -> _Folders:
    return spec.source, spec.adapter or ""


def _look_at(folders: _Folders, media: Sequence[_Medium]) -> _Files:
    stamp = current_stamp(*folders)
    return _Files(folders, stamp and stamp.digest, tuple(_stamp(medium) for medium in media))


@contextmanager
def _known(files: _Files | None) -> Iterator[None]:
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


def _stamp(medium: _Medium) -> object:
    if isinstance(medium, memoryview):
        return medium.tobytes()
    try:
        found = medium.expanduser().stat()
    except (OSError, RuntimeError, ValueError):  # the call itself tells
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
