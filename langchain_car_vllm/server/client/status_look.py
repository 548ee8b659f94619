"""One look at a server's `/v1/status`, in a thread of its own, since a busy server answers late."""

import json
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.support.bounded_http import HttpError, fetch

_SECONDS = 5.0
_LONGEST = 4_000_000
_READING = ("prefill", "queued")
_COUNT = "x-requests-under-way"


class StatusLook:
    """Asks a server what it is working on. The end of the program does not wait for it.

    Attributes:
        began: When it began, by the monotonic clock.
        requests: The requests that the server works on, None while it is not known.
        drafts: Tokens that were drafted and accepted since its start, None where it drafts none.
        took: Seconds until it answered, 0 while it has not.
        unlisted: Requests that have arrived and are not in `requests`, None where the server does
            not count them.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.began = time.monotonic()
        self.requests: list[Mapping[str, Any]] | None = None
        self.drafts: tuple[int, int] | None = None
        self.took = 0.0
        self.unlisted: int | None = None
        self._thread = threading.Thread(
            target=self._ask, name="langchain_car_vllm.status", daemon=True
        )
        with suppress(RuntimeError):  # there is no thread left: a look that nothing came of
            self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait for the answer, so many seconds at most."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def is_over(self) -> bool:
        """Tell whether the server has answered, or will not."""
        return not self._thread.is_alive()

    @property
    def is_reading(self) -> bool:
        """Whether the server reads a prompt or has one in its queue, or cannot tell."""
        if self.requests is None:
            return True
        return any(entry.get("phase") in _READING for entry in self.requests)

    def ids(self) -> list[str] | None:
        """Return the server's names of the requests."""
        if self.requests is None:
            return None
        return [str(entry.get("request_id")) for entry in self.requests]

    def has_begun(self, before: Collection[str]) -> bool:
        """Tell whether the request that came after others is being answered.

        Args:
            before: The requests that were there when it was sent.
        """
        return not self.is_reading and any(
            str(entry.get("request_id")) not in before for entry in self.requests or ()
        )

    def _ask(self) -> None:
        with suppress(HttpError, ValueError, TypeError, AttributeError, RecursionError):
            response = fetch(
                f"{self._endpoint.base_url}/status",
                seconds=_SECONDS,
                most_bytes=_LONGEST,
                headers={"authorization": f"Bearer {self._endpoint.api_key}"},
                is_ours=self._endpoint.is_ours,
            )
            found: list[Any] = []
            if response.status == HTTPStatus.OK:
                told = json.loads(response.body)
                found = [e for e in told.get("requests") or () if not _is_said_twice(e)]
                self.drafts = _drafts(told.get("mtp"))
            self.took = time.monotonic() - self.began
            count = response.headers.get(_COUNT)
            self.unlisted = None if count is None else max(0, int(count) - len(found))
            # A server that has no status will never tell.
            self.requests = [entry for entry in found if isinstance(entry, dict)]


def _is_said_twice(entry: Any) -> bool:
    """Tell whether an entry is the simple engine's second one of a stream (vllm-mlx 0.6.0)."""
    return isinstance(entry, dict) and entry.get("kind") == "stream_generate"


def _drafts(found: Any) -> tuple[int, int] | None:
    drafted = found.get("attempted") if isinstance(found, dict) else None
    if not isinstance(drafted, int):
        return None
    accepted = found.get("accepted")
    return drafted, accepted if isinstance(accepted, int) else 0
