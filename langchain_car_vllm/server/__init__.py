"""The running process: one supervised server per model for all processes of a user."""

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.server.ensure import Lease, alease, directory_of, ensure_server, lease
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
