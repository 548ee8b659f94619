"""LiteLLM in front of one real batching server: it hides the engine, and its `/health` costs."""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from litellm_proxy import free_port, running_litellm
from pydantic import BaseModel, Field

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.server import Endpoint, ServerSpec, lease

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


KEY = f"sk-{secrets.token_hex(16)}"


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)


def weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It is sunny in {city}."


def population(city: str) -> str:
    """Get the number of people in a city."""
    return f"{len(city)} millions"


@pytest.fixture(scope="module")
def endpoint(smollm2: str, fast_cpu: dict[str, str]) -> Iterator[Endpoint]:
    """SmolLM2 on the batching engine."""
    environment = tuple(fast_cpu.items())
    spec = ServerSpec(smollm2, smollm2, engine="batched", server_env=environment)
    with lease(spec) as held:
        yield held.endpoint


@pytest.fixture(scope="module")
def proxy(
    litellm: Path, endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The address of a proxy, and its log."""
    folder = tmp_path_factory.mktemp("litellm")
    deployment = {
        "model": f"hosted_vllm/{endpoint.served_model}",
        "api_base": endpoint.base_url,
        "api_key": endpoint.api_key,
    }
    settings = {
        "model_list": [{"model_name": "local", "litellm_params": deployment}],
        "litellm_settings": {"telemetry": False, "request_timeout": 600},
    }
    config, log = folder / "config.yaml", folder / "litellm.log"
    config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML too
    with running_litellm(litellm, config, {"LITELLM_MASTER_KEY": KEY}, free_port(), log) as url:
        yield url, log


@pytest.fixture
def llm(proxy: tuple[str, Path]) -> ChatVllmMlx:
    """A model that knows the address alone."""
    return ChatVllmMlx(model="local", base_url=proxy[0], api_key=KEY, temperature=0, max_tokens=48)


def answered(endpoint: Endpoint) -> int:
    """Return how many chat requests have reached the server."""
    assert endpoint.log_path is not None
    log = endpoint.log_path.read_text(encoding="utf-8", errors="replace")
    return log.count('"POST /v1/chat/completions HTTP')


WAYS: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda chain: chain.invoke("Name a city."),
    "stream": lambda chain: list(chain.stream("Name a city."))[-1],
    "ainvoke": lambda chain: asyncio.run(chain.ainvoke("Name a city.")),
    "batch": lambda chain: chain.batch(["Name a city."])[0],
}


def test_constrained_answers_eight_of_eight(llm: ChatVllmMlx, endpoint: Endpoint):
    """Each is the object, and the gateway's loss of the grammar costs one request in all."""
    before = answered(endpoint)
    chain = llm.with_structured_output(City)
    found = [WAYS[way](chain) for _ in range(2) for way in WAYS]
    assert [type(city) for city in found] == [City] * 8
    assert answered(endpoint) - before <= 9


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([weather], "any"),
        ([weather], "weather"),
        ([weather, population], "any"),
        ([weather, population], "population"),
    ],
)
def test_forced_calls(llm: ChatVllmMlx, tools: list[Callable[..., str]], choice: str):
    """One of the tools, or the one that is named, is called with what it takes."""
    names = [tool.__name__ for tool in tools] if choice == "any" else [choice]
    call = llm.bind_tools(tools, tool_choice=choice).invoke("How is Paris?").tool_calls[0]
    assert call["name"] in names
    assert set(call["args"]) == {"city"}
    assert call["id"]


def test_an_agent_ends_in_an_object(llm: ChatVllmMlx):
    """Tools and a response format together are split as on a server of our own."""
    agent = create_agent(llm, [weather], response_format=City)
    found = agent.invoke({"messages": [("user", "Name a city.")]}, {"recursion_limit": 8})
    assert isinstance(found["structured_response"], City)


def test_a_call_costs_one_request(llm: ChatVllmMlx, proxy: tuple[str, Path], endpoint: Endpoint):
    """LiteLLM asks every deployed model when it is asked for its health: it is not."""
    llm.invoke("Hello.", max_tokens=2)
    before = answered(endpoint)
    for _ in range(3):
        llm.invoke("Hello.", max_tokens=2)
    assert list(llm.stream("Hello.", max_tokens=2))
    assert answered(endpoint) - before == 4
    log = proxy[1].read_text(encoding="utf-8", errors="replace")
    assert "GET /health HTTP" not in log
    assert "GET /v1/models HTTP" in log
