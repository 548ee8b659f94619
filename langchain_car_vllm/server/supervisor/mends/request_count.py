"""How many requests have arrived, beside those that the engine knows of."""

from typing import Any

from .mend import find, mend

_STATUS = "/v1/status"
HEADER = b"x-requests-under-way"


class RequestCount:
    """Counts the requests from their arrival to their end, and tells it with the status.

    The status lists what the engine has. A prompt that is still being parsed, checked and rendered
    is not in it, and would be read although its client was killed long ago.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._count = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, as ASGI 3 wants it."""
        if scope["type"] == "http" and scope["method"] == "POST":
            self._count += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._count -= 1
        elif scope["type"] == "http" and scope["path"] == _STATUS:
            await self._app(scope, receive, self._telling(send))
        else:
            await self._app(scope, receive, send)

    def _telling(self, send: Any) -> Any:
        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (HEADER, b"%d" % self._count)]
                message = {**message, "headers": headers}
            await send(message)

        return tell


@mend("request-count", "vllm_mlx.server", "vllm-mlx 0.6.0")
def _count_requests(module: Any) -> None:
    """Put the counter in front of the server, which tells with its status how many have arrived.

    The engine has not been given all of them yet.
    """
    app = find(module, "app")
    find(app, "add_middleware", "middleware_class")(RequestCount)


MENDS = (_count_requests,)
