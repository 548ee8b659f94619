"""How connections and requests end."""

from typing import Any

from .mend import Mend, find

_GRACEFUL_SECONDS = 2
_FAILURE = 500


def _end_requests_on_shutdown(module: Any) -> None:
    """Give requests under way two seconds when the server is to end."""
    config = find(module, "Config")
    initialise = find(config, "__init__", "timeout_graceful_shutdown")

    def patched(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        if self.timeout_graceful_shutdown is None:
            self.timeout_graceful_shutdown = _GRACEFUL_SECONDS

    config.__init__ = patched


def _close_after_failure(module: Any) -> None:
    """Say `connection: close` with every 500: uvicorn closes the connection, said or not."""
    cycle = find(module, "RequestResponseCycle")
    send = find(cycle, "send", "message")

    async def patched(self: Any, message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] >= _FAILURE:
            headers = [pair for pair in message.get("headers", ()) if pair[0] != b"connection"]
            message = {**message, "headers": [*headers, (b"connection", b"close")]}
        await send(self, message)

    cycle.send = patched


MENDS = (
    Mend(
        name="graceful-shutdown",
        module="uvicorn.config",
        tested="uvicorn 0.54",
        purpose="end requests under way on shutdown, or it waits for them forever and the prefix "
        "cache is never saved",
        apply=_end_requests_on_shutdown,
    ),
    Mend(
        name="connection-after-failure",
        module="uvicorn.protocols.http.h11_impl",
        tested="uvicorn 0.54",
        purpose="announce that the connection is closed after a failure, so that nobody reuses it",
        apply=_close_after_failure,
    ),
    Mend(
        name="connection-after-failure-httptools",
        module="uvicorn.protocols.http.httptools_impl",
        tested="uvicorn 0.54",
        purpose="the same for uvicorn's other parser",
        apply=_close_after_failure,
    ),
)
