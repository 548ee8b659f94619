"""The watch over a chat template that renders: it interrupts, and it ends with the rendering."""

import subprocess
import sys
import threading
import time

import pytest

from langchain_car_vllm.server.supervisor.mends.chat_template import EndlessTemplateError, watched


def test_an_endless_rendering_is_interrupted():
    """The thread that renders gets an exception, and goes on afterwards as if nothing was."""

    def loop() -> None:
        while True:
            pass

    with pytest.raises(EndlessTemplateError):
        watched(0.3, loop)
    assert watched(60, "{} moons".format, 3) == "3 moons"
    check_no_watch_goes_on()


def test_a_rendering_that_waits_is_not_interrupted():
    """A process that slept or was suspended used no time of its own."""
    watched(0.05, time.sleep, 0.3)
    check_no_watch_goes_on()


def test_an_interruption_that_comes_as_a_rendering_ends_leaves_no_watch():
    """The interpreter lets it in as a function begins; a watch that went on ends the server."""
    told = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, check=False)
    assert (told.stdout.strip(), told.stderr) == (b"went on", b"")


_PROGRAM = """
import sys, time
from langchain_car_vllm.server.supervisor.mends import chat_template as mend

def interrupt_end(frame, event, _):
    if event == "call" and frame.f_code is mend._RenderWatch.end.__code__:
        sys.settrace(None)
        raise mend.EndlessTemplateError

try:
    mend.watched(0.1, sys.settrace, interrupt_end)
except mend.EndlessTemplateError:
    began = time.process_time()
    while time.process_time() - began < 0.5:
        pass
    print("went on")
"""


def test_an_interruption_leaves_nothing_in_the_interpreter():
    """One that is called back has it look for one at every step; a profiler hangs (3.11)."""
    command = [sys.executable, "-c", _PROFILED]
    told = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (told.stdout.strip(), told.stderr) == (b"profiled", b"")


_PROFILED = """
import sys
from langchain_car_vllm.server.supervisor.mends import chat_template as mend

def loop():
    while True:
        pass

try:
    mend.watched(0.1, loop)
except mend.EndlessTemplateError:
    sys.setprofile(lambda *_: None)
    mend.watched(60, print, "profiled")
"""


def test_an_interruption_comes_before_the_watch_ends():
    """However close it is to the end of the rendering, nothing of it comes later."""
    told = subprocess.run(
        [sys.executable, "-c", _CLOSE], capture_output=True, check=False, timeout=120
    )
    assert (told.stdout.strip(), told.stderr) == (b"went on", b"")


_CLOSE = """
import random, time
from langchain_car_vllm.server.supervisor.mends import chat_template as mend

def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

for _ in range(200):
    try:
        mend.watched(0.004, spin, random.uniform(0.003, 0.006))
    except mend.EndlessTemplateError:
        pass
    spin(0.001)
print("went on")
"""


def check_no_watch_goes_on() -> None:
    for timer in [t for t in threading.enumerate() if isinstance(t, threading.Timer)]:
        timer.join(5)
        assert not timer.is_alive()
