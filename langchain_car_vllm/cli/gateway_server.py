"""What listens for a gateway: uvicorn, which ends silent connections and tells no tracebacks."""

import asyncio
import logging
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from langchain_car_vllm.errors import CarVllmError

_SHUTDOWN_SECONDS = 5
_SILENT_SECONDS = 30.0


class _Connection(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """Ends where no request has come: whoever can connect needs no key to hold connections."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(_SILENT_SECONDS, self._end_if_silent)

    def _end_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()


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
    return True
