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


WATCHED = """
import asyncio, sys
from pathlib import Path
import langchain_car_vllm
from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.support.process_state import _imports

HOME = str(Path(langchain_car_vllm.__file__).parent)
found = []


class Watcher:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            if frame.f_globals["__name__"] == "importlib.util":
                return  # it is only looked for
            frame = frame.f_back
        is_ours = frame.f_code.co_filename.startswith(HOME) or name == "langchain_core.tools"
        if is_ours and not any(lock._is_owned() for lock in _imports.values()):
            found.append(name)


def weather(city: str) -> str:
    "Return the weather."


sys.meta_path.insert(0, Watcher())
llm = ChatVllmMlx(model=sys.argv[1], max_tokens=3)
llm.bind_tools([weather])
print(llm.invoke("hi").text)
print(asyncio.run(llm.ainvoke("hi")).text)
llm.unload(force=True)
assert "langchain_core.tools" in sys.modules and "anyio._backends._asyncio" in sys.modules
print(found)
"""


def test_a_fork_waits_for_whatever_a_call_imports(fake: Fake):
    """A child would wait forever for what another thread was importing when it was forked."""
    command = [sys.executable, "-c", WATCHED, str(fake.model)]
    done = subprocess.run(command, timeout=100, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["tok0 tok1 tok2 "] * 2 + ["[]"]
