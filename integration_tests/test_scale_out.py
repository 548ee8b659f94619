"""LiteLLM, as it is published, in front of two real supervised servers."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from litellm_proxy import free_port, running_litellm
from pydantic import BaseModel, Field

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import AuthenticationError
from langchain_car_vllm.server.state import read_state

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[1]


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)


def weather(city: str) -> str:
    """Get the weather in a city."""
    return city


def served(model: str, home: Path, environment: dict[str, str]) -> tuple[subprocess.Popen, Any]:
    """Run `car-vllm serve` with a run state of its own, as on a Mac of its own."""
    command = "from langchain_car_vllm.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", model, "--port", "0", "--json"],
        env={**os.environ, **environment, "CAR_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


@pytest.fixture(scope="module")
def fleet(
    litellm: Path, smollm2: str, fast_cpu: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, list[Path]]]:
    """The address of the proxy, its key, and the homes of the two servers behind it."""
    homes = [tmp_path_factory.mktemp(f"mac-{number}") for number in (1, 2)]
    servers = [served(smollm2, home, fast_cpu) for home in homes]
    (_, first), (_, second) = servers
    key, port = f"sk-{secrets.token_hex(8)}", free_port()
    keys = homes[0] / "keys.txt"
    keys.write_text(f"somebody sk-of-somebody-else\ntests {key}\n")
    environment = {
        "SERVED_MODEL": f"hosted_vllm/{first['model']}",
        "FIRST_URL": first["base_url"],
        "FIRST_KEY": Path(first["api_key_file"]).read_text().strip(),
        "SECOND_URL": second["base_url"],
        "SECOND_KEY": Path(second["api_key_file"]).read_text().strip(),
        "VIRTUAL_KEYS": str(keys),
        "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(16)}",
    }
    config = ROOT / "examples" / "scale_out" / "litellm" / "config.yaml"
    try:
        with running_litellm(litellm, config, environment, port, homes[0] / "litellm.log") as url:
            yield url, key, homes
    finally:
        for process, _ in servers:
            with process:
                process.terminate()


def answers(home: Path) -> int:
    """Return how many chat requests a server has answered."""
    logs = home.glob("run/vllm-py/*/server*.log*")
    return sum(
        log.read_text(errors="replace").count('"POST /v1/chat/completions HTTP') for log in logs
    )


def ask(llm: ChatVllmMlx, number: int) -> object:
    """Ask in one of four ways."""
    if number % 4 == 0:
        return llm.invoke(f"Name {number} colours.").text
    if number % 4 == 1:
        return "".join(chunk.text for chunk in llm.stream(f"Count to {number}."))
    if number % 4 == 2:
        bound = llm.bind_tools([weather], tool_choice="weather")
        return bound.invoke("How is the weather in Paris?").tool_calls
    return llm.with_structured_output(City).invoke("Name a city.")


def test_requests_are_spread_and_a_death_loses_nothing(fleet: tuple[str, str, list[Path]]):
    """32 requests of four kinds reach both servers; one dies under load and all are answered."""
    url, key, homes = fleet
    llm = ChatVllmMlx(
        model="local", base_url=url, api_key=key, temperature=0, max_tokens=48, max_retries=4
    )
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, llm, number) for number in range(32)]
        asked[8].result()
        (state,) = [read_state(path) for path in homes[0].glob("run/vllm-py/*/state.json")]
        assert state is not None
        assert state.server is not None
        psutil.Process(state.server.pid).kill()
        found = [future.result() for future in asked]
    assert all(found)
    counts = [answers(home) for home in homes]
    assert min(counts) > 3, counts


def test_a_wrong_key_is_refused(fleet: tuple[str, str, list[Path]]):
    """The key of the gateway is what counts; one that was taken away is refused too."""
    url, key, homes = fleet
    keys = homes[0] / "keys.txt"
    for wrong in ("sk-wrong", "", key + "x"):
        llm = ChatVllmMlx(model="local", base_url=url, api_key=wrong)
        with pytest.raises(AuthenticationError):
            llm.invoke("Hello")
    llm = ChatVllmMlx(model="local", base_url=url, api_key=key, max_tokens=4)
    assert llm.invoke("Hello").text
    keys.write_text("somebody sk-of-somebody-else\n")
    with pytest.raises(AuthenticationError):
        llm.invoke("Hello")
