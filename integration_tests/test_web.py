"""LangServe and FastAPI on the real server: two workers, a browser, clients that leave."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from cleanup import stop_servers
from langserve import RemoteRunnable

from langchain_car_vllm.server import running_servers

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[1]
PATIENCE = 300.0
QUESTION = "Name three colours."


def eventually(condition: Any, what: str) -> Any:
    """Poll a condition until it is true and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(0.1)
    return value


def is_up(url: str) -> bool:
    """Tell whether an application answers."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def application(name: str, model: str, workers: int, log: Path) -> Iterator[str]:
    """Run an example's application under uvicorn; yields its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", f"{name}:app", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--workers", str(workers)],
            cwd=ROOT / "examples" / "web",
            env=os.environ | {"MODEL": model},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: is_up(f"{address}/openapi.json"), f"{name}: {log.read_text()}")
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.fixture(autouse=True)
def _preloaded(fast_cpu: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in fast_cpu.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module", autouse=True)
def _alone(machine: None) -> None:
    """What other tests have left of the same model would be counted."""
    stop_servers()


@pytest.fixture(scope="module")
def langserve(smollm2: str, _alone: None, tmp_path_factory: pytest.TempPathFactory):
    """The LangServe example with two workers."""
    log = tmp_path_factory.mktemp("langserve") / "log"
    with application("langserve_app", smollm2, 2, log) as address:
        yield address


def servers_of(model: str) -> list[int]:
    """Return the process ids of the model's servers."""
    states = [state for _, state in running_servers() if state.served_name == model]
    return [state.server.pid for state in states if state.server]


def test_every_way_of_calling(langserve: str, smollm2: str):
    """invoke, batch, stream, stream_log and astream_events give the same answer from one server."""
    import asyncio

    chat = RemoteRunnable(f"{langserve}/chat/")
    given = {"question": QUESTION}
    answer = chat.invoke(given)
    assert answer
    assert chat.batch([given, given]) == [answer, answer]
    pieces = list(chat.stream(given))
    assert len(pieces) > 3
    # The server strips what it gives whole, not what it streams.
    assert "".join(pieces).strip() == answer

    async def log_and_events() -> tuple[Any, list[Any]]:
        state: Any = None
        async for patch in chat.astream_log(given):
            state = patch if state is None else state + patch
        return state, [event async for event in chat.astream_events(given, version="v2")]

    state, events = asyncio.run(log_and_events())
    assert state.state["final_output"].strip() == answer
    assert any(event["event"] == "on_chat_model_stream" for event in events)
    assert len(servers_of(smollm2)) == 1


def open_browser(folder: Path) -> Any:
    """Return a browser, None where it did not start: it allows itself some seconds for that."""
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "Debian's packages `chromium` and `chromium-driver` are needed"
    assert driver
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    flags += " --disable-background-networking --disable-component-update --window-size=1000,700"
    flags += " --disable-dev-shm-usage"
    for flag in [*flags.split(), f"--user-data-dir={tempfile.mkdtemp(dir=folder)}"]:
        options.add_argument(flag)
    # The BLAS that the server takes from the environment starts threads, which crash a renderer.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    try:
        return webdriver.Chrome(options, webdriver.ChromeService(driver, env=env))
    except WebDriverException:
        return None


def test_the_playground_in_a_browser(langserve: str, tmp_path: Path):
    """A question typed into the playground is answered on the page, word by word."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser = eventually(lambda: open_browser(tmp_path), "the browser")
    try:
        browser.get(f"{langserve}/chat/playground/")
        field = eventually(lambda: browser.find_elements(By.TAG_NAME, "textarea"), "the page")[0]
        field.send_keys(QUESTION)
        (button,) = [b for b in browser.find_elements(By.TAG_NAME, "button") if "Start" in b.text]
        button.click()
        before = len(browser.find_element(By.TAG_NAME, "body").text)
        sizes: set[int] = set()

        def has_answer() -> bool:
            text = browser.find_element(By.TAG_NAME, "body").text
            sizes.add(len(text))
            return "OUTPUT" in text.upper() and len(text) > before + 40

        eventually(has_answer, "the answer on the page")
        assert len(sizes) > 2
        if folder := os.environ.get("SCREENSHOTS"):
            time.sleep(5)
            browser.save_screenshot(str(Path(folder) / "langserve-playground.png"))
        field.send_keys(Keys.ESCAPE)
    finally:
        browser.quit()


def test_a_client_that_leaves_ends_the_generation(langserve: str, smollm2: str):
    """The server is idle again long before a whole answer would have been written."""
    request = urllib.request.Request(
        f"{langserve}/chat/stream",
        json.dumps({"input": {"question": "Tell a story of a hundred words."}}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        response.readline()
    (state,) = [state for _, state in running_servers() if state.served_name == smollm2]
    headers = {"authorization": f"Bearer {state.api_key}"}
    status = urllib.request.Request(f"http://127.0.0.1:{state.port}/v1/status", headers=headers)

    def is_idle() -> bool:
        with urllib.request.urlopen(status, timeout=30) as response:
            return not json.load(response).get("requests")

    eventually(is_idle, "the server to stop generating")


def test_a_server_that_dies_in_the_middle(langserve: str, smollm2: str):
    """The client gets an error, not silence; the next call is answered."""
    chat = RemoteRunnable(f"{langserve}/chat/")
    stream = chat.stream({"question": "Tell a long story."})
    next(stream)
    (pid,) = servers_of(smollm2)
    psutil.Process(pid).kill()
    with pytest.raises(Exception, match=r"(?i)error"):
        list(stream)
    assert chat.invoke({"question": QUESTION})


def test_server_sent_events(smollm2: str, tmp_path: Path):
    """FastAPI streams events to two workers' clients, and tells a death in an event of its own."""
    with application("fastapi_app", smollm2, 2, tmp_path / "log") as address:
        url = f"{address}/ask?question=Name+three+colours."
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            text = response.read().decode()
        assert text.count("data: ") > 3
        assert text.endswith("event: end\ndata: {}\n\n")
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            response.readline()
            (pid,) = servers_of(smollm2)
            psutil.Process(pid).kill()
            rest = response.read().decode()
        assert "event: error" in rest
