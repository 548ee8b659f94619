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


def check_no_watch_goes_on() -> None:
    for timer in [t for t in threading.enumerate() if isinstance(t, threading.Timer)]:
        timer.join(5)
        assert not timer.is_alive()
