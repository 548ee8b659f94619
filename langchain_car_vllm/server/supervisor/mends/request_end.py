"""How connections and requests end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from .mend import find, find_names, mend

_GRACEFUL_SECONDS = 2
_FAILURE = 500


@mend("graceful-shutdown", "uvicorn.config", "uvicorn 0.54")
def _end_requests_on_shutdown(module: Any) -> None:
    """Give requests under way two seconds when the server is to end.

    By itself it waits for them forever, and the prefix cache is never saved.
    """
    config = find(module, "Config")
    initialise = find(config, "__init__", "timeout_graceful_shutdown")

    def patched(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        if self.timeout_graceful_shutdown is None:
            self.timeout_graceful_shutdown = _GRACEFUL_SECONDS

    config.__init__ = patched


@mend("connection-after-failure", "uvicorn.protocols.http.h11_impl", "uvicorn 0.54")
def _close_after_failure(module: Any) -> None:
    """Say `connection: close` with every 500, so that nobody uses it again.

    uvicorn closes the connection, said or not.
    """
    cycle = find(module, "RequestResponseCycle")
    send = find(cycle, "send", "message")

    async def patched(self: Any, message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] >= _FAILURE:
            headers = [pair for pair in message.get("headers", ()) if pair[0] != b"connection"]
            message = {**message, "headers": [*headers, (b"connection", b"close")]}
        await send(self, message)

    cycle.send = patched


@mend("abandoned-generations", "vllm_mlx.engine.simple", "vllm-mlx 0.6.0")
def _end_abandoned_generations(module: Any) -> None:
    """Close a generation and forget it although its client goes away more than once.

    Starlette cancels a request again and again until it has ended. The second time meets the simple
    engine while it awaits the end of the generation: that is then neither closed nor taken off the
    list of what is running.
    """
    engine = find(module, "SimpleEngine")
    acquire = find(engine, "_acquire_generation_slot", "request_id")
    submit = find(engine, "_submit_to_generation_worker", "worker", "fn", "during_shutdown")

    @asynccontextmanager
    async def acquire_and_forget(self: Any, request_id: str) -> AsyncIterator[None]:
        async with acquire(self, request_id):
            try:
                yield
            finally:
                self._active_requests.pop(request_id, None)

    async def submit_surely(
        self: Any, worker: Any, fn: Any, /, *args: Any, during_shutdown: bool = False
    ) -> Any:
        try:
            return await submit(self, worker, fn, *args, during_shutdown=during_shutdown)
        except asyncio.CancelledError:
            if during_shutdown:
                with suppress(RuntimeError):  # the worker has ended, and all that it owned
                    worker.submit(fn, *args)
            raise

    engine._acquire_generation_slot = acquire_and_forget
    engine._submit_to_generation_worker = submit_surely


@mend("aborts-of-waiting-requests", "vllm_mlx.scheduler", "vllm-mlx 0.6.0")
def _abort_what_waits(module: Any) -> None:
    """Abort a request that waits although the engine has forgotten it.

    The engine forgets a request at once when its client goes away, and aborts it before its next
    step, which does not find one then that still waits: it would be answered to its end.
    """
    scheduler = find(module, "Scheduler")
    abort = find(scheduler, "_do_abort_request", "request_id")

    def patched(self: Any, request_id: str) -> Any:
        if request_id in self.requests:
            return abort(self, request_id)
        self.requests |= {r.request_id: r for r in list(self.waiting) if r.request_id == request_id}
        try:
            return abort(self, request_id)
        finally:
            self.requests.pop(request_id, None)

    scheduler._do_abort_request = patched


@mend("aborts-of-last-requests", "vllm_mlx.mllm_scheduler", "vllm-mlx 0.6.0")
def _let_go_of_the_last(module: Any) -> None:
    """Take one more step where the client of the last request has gone, and give its memory back.

    A request leaves the batch of a model that takes media in the step after its abort, and for
    vllm-mlx 0.6.0 there is no step without requests: what had been read for it stayed in memory
    until somebody asked again.
    """
    scheduler = find(module, "MLLMScheduler")
    has_requests = find(scheduler, "has_requests")
    find_names(find(scheduler, "step"), "batch_generator", "process_pending_removals")
    generator = find(module, "MLLMBatchGenerator")
    remove = find(generator, "process_pending_removals")
    find_names(remove, "_pending_removal_uids")

    def has_work(self: Any) -> bool:
        removed = getattr(self.batch_generator, "_pending_removal_uids", None)
        return bool(removed) or has_requests(self)

    def removed_and_cleared(self: Any) -> None:
        is_pending = bool(self._pending_removal_uids)
        remove(self)
        if is_pending:
            module.mx.clear_cache()

    scheduler.has_requests = has_work
    generator.process_pending_removals = removed_and_cleared


MENDS = (
    _end_requests_on_shutdown,
    _close_after_failure,
    _close_after_failure._replace(
        name="connection-after-failure-httptools",
        module="uvicorn.protocols.http.httptools_impl",
        tested="uvicorn 0.54",
    ),
    _end_abandoned_generations,
    _abort_what_waits,
    _let_go_of_the_last,
)
