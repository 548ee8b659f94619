"""What the server shows without a key is for this machine's own names alone."""

import ipaddress
from typing import Any

from .mend import find, mend

_KEYED = "/v1/"
_MISDIRECTED = 421
_TEXT = b"this address is not served under that name"


class OwnHosts:
    """Refuses requests for open pages that were sent to another name than this machine's own.

    A web page can have its own name lead to a loopback address, and then read what needs no key.
    An address of numbers, or `localhost`, cannot be anybody else's name.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, as ASGI 3 wants it."""
        is_open = scope["type"] == "http" and not scope["path"].startswith(_KEYED)
        if is_open and not all(map(_is_own, _hosts(scope))):
            headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(_TEXT))]
            start = {"type": "http.response.start", "status": _MISDIRECTED, "headers": headers}
            await send(start)
            await send({"type": "http.response.body", "body": _TEXT})
            return
        await self._app(scope, receive, send)


def _hosts(scope: Any) -> "list[str]":
    return [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]


def _is_own(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@mend("open-pages", "vllm_mlx.server", "vllm-mlx 0.6.0")
def _refuse_other_names(module: Any) -> None:
    """Put the look at the name in front of the server, which web pages then cannot read."""
    app = find(module, "app")
    find(app, "add_middleware", "middleware_class")(OwnHosts)


MENDS = (_refuse_other_names,)
