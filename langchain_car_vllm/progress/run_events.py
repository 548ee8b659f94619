"""One call as LangChain sees it: its times, and its waits as custom events of its run.

Progress comes from other threads, so what a run is told by is taken at the start of the call. In a
graph of LangGraph its stream of custom data is told too.
"""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    BaseCallbackManager,
    CallbackManager,
    CallbackManagerForLLMRun,
    adispatch_custom_event,
    dispatch_custom_event,
)
from langchain_core.runnables import RunnableConfig, ensure_config

from langchain_car_vllm.progress import Progress, Stage
from langchain_car_vllm.progress.timings import Stopwatch

EVENT = "vllm_mlx_progress"
_WAITS: frozenset[Stage] = frozenset({"queued", "install", "download", "load", "prefill"})
_DEAF = (BaseCallbackHandler.on_custom_event, AsyncCallbackHandler.on_custom_event)
_Manager = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun


class Run:
    """A call, from its beginning to the end of its answer.

    Args:
        model: The model's name.
        manager: The run's callbacks, None where nobody listens.

    Attributes:
        stopwatch: Measures it.
    """

    def __init__(self, model: str, manager: _Manager | None = None) -> None:
        self.stopwatch = Stopwatch()
        self._model = model
        self._config = _event_config(manager)
        self._write = _graph_writer()
        self._has_waited = False

    def note(self, progress: Progress) -> None:
        """Measure a step of a wait, and tell it to whoever listens to the run."""
        self.stopwatch.note(progress)
        is_wait = progress.stage in _WAITS and (progress.stage != "queued" or progress.detail)
        # Every start is ready at once where the server runs; only the end of a wait is news.
        if not is_wait and not self._has_waited:
            return
        self._has_waited = bool(is_wait)
        if self._config is None and self._write is None:
            return
        event = {
            "model": self._model,
            "stage": progress.stage,
            "detail": progress.detail,
            "done": progress.done,
            "total": progress.total,
            "elapsed": progress.elapsed,
        }
        if self._write is not None:
            self._write({"type": EVENT, **event})
        if self._config is not None:
            self._dispatch(event, self._config)

    def _dispatch(self, event: dict[str, Any], config: RunnableConfig) -> None:
        dispatch_custom_event(EVENT, event, config=config)

    async def end(self, kind: type[BaseException] | None = None, *_: object) -> None:
        """Wait until everybody was told, or for nobody where the call was cancelled."""


class AsyncRun(Run):
    """A call on an event loop, where its callbacks are told too."""

    def __init__(self, model: str, manager: _Manager | None = None) -> None:
        super().__init__(model, manager)
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._pending: list[Future[None]] = []

    def _dispatch(self, event: dict[str, Any], config: RunnableConfig) -> None:
        telling = self._tell(event, config)
        try:
            self._pending.append(asyncio.run_coroutine_threadsafe(telling, self._loop))
        except RuntimeError:  # the loop is closed
            telling.close()

    async def _tell(self, event: dict[str, Any], config: RunnableConfig) -> None:
        async with self._turn:  # it lets in one after the other, in their order
            await adispatch_custom_event(EVENT, event, config=config)

    async def end(self, kind: type[BaseException] | None = None, *_: object) -> None:
        """Wait until everybody was told, or for nobody where the call was cancelled."""
        pending, self._pending = self._pending, []
        if kind is not None and not issubclass(kind, Exception):
            for telling in pending:
                telling.cancel()
        elif pending:
            await asyncio.gather(*map(asyncio.wrap_future, pending))


def _event_config(manager: _Manager | None) -> RunnableConfig | None:
    """Return the config to dispatch a run's events with, None where no handler takes them."""
    if manager is None:
        return _parent_config()
    if not any(map(_listens, manager.handlers)):
        return None
    is_async = isinstance(manager, AsyncCallbackManagerForLLMRun)
    told = (AsyncCallbackManager if is_async else CallbackManager)(
        handlers=list(manager.handlers),
        parent_run_id=manager.run_id,
        tags=list(manager.tags),
        metadata=dict(manager.metadata),
    )
    return RunnableConfig(callbacks=told)


def _parent_config() -> RunnableConfig | None:
    """Return the config of the run around this call: LangChain gives a stream none of its own."""
    callbacks = ensure_config().get("callbacks")
    if not isinstance(callbacks, BaseCallbackManager) or callbacks.parent_run_id is None:
        return None
    told = any(map(_listens, callbacks.handlers))
    return RunnableConfig(callbacks=callbacks) if told else None


def _listens(handler: BaseCallbackHandler) -> bool:
    return not handler.ignore_custom_event and type(handler).on_custom_event not in _DEAF


def _graph_writer() -> Callable[[Any], None] | None:
    """Return what writes to the custom stream of the graph that this is called in, if any."""
    module = sys.modules.get("langgraph.config")
    if module is None:
        return None
    with suppress(RuntimeError, LookupError):
        writer = module.get_stream_writer()
        context = copy_context()  # it looks there for its place in the graph
        return lambda chunk: context.copy().run(writer, chunk)
    return None
