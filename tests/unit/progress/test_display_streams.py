"""Where the display is drawn: terminals, files, and what stands for standard error."""

import errno
import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from unit.progress.test_display import WAIT

from langchain_car_vllm.progress import Progress, display
from langchain_car_vllm.progress.display import display_progress


class Writes:
    """What programs put in the place of standard error, to have it logged too."""

    def __init__(self) -> None:
        self.lines = []

    def write(self, text: str) -> None:
        self.lines.append(text)


class Refuses(Writes):
    def write(self, text: str) -> None:
        raise RuntimeError(text)


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


class GoneTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, text)


def closed_stream() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS: dict[str, Callable[[], Any]] = {
    "only writes": Writes,
    "refuses": Refuses,
    "closed": closed_stream,
    "terminal that was closed": GoneTerminal,
    "ASCII terminal": lambda: Terminal(io.BytesIO(), encoding="ascii"),
    "Latin terminal": lambda: Terminal(io.BytesIO(), encoding="latin-1"),
    "none": lambda: None,
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("is_logged", [False, True])
def test_no_stream_fails_a_call(name: str, is_logged: bool, monkeypatch: pytest.MonkeyPatch):
    """Whatever stands for standard error, a wait that cannot be shown goes on all the same."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display, "_takes_records", lambda: is_logged)
    monkeypatch.setattr(sys, "stderr", STREAMS[name]())
    with display_progress("m", None) as on_progress:
        for step in (*WAIT, Progress("download", done=1, total=2), Progress("ready")):
            on_progress(step)


def test_a_stream_that_only_writes_is_written_to(monkeypatch: pytest.MonkeyPatch):
    """A stream without `isatty` or `flush` is no terminal, but somewhere to write."""
    stream = Writes()
    monkeypatch.setattr(display, "_takes_records", lambda: False)
    monkeypatch.setattr(sys, "stderr", stream)
    with display_progress("m", None) as on_progress:
        on_progress(Progress("install"))
        on_progress(Progress("load"))
    assert stream.lines == ["installing vllm-mlx\n", "loading m\n"]


def test_an_ascii_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch):
    """It has no characters for a bar."""
    written = io.BytesIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal(written, encoding="ascii", write_through=True))
    with display_progress("m", None) as on_progress:
        on_progress(Progress("load"))
    assert written.getvalue() == b"loading m\n"


PRINTS = """
from langchain_car_vllm.progress.display import Display
from langchain_car_vllm.progress import Progress
shown = Display("my-model")
shown(Progress("load"))
print("[bold]token", end="", flush=True)
print("[/x]", end="", flush=True)
print(" end")
shown(Progress("ready"))
"""


def test_what_a_program_prints_meanwhile_goes_where_it_sent_it():
    """Another thread or task may print its results while a bar is drawn for this one."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", PRINTS],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        check=True,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(theirs)
    assert done.stdout == "[bold]token[/x] end\n"
    assert b"loading my-model" in read_to_end(ours)
    os.close(ours)


def test_a_terminal_gets_bars():
    """In a real terminal the stages, the bytes and the speed are drawn, and taken away again."""
    code = (
        "from langchain_car_vllm.progress.display import Display\n"
        "from langchain_car_vllm.progress import Progress\n"
        "shown = Display('my-model')\n"
        "shown(Progress('install', 'resolved 75 packages'))\n"
        "shown._view._bars.refresh()\n"
        "shown(Progress('download'))\n"
        "shown(Progress('download', done=5))\n"
        "shown._view._bars.refresh()\n"
        "shown(Progress('download', done=3_200_000_000, total=20_400_000_000))\n"
        "shown._view._bars.refresh()\n"
        "shown(Progress('ready'))\n"
    )
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stderr=child, env=environment)
    os.close(child)
    drawn = b""
    try:
        while chunk := os.read(parent, 65536):
            drawn += chunk
    except OSError:
        pass
    os.close(parent)
    assert process.wait() == 0
    text = drawn.decode()
    assert "resolved 75 packages" in text
    assert "downloading my-model: 0 MB" in text
    assert "3.2/20.4 GB" in text
    assert text.rstrip().endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), repr(text[-60:])


def read_to_end(descriptor: int) -> bytes:
    """Return all that a terminal got whose other side is closed."""
    found = b""
    with suppress(OSError):  # how Linux tells the end
        while part := os.read(descriptor, 1 << 16):
            found += part
    return found


@pytest.mark.parametrize("name", ["/tmp/[/x]/m", "[bold]m", "m\x1b]52;c;aGk=\x07"])
def test_a_name_is_shown_as_it_is(name, monkeypatch):
    """Brackets are no styles, and nothing in a name gives a terminal orders."""
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    terminal = os.fdopen(theirs, "w")
    bars = display.Bars(name, terminal)
    bars.draw(Progress("load"))
    bars.close()
    terminal.close()
    shown = read_to_end(ours).decode()
    os.close(ours)
    assert f"loading {name}".replace("\x1b", r"\x1b").replace("\x07", r"\x07") in shown
    assert "\x1b]52" not in shown


SHOWS = """
from langchain_car_vllm.progress.display import Display
from langchain_car_vllm.progress import Progress
shown = Display("my-model")
shown(Progress("queued"))
shown(Progress("load"))
shown(Progress("ready"))
"""


LINE = "loading my-model\n"
RECORD = "INFO:langchain_car_vllm:loading my-model\n"
OURS = "logging.getLogger('langchain_car_vllm')"
LOGS = {
    "": LINE,
    "logging.basicConfig(level='INFO')": RECORD,
    "logging.basicConfig(level='DEBUG')": RECORD,
    f"logging.basicConfig(); {OURS}.setLevel('INFO')": RECORD,
    "logging.basicConfig()": LINE,
    "logging.basicConfig(level='ERROR')": LINE,
    "logging.getLogger().addHandler(logging.NullHandler())": LINE,
    f"{OURS}.addHandler(logging.NullHandler())": LINE,
    f"{OURS}.setLevel('INFO')": LINE,
    f"{OURS}.setLevel('WARNING')": "",
    f"logging.basicConfig(level='INFO'); {OURS}.setLevel('WARNING')": "",
    f"logging.basicConfig(level='INFO'); {OURS}.propagate = False": LINE,
    "logging.basicConfig(level='INFO'); logging.root.handlers[0].setLevel('ERROR')": LINE,
    "logging.basicConfig(level='INFO'); logging.disable()": LINE,
    "logging.basicConfig(level='INFO'); "
    "import logging.config as config, langchain_car_vllm.progress.display; "
    "config.dictConfig({'version': 1, 'incremental': False})": LINE,
}


@pytest.mark.parametrize("before", LOGS)
def test_a_script_without_a_terminal_is_told_on_standard_error(before):
    """A record where one comes out, else a line; standard output is the program's own."""
    code = f"import logging; {before}\n{SHOWS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", LOGS[before])


def test_closed_standard_error_is_no_trouble():
    """A service without any streams still answers."""
    code = f"exec {sys.executable} -c '{SHOWS}' 2>&-"
    subprocess.run(["/bin/sh", "-c", code], check=True)


def test_a_dumb_terminal_gets_lines():
    """Where the cursor cannot be moved nothing is drawn, and something is said."""
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", SHOWS], stderr=theirs, check=True, env=os.environ | {"TERM": "dumb"}
    )
    os.close(theirs)
    assert os.read(ours, 1000) == b"loading my-model\r\n"
    os.close(ours)
