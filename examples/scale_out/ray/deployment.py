"""Ray Serve over several Macs: each replica holds one supervised server.

    pip install "ray[serve]" langchain-car-vllm          # on each machine
    export RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING=0   # on each: see below
    ray start --head                                     # on the first
    ray start --address=FIRST:6379                       # on the others
    MODEL=vllm-mlx/qwen3.6-35b-a3b:4bit API_KEY=sk-... serve run deployment:app

Programs then use `ChatVllmMlx(model=MODEL, base_url="http://FIRST:8000/v1", api_key="sk-...")`. A
Mac gets one replica at most: all programs on it share one server anyway, which answers several
requests at once. Ray's ingress would send all requests to the server of its own Mac until that is
full; the variable has it spread them. Ray adds replicas while requests queue up, and moves them off
a node that leaves.
"""

import asyncio
import os

from fastapi import FastAPI, Request
from ray import serve
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from langchain_car_vllm.gateway import Gateway
from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.server import ServerSpec

MODEL = os.environ.get("MODEL", "vllm-mlx/qwen3.6-35b-a3b:4bit")
AT_ONCE = 4
"""Answers of one server at once, see `car-vllm plan MODEL --agents 4`."""
api = FastAPI()


class Forwarded(Response):
    """An answer that the gateway gives, piece by piece."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI wants it."""
        await self._gateway(scope, receive, send)


@serve.deployment(
    max_ongoing_requests=4 * AT_ONCE,
    max_replicas_per_node=1,
    autoscaling_config={
        "min_replicas": int(os.environ.get("MIN_REPLICAS", "1")),
        "max_replicas": int(os.environ.get("MAX_REPLICAS", "8")),
        "target_ongoing_requests": AT_ONCE,
    },
    # A first start downloads the model: a replica is there once its server is.
    health_check_period_s=10,
    health_check_timeout_s=30,
    graceful_shutdown_timeout_s=600,
)
@serve.ingress(api)
class Replica:
    """One supervised server, kept from stopping for idleness while this replica lives."""

    def __init__(self, model: str, api_key: str) -> None:
        found = parse_model_id(model)
        # Without a keep-alive of its own, the server stops when the replica does.
        self._gateway = Gateway(ServerSpec(found.source, found.name, keep_alive=0), api_key)
        self._is_up = asyncio.Event()
        self._is_over = asyncio.Event()
        self._holding: asyncio.Task[None] | None = None

    async def reconfigure(self, _config: object) -> None:
        """Start the server; Ray waits for it before it sends requests here."""
        self._holding = self._holding or asyncio.create_task(self._hold())
        up = asyncio.create_task(self._is_up.wait())
        await asyncio.wait({up, self._holding}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._holding.done():
            self._holding.result()

    async def check_health(self) -> None:
        """Have Ray replace this replica once its server cannot be had; a crash is mended here."""
        if self._holding is not None and self._holding.done():
            self._holding.result()

    @api.api_route("/{path:path}", methods=["GET", "POST"])
    async def answer(self, request: Request) -> Response:  # noqa: ARG002
        """Pass any request of OpenAI's or Anthropic's API on."""
        return Forwarded(self._gateway)

    async def _hold(self) -> None:
        async with self._gateway.hold():
            self._is_up.set()
            await self._is_over.wait()


app = Replica.options(user_config={}).bind(MODEL, os.environ.get("API_KEY", "sk-local"))
