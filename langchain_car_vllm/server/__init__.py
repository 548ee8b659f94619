"""The running process: one supervised server per model for all processes of a user."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_car_vllm.endpoint import Endpoint
    from langchain_car_vllm.server.client.lease import (
        Lease,
        alease,
        directory_of,
        ensure_server,
        lease,
    )
    from langchain_car_vllm.server.client.liveness import health_ok
    from langchain_car_vllm.server.client.stop import stop_server, stop_servers
    from langchain_car_vllm.server.policy import Policy
    from langchain_car_vllm.server.spec import ServerSpec
    from langchain_car_vllm.server.supervision import lost_servers, running_servers

__all__ = [
    "Endpoint",
    "Lease",
    "Policy",
    "ServerSpec",
    "alease",
    "directory_of",
    "ensure_server",
    "health_ok",
    "lease",
    "lost_servers",
    "running_servers",
    "stop_server",
    "stop_servers",
]

_HOMES = {
    "Endpoint": "langchain_car_vllm.endpoint",
    "Lease": "langchain_car_vllm.server.client.lease",
    "Policy": "langchain_car_vllm.server.policy",
    "ServerSpec": "langchain_car_vllm.server.spec",
    "alease": "langchain_car_vllm.server.client.lease",
    "directory_of": "langchain_car_vllm.server.client.lease",
    "ensure_server": "langchain_car_vllm.server.client.lease",
    "health_ok": "langchain_car_vllm.server.client.liveness",
    "lease": "langchain_car_vllm.server.client.lease",
    "lost_servers": "langchain_car_vllm.server.supervision",
    "running_servers": "langchain_car_vllm.server.supervision",
    "stop_server": "langchain_car_vllm.server.client.stop",
    "stop_servers": "langchain_car_vllm.server.client.stop",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: a model is constructed without any of the machinery.

    So `base_url` works on systems that cannot supervise a server.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found
