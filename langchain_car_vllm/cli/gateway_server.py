"""What listens for a gateway: uvicorn, which ends silent connections and tells no tracebacks."""

import asyncio
import logging
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from langchain_car_vllm.errors import CarVllmError

_SHUTDOWN_SECONDS = 5
_SILENT_SECONDS = 30.0
_UNREAD_SECONDS = 600.0


class _Connection(H11Protocol):
    """Ends where no request comes or no answer is read: to hold connections needs no key.

    httptools, which uvicorn prefers where it is installed, takes headers of any length into memory.
    """

    _silence: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def on_response_complete(self) -> None:
        self._await_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        _cancel(self._unread)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._silence)
        _cancel(self._unread)
        super().connection_lost(exc)

    def _await_request(self) -> None:
        _cancel(self._silence)
        self._silence = self.loop.call_later(_SILENT_SECONDS, self._end_if_silent, self.cycle)

    def _end_if_silent(self, last: Any) -> None:
        if self.cycle is last:
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def gateway_server(gateway: Any) -> uvicorn.Server:
    """Return what answers for a gateway, to be given its listener."""
    config = uvicorn.Config(
        gateway,
        http=_Connection,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        server_header=False,
        ws="none",  # the server speaks no other protocol
    )
    logging.getLogger("uvicorn.error").addFilter(_tell_in_a_sentence)
    return uvicorn.Server(config)


def _tell_in_a_sentence(record: logging.LogRecord) -> bool:
    """Tell of an answer that ended early without the way through the program."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, CarVllmError):
        record.msg, record.args, record.exc_info = f"an answer was cut short: {error}", (), None
    # uvicorn has answered already what broke the rules of HTTP within its body.
    return not isinstance(error, h11.LocalProtocolError)
