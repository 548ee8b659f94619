"""What the real server's port tells whom: this machine alone, the key's holder, no web page."""

import http.client
import json
import socket
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from raw_client import RawClient

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import directory_of
from langchain_car_vllm.server.state import read_state

ORIGIN = {"Origin": "https://page.example"}
PREFLIGHT = {
    **ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
    "Access-Control-Request-Private-Network": "true",
}
OPEN = ("/health", "/docs", "/redoc", "/openapi.json")


def ask(port: int, method: str, path: str, headers: dict[str, str]) -> tuple[int, Any, str]:
    """Return the status, the headers and the text of an answer."""
    body = b"{}" if method == "POST" else None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"content-type": "application/json"} | headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def keyed_routes(port: int) -> list[tuple[str, str]]:
    """Return the method and path of all routes that the server says it has, but the open ones."""
    paths = json.loads(ask(port, "GET", "/openapi.json", {})[2])["paths"]
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, methods in paths.items()
        for method in methods
        if path not in (*OPEN, "/metrics")
    ]


def test_the_port_is_for_this_machine_and_its_key(chat: Callable[..., ChatVllmMlx]):
    """One loopback listener; without the key each route is a 401; no page of the web gets in."""
    llm = chat()
    llm.invoke("Hi.", max_tokens=1)
    port, spec = RawClient(llm).port, llm._spec(engine=llm.engine)

    state = read_state(directory_of(spec).state)
    server = psutil.Process(state.server.pid)
    listening = [
        connection.laddr
        for process in (server, *server.children(recursive=True))
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {(address.ip, address.port) for address in listening} == {("127.0.0.1", port)}
    for other in ("127.0.0.2", "::1"):
        with pytest.raises(OSError), socket.create_connection((other, port), 5):  # noqa: PT011
            pass

    routes = keyed_routes(port)
    assert {("GET", "/v1/models"), ("GET", "/v1/status")} <= set(routes)
    assert ("POST", "/v1/chat/completions") in routes
    for method, path in routes:
        for key in (None, "wrong", state.api_key + "x", ""):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            assert ask(port, method, path, headers)[0] == 401, (method, path, key)
    assert ask(port, "GET", "/metrics", {})[0] == 404
    keyed = {"Authorization": f"Bearer {state.api_key}"}
    assert ask(port, "GET", "/v1/status", keyed)[1]["x-requests-under-way"] == "0"

    for path in ("/v1/chat/completions", "/v1/models", *OPEN):
        for method, headers in (("OPTIONS", PREFLIGHT), ("GET", ORIGIN)):
            said = [name.lower() for name in ask(port, method, path, headers)[1]]
            assert not [name for name in said if name.startswith("access-control-")]

    for path in OPEN:
        assert ask(port, "GET", path, {})[0] == 200
        assert ask(port, "GET", path, {"Host": f"localhost:{port}"})[0] == 200
        status, _, text = ask(port, "GET", path, {"Host": f"page.example:{port}"})
        assert status == 421
        assert spec.served_name not in text
    assert json.loads(ask(port, "GET", "/health", {})[2])["model_name"] == spec.served_name
    llm.unload(force=True)
