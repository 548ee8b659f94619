"""What a cold start does while it waits."""

import subprocess
import sys

from faults.support import Fake


def test_the_client_is_imported_while_the_server_loads(fake: Fake):
    """The seconds that openai takes to import are not added to those of the start."""
    gate = fake.gate("load")
    fake.switch(load_gate=gate)
    code = f"""
import sys, time
from pathlib import Path
from langchain_car_vllm import ChatVllmMlx

def on_progress(progress):
    if progress.stage != "load":
        return
    deadline = time.monotonic() + 30
    while not hasattr(sys.modules.get("langchain_car_vllm.wire.chat"), "build"):
        assert time.monotonic() < deadline, "it was not imported"
        time.sleep(0.01)
    Path({gate!r}).touch()

llm = ChatVllmMlx(model={str(fake.model)!r}, on_progress=on_progress)
assert "openai" not in sys.modules
print(llm.invoke("hi").text)
llm.unload(force=True)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, timeout=50, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "tok0 tok1 tok2"


def test_a_server_that_is_ready_before_the_import_is_waited_for(fake: Fake):
    """A module that is half imported is no module yet, for asynchronous calls too."""
    gate = fake.gate("load")
    fake.switch(load_gate=gate)
    code = f"""
import asyncio, sys, time
from pathlib import Path
from langchain_car_vllm import ChatVllmMlx

def on_progress(progress):
    if progress.stage == "load":
        while "langchain_car_vllm.wire.chat" not in sys.modules:
            time.sleep(0.001)
        Path({gate!r}).touch()

llm = ChatVllmMlx(model={str(fake.model)!r}, on_progress=on_progress)
print(asyncio.run(llm.ainvoke("hi")).text)
llm.unload(force=True)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, timeout=50, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "tok0 tok1 tok2"
