"""What the server does with a request that takes long: queued, prefill or generating.

A request whose answer begins within two seconds costs next to nothing. For others one thread of
the process asks the server's `/v1/status` once a second; it ends when nobody waits any more.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.progress import OnProgress, Progress, Stage, Teller
from langchain_car_vllm.progress.timings import Stopwatch
from langchain_car_vllm.support.process_state import ProcessLock, reset_after_fork
from langchain_car_vllm.wire.transport.remote import get_json, lacks_status, note_missing_status

log = logging.getLogger("langchain_car_vllm")

_PATIENCE = 2.0
_PAUSE = 1.0
_SAME = 1.5
"""Seconds by which the server's clock of a request may differ from ours."""
_STAGES: Mapping[str, Stage] = {
    "queued": "queued",
    "prefill": "prefill",
    "generation": "generating",
}


class Watch:
    """One request, from before it is sent until its answer begins.

    Args:
        endpoint: Who answers.
        on_progress: Called with each change, from another thread, once it takes long.
        stopwatch: Measures the call.
    """

    def __init__(
        self, endpoint: Endpoint, on_progress: OnProgress, stopwatch: Stopwatch | None = None
    ) -> None:
        self.endpoint = endpoint
        self._stopwatch = stopwatch
        self._on_progress = on_progress
        self._mutex = ProcessLock()
        self._began = time.monotonic()
        self._teller = Teller(on_progress)
        self._is_over = False
        self.due = self._began + _PATIENCE
        if not lacks_status(endpoint):
            _watcher.add(self)

    def mark_answered(self) -> None:
        """The answer has begun: nothing is waited for any more."""
        if self._is_over:
            return
        self.end()
        if self._teller.stage not in (None, "generating"):
            waited = time.monotonic() - self._began
            self._on_progress(Progress("generating", f"it began after {waited:.0f} s"))

    def end(self) -> None:
        """Stop watching; nothing is told afterwards. May be called again and again."""
        if not self._is_over:
            _watcher.remove(self)
            with self._mutex:
                self._is_over = True

    def tell(self, status: Mapping[str, Any]) -> None:
        """Tell the user what the server's status says of this request, if that is news."""
        with self._mutex:
            now = time.monotonic()
            self.due = now + _PAUSE
            found = None
            # Other servers mean other things by it, which say nothing of this request.
            with suppress(ArithmeticError, AttributeError, TypeError, ValueError):
                entry = entry_of(status, now - self._began)
                found = progress_of(status, entry, in_order=bool(self.endpoint.reads_in_order))
                if entry is not None and self._stopwatch is not None:
                    _measure(entry, self._stopwatch)
            if not self._is_over and found is not None:
                self._teller.tell(found)


def entry_of(status: Mapping[str, Any], elapsed: float) -> Mapping[str, Any] | None:
    """Return what a server's status says of a request that it got `elapsed` seconds ago.

    It names requests by numbers of its own (vllm-mlx 0.6.0), so the one that is as old is taken for
    ours. The simple engine, which answers one after the other, tells no ages.

    Returns:
        None where it tells nothing.
    """
    entries = _entries(status)
    aged = [entry for entry in entries if entry.get("elapsed_s")]
    entry = min(aged or entries, key=lambda e: abs(_age(e) - elapsed), default=None)
    return None if entry is None or (aged and abs(_age(entry) - elapsed) > _SAME) else entry


def progress_of(
    status: Mapping[str, Any], entry: Mapping[str, Any] | None, *, in_order: bool = False
) -> Progress | None:
    """Return what a server's status says of a request.

    Args:
        status: The status.
        entry: What of it is about the request, None where nothing is.
        in_order: Whether the server reads one prompt after the other.

    Returns:
        None where it tells nothing.
    """
    waiting = int(status.get("num_waiting") or 0)
    if waiting and not any(entry["phase"] == "queued" for entry in _entries(status)):
        return Progress("queued", f"requests waiting: {waiting}")
    if entry is None:
        return None
    stage = _STAGES[entry["phase"]]
    if stage == "queued":
        return Progress(stage, f"requests being answered: {int(status.get('num_running') or 0)}")
    if stage == "generating":
        return Progress(stage)
    read = (each for each in _entries(status) if _STAGES[each["phase"]] == stage)
    if in_order and any(_age(each) > _age(entry) for each in read):
        return Progress("queued", "waiting while another request's prompt is read")
    total, cached = int(entry.get("prompt_tokens") or 0), int(entry.get("cached_tokens") or 0)
    detail = f"{total:,} tokens" + (f", {cached:,} of them from the cache" if cached else "")
    return Progress(stage, detail if total else "", cached, total or None)


def _entries(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [entry for entry in status.get("requests") or () if entry.get("phase") in _STAGES]


def _measure(entry: Mapping[str, Any], stopwatch: Stopwatch) -> None:
    """Note what only the server can tell: what its cache held, and when it was done reading."""
    prompt, cached = entry.get("prompt_tokens"), entry.get("cached_tokens")
    if prompt and cached:  # 0 is what the multimodal engine always says (vllm-mlx 0.6.0)
        stopwatch.cached_tokens = int(prompt), int(cached)
    if _age(entry) and entry.get("ttft_s"):
        stopwatch.server_first_token = float(entry["ttft_s"])


def _age(entry: Mapping[str, Any]) -> float:
    return float(entry.get("elapsed_s") or 0.0)


class _Watcher:
    """The thread that asks, alive only while a request is under way."""

    def __init__(self) -> None:
        self._mutex = ProcessLock()
        self._watches: set[Watch] = set()
        self._is_running = False

    def add(self, watch: Watch) -> None:
        with self._mutex:
            self._watches.add(watch)
            if self._is_running:
                return
            # A daemon: the end of the program waits for nobody's answer. Where there is no thread
            # left, the wait is not told, and the next request tries again.
            with suppress(RuntimeError):
                name = "langchain_car_vllm.watch"
                threading.Thread(target=self._run, name=name, daemon=True).start()
                self._is_running = True

    def remove(self, watch: Watch) -> None:
        with self._mutex:
            self._watches.discard(watch)

    def _run(self) -> None:
        while True:
            with self._mutex:
                if not self._watches:
                    self._is_running = False
                    return
                watches = list(self._watches)
            now = time.monotonic()
            due = [watch for watch in watches if watch.due <= now]
            for endpoint in {watch.endpoint for watch in due}:
                self._ask(endpoint, [watch for watch in due if watch.endpoint == endpoint])
            if not due:
                time.sleep(min(watch.due for watch in watches) - now)

    def _ask(self, endpoint: Endpoint, watches: Iterable[Watch]) -> None:
        code, status = get_json(
            endpoint.base_url, "/status", endpoint.api_key, is_ours=endpoint.is_ours
        )
        is_told = code == HTTPStatus.OK and status is not None
        for watch in watches:
            try:
                watch.tell(status if is_told and status is not None else {})
            except Exception:
                log.exception("`on_progress` failed; the request continues")
                self.remove(watch)
        if code is not None and not is_told:  # a server that has no status never will
            note_missing_status(endpoint)
            for watch in watches:
                self.remove(watch)


_watcher = _Watcher()


def _forget() -> None:
    global _watcher  # noqa: PLW0603 - a child has no thread of its parent's
    _watcher = _Watcher()


reset_after_fork(_forget)
