"""The wrapped `ChatOpenAI` of each endpoint, made at the first call to it.

Unlike `wire.chat`, which a first call imports in a thread, this module imports no openai: an event
loop can look here at any time.
"""

from typing import TYPE_CHECKING

from langchain_car_vllm.endpoint import Endpoint, Headers
from langchain_car_vllm.support.process_state import import_whole, reset_after_fork

if TYPE_CHECKING:
    from langchain_car_vllm.wire.chat import WireChat

_Key = tuple[Endpoint, Headers, int]
_MOST = 64
_chats: dict[_Key, "WireChat"] = {}


def cached_chat(endpoint: Endpoint, headers: Headers, refusals: int) -> "WireChat | None":
    """Return what `chat_for` has made for these arguments, None for nothing; never blocks."""
    return _chats.get((endpoint, headers, refusals))


def chat_for(endpoint: Endpoint, headers: Headers, refusals: int) -> "WireChat":
    """Return the wrapped ChatOpenAI for an endpoint, the same one for the same arguments.

    Args:
        endpoint: Whom it talks to.
        headers: Sent with every request.
        refusals: How often a request is repeated that the server refused for the moment.
    """
    key = (endpoint, headers, refusals)
    found = _chats.get(key)
    if found is None:
        import_whole("langchain_car_vllm.wire.chat")
        from langchain_car_vllm.wire.chat import build  # noqa: PLC0415 - imports openai

        while len(_chats) >= _MOST:
            _chats.pop(next(iter(_chats)), None)
        found = _chats.setdefault(key, build(*key))
    return found


# A child's requests would go out over its parent's connections.
reset_after_fork(_chats.clear)
