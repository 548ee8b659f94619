"""What listens for a gateway: uvicorn, which ends silent connections and tells no tracebacks."""

import asyncio
import logging
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from langchain_car_vllm.errors import CarVllmError
from langchain_car_vllm.gateway import HAS_KEY
from langchain_car_vllm.support.os_limits import most_files

_SHUTDOWN_SECONDS = 5
_SILENT_SECONDS = 30.0
_UNREAD_SECONDS = 600.0
_MOST_CONNECTIONS = 4096
_MOST_AT_ONE_LOOK, _MOST_IN_QUEUE = 32, 128
_NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 0\r\n\r\n"
)

# uvicorn's warnings are about what anybody who can connect may send: the rest goes untold.
_WARNINGS = {
    "Invalid HTTP request received.": (
        "received something other than HTTP, as from a program that uses https:// instead of "
        "http://; this is logged only once"
    ),
    "Unsupported upgrade request.": (
        "a program asked for another protocol, such as WebSocket, and gets HTTP; this is logged "
        "only once"
    ),
}


class _Crowd:
    """The connections of one gateway, who came or asked first in front.

    Attributes:
        most: How many there may be.
        row: The connections.
    """

    def __init__(self) -> None:
        files = most_files()
        # The other half is for the server, for locks and for what comes at one look.
        half = _MOST_CONNECTIONS if files is None else files // 2
        self.most = max(1, min(half, _MOST_CONNECTIONS))
        self.row: dict[_Connection, None] = {}

    def make_room(self) -> bool:
        """End the first connection that gives way, and return whether there was one."""
        found = next((connection for connection in self.row if connection.gives_way), None)
        if found is not None:
            del self.row[found]
            found.transport.abort()
        return found is not None


class _Connection(H11Protocol):
    """Ends where no request comes or no answer is read: to hold connections needs no key.

    httptools, which uvicorn prefers where it is installed, takes headers of any length into memory.
    """

    crowd: _Crowd
    _silence: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    @property
    def gives_way(self) -> bool:
        """Whether no request with the key is under way."""
        is_idle = self.cycle is None or self.cycle.response_complete
        return is_idle or not self.scope["state"].get(HAS_KEY)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.crowd.most and not self.crowd.make_room():
            transport.write(_NO_ROOM)
            transport.close()
            return
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
        self.crowd.row.pop(self, None)
        super().connection_lost(exc)

    def _await_request(self) -> None:
        _cancel(self._silence)
        self.crowd.row.pop(self, None)  # it goes to the end
        self.crowd.row[self] = None
        self._silence = self.loop.call_later(_SILENT_SECONDS, self._end_if_silent, self.cycle)

    def _end_if_silent(self, last: Any) -> None:
        if self.cycle is last:
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class _Server(uvicorn.Server):
    """Has a queue for bursts, of which the loop takes a few at a time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():  # asyncio has one bound for both
            listener.listen(_MOST_IN_QUEUE)


def gateway_server(gateway: Any) -> uvicorn.Server:
    """Return what answers for a gateway, to be given its listener."""
    crowd = _Crowd()
    config = uvicorn.Config(
        gateway,
        http=type("Connection", (_Connection,), {"crowd": crowd}),
        backlog=_MOST_AT_ONE_LOOK,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        server_header=False,
        ws="none",  # the server speaks no other protocol
    )
    logging.getLogger("uvicorn.error").filters[:] = [_Sentences()]
    return _Server(config)


class _Sentences(logging.Filter):
    """Tells what happens in sentences, and once what anybody who can connect may repeat."""

    def __init__(self) -> None:
        super().__init__()
        self._untold = dict(_WARNINGS)

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell of an answer that ended early without the way through the program."""
        if record.levelno == logging.WARNING:
            record.msg = self._untold.pop(str(record.msg), "")
            return bool(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, CarVllmError):
            record.msg, record.args, record.exc_info = f"an answer was cut short: {error}", (), None
        # uvicorn has answered already what broke the rules of HTTP within its body.
        return not isinstance(error, h11.LocalProtocolError)
