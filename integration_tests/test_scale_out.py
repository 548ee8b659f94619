"""LiteLLM, as it is published, in front of two real supervised servers."""

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from litellm_proxy import free_port, running_litellm
from pydantic import BaseModel, Field

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import AuthenticationError, CarVllmError
from langchain_car_vllm.server.state import read_state

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]
LITELLM = Path(__file__).parents[1] / "examples" / "scale_out" / "litellm"


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


class Server(NamedTuple):
    """One of two servers, each as on a Mac of its own."""

    home: Path
    published: dict[str, str]

    @property
    def key(self) -> str:
        """The key that `serve` made."""
        return Path(self.published["api_key_file"]).read_text().strip()


@pytest.fixture(scope="module")
def servers(
    smollm2: str, fast_cpu: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    """Two supervised servers, each with a home of its own."""
    homes = [tmp_path_factory.mktemp(f"mac-{number}") for number in (1, 2)]
    started = [served(smollm2, home, fast_cpu) for home in homes]
    try:
        yield [Server(home, told) for home, (_, told) in zip(homes, started, strict=True)]
    finally:
        for process, _ in started:
            with process:
                process.terminate()


@pytest.fixture(scope="module")
def fleet(litellm: Path, servers: list[Server]) -> Iterator[tuple[str, str, list[Path]]]:
    """The address of the proxy, its key, and the homes of the two servers behind it."""
    first, second = servers
    key, port = f"sk-{secrets.token_hex(8)}", free_port()
    keys = first.home / "keys.txt"
    keys.write_text(f"somebody sk-of-somebody-else\ntests {key}\n")
    environment = {
        "SERVED_MODEL": f"hosted_vllm/{first.published['model']}",
        "FIRST_URL": first.published["base_url"],
        "FIRST_KEY": first.key,
        "SECOND_URL": second.published["base_url"],
        "SECOND_KEY": second.key,
        "VIRTUAL_KEYS": str(keys),
        "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(16)}",
    }
    with running_litellm(
        litellm, LITELLM / "config.yaml", environment, port, first.home / "litellm.log"
    ) as url:
        yield url, key, [server.home for server in servers]


def answers(home: Path) -> int:
    """Return how many chat requests a server has answered."""
    logs = home.glob("run/vllm-py/*/server*.log*")
    return sum(
        log.read_text(errors="replace").count('"POST /v1/chat/completions HTTP') for log in logs
    )


def read_stream(llm: ChatVllmMlx, question: str) -> str:
    """Return a whole streamed answer; nobody but its reader can begin one anew that broke off."""
    for _ in range(4):
        try:
            return "".join(chunk.text for chunk in llm.stream(question))
        except CarVllmError as error:
            if not error.is_retryable:
                raise
    raise AssertionError("each stream broke off")


def ask(llm: ChatVllmMlx, number: int) -> object:
    """Ask in one of four ways."""
    if number % 4 == 0:
        return llm.invoke(f"Name {number} colours.").text
    if number % 4 == 1:
        return read_stream(llm, f"Count to {number}.")
    if number % 4 == 2:
        bound = llm.bind_tools([weather], tool_choice="weather")
        return bound.invoke("How is the weather in Paris?").tool_calls
    return llm.with_structured_output(City).invoke("Name a city.")


def test_the_example_asks_its_question(litellm: Path, servers: list[Server]):
    """It starts the proxy, gets an answer with a key of its own, and leaves nobody behind."""
    published = [server.published for server in servers]
    pairs = [text for told in published for text in (told["base_url"], told["api_key_file"])]
    port = free_port()
    done = subprocess.run(
        [sys.executable, str(LITELLM / "start.py"), published[0]["model"], *pairs],
        env=os.environ | {"LITELLM": str(litellm), "PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_requests_are_spread_and_a_death_loses_nothing(fleet: tuple[str, str, list[Path]]):
    """32 requests of four kinds reach both servers; one dies under load and all are answered.

    An answer that has begun when its server dies is an error, never a shorter answer.
    """
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
    known = keys.read_text()
    keys.write_text("somebody sk-of-somebody-else\n")
    with pytest.raises(AuthenticationError):
        llm.invoke("Hello")
    keys.write_text(known)
