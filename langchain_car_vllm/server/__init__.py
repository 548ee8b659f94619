"""The running process: one supervised server per model for all processes of a user."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_car_vllm.endpoint import Endpoint
    from langchain_car_vllm.server.ensure import (
        Lease,
        alease,
        directory_of,
        ensure_server,
        lease,
    )
    from langchain_car_vllm.server.policy import Policy
    from langchain_car_vllm.server.probe import health_ok
    from langchain_car_vllm.server.spec import ServerSpec
    from langchain_car_vllm.server.stopping import running_servers, stop_server

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
    "running_servers",
    "stop_server",
]

_HOMES = {
    "Endpoint": "langchain_car_vllm.endpoint",
    "Policy": "langchain_car_vllm.server.policy",
    "ServerSpec": "langchain_car_vllm.server.spec",
    "health_ok": "langchain_car_vllm.server.probe",
    "running_servers": "langchain_car_vllm.server.stopping",
    "stop_server": "langchain_car_vllm.server.stopping",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: a model is constructed without any of the machinery."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "langchain_car_vllm.server.ensure")
    globals()[name] = found = getattr(import_module(home), name)
    return found
