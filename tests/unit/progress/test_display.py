import logging
import subprocess
import sys
import types

import pytest

from langchain_car_vllm.progress import Progress, display
from langchain_car_vllm.progress.display import (
    Display,
    Line,
    Records,
    describe,
    display_progress,
    suitable_view,
)

WAIT = [
    Progress("install", "downloading mlx (10 MiB)"),
    Progress("download", done=3_200_000_000, total=20_400_000_000),
    Progress("load"),
    Progress("ready"),
]


class Recorder:
    """A view that writes down what it is told."""

    def __init__(self, name="model"):
        self.name = name
        self.drawn = []
        self.closed = 0

    def draw(self, progress):
        self.drawn.append(progress)

    def close(self):
        self.closed += 1


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (
            Progress("queued", "waiting for the server to stop"),
            "waiting for the server to stop",
        ),
        (Progress("install", "resolved 75 packages"), "installing vllm-mlx: resolved 75 packages"),
        (Progress("queued", "asking the Hub about `m`"), "waiting: asking the Hub about `m`"),
        (Progress("download"), "downloading m"),
        (Progress("download", "downloading `m`", 0), "downloading m"),
        (Progress("download", "downloading the adapter `a`"), "downloading the adapter a"),
        (
            Progress("download", "another process is downloading `m`"),
            "downloading m: another process is downloading `m`",
        ),
        (Progress("download", done=0), "downloading m"),
        (Progress("download", done=70_000_000), "downloading m: 70 MB"),
        (Progress("download", done=0, total=500_000_000), "downloading m: 0 of 500 MB"),
        (Progress("download", done=10**9, total=20 * 10**9), "downloading m: 1.0 of 20.0 GB"),
        (Progress("load"), "loading m"),
        (
            Progress("prefill", "3,266 tokens, 3,252 of them from the cache", 3252, 3266),
            "reading the prompt: 3,266 tokens, 3,252 of them from the cache",
        ),
        (
            Progress("generating", "it began after 12 s"),
            "answering: it began after 12 s",
        ),
    ],
)
def test_a_step_is_one_line(progress, line):
    """Every step reads as one line for a person."""
    assert describe("m", progress) == line


def test_a_display_opens_at_the_first_step_and_closes_when_ready():
    """Nothing is drawn before the first step or after the last one."""
    views = []
    shown = Display("m", lambda name: views.append(Recorder(name)) or views[-1])
    assert views == []
    for progress in WAIT:
        shown(progress)
    assert len(views) == 1
    assert views[0].name == "m"
    assert views[0].drawn == WAIT[:-1]
    assert views[0].closed == 1
    shown.close()
    assert views[0].closed == 1


def test_a_ready_server_shows_nothing():
    """Where nothing is waited for, nothing is made."""
    shown = Display("m", lambda _name: pytest.fail("drawn"))
    shown(Progress("ready"))
    shown(Progress("generating"))
    shown.close()


def test_a_slow_first_token_is_shown_until_it_comes(caplog):
    """The stages of a request that takes long are log records, the last one its end."""
    caplog.set_level(logging.INFO, "langchain_car_vllm")
    shown = Display("m", Records)
    shown(Progress("queued", "2 are being answered"))
    shown(Progress("prefill", "3,266 tokens", 0, 3266))
    shown(Progress("generating", "it began after 12 s"))
    shown(Progress("generating", "it began after 13 s"))
    assert caplog.messages == [
        "waiting: 2 are being answered",
        "reading the prompt: 3,266 tokens",
        "answering: it began after 12 s",
    ]


def test_a_long_stage_is_heard_of_again(caplog):
    """Steps of an install are told as they change, every ten seconds at most."""
    caplog.set_level(logging.INFO, "langchain_car_vllm")
    steps = ((0, "one"), (4, "two"), (11, "two"), (40, "two"), (60, "three"))
    times = iter(now for now, _ in steps)
    view = Records("m", clock=lambda: next(times))
    for _, step in steps:
        view.draw(Progress("install", step))
    assert caplog.messages == [f"installing vllm-mlx: {step}" for step in ("one", "two", "three")]


def test_a_display_can_be_used_again():
    """A second wait, such as after an idle stop, is shown like the first."""
    views = []
    shown = Display("m", lambda name: views.append(Recorder(name)) or views[-1])
    for progress in WAIT * 2:
        shown(progress)
    assert [view.closed for view in views] == [1, 1]


def test_a_failed_wait_is_taken_down():
    """After an error `close` leaves nothing on the screen."""
    view = Recorder()
    shown = Display("m", lambda _name: view)
    shown(WAIT[0])
    shown.close()
    assert view.closed == 1


def test_of_several_waits_one_is_drawn():
    """A `batch` draws its wait once; when the one that is drawn ends, another one goes on."""
    views = []
    waits = [Display("m", lambda name: views.append(Recorder(name)) or views[-1]) for _ in range(8)]
    for wait in waits:
        wait(WAIT[0])
    assert [view.drawn for view in views] == [[WAIT[0]]]
    waits[0].close()
    for wait in waits[1:]:
        wait(WAIT[1])
    assert [view.drawn for view in views] == [[WAIT[0]], [WAIT[1]]]
    for wait in waits:
        wait(Progress("ready"))
        wait.close()
    assert [view.closed for view in views] == [1, 1]


def test_a_view_that_cannot_be_closed_gives_the_screen_back():
    """The terminal may be gone; the next wait is drawn all the same."""

    class Broken(Recorder):
        def close(self):
            raise OSError("gone")

    shown = Display("m", lambda _name: Broken())
    shown(WAIT[0])
    shown.close()
    view = Recorder()
    after = Display("m", lambda _name: view)
    after(WAIT[0])
    after.close()
    assert view.drawn == [WAIT[0]]


def test_a_users_callback_replaces_the_display():
    """Programs get every step themselves, and nothing is drawn."""
    heard = []
    with display_progress("m", heard.append) as on_progress:
        assert on_progress == heard.append


def test_a_wait_that_fails_leaves_nothing_drawn(monkeypatch):
    """However the wait ends, the display ends with it."""
    view = Recorder()
    monkeypatch.setattr(display, "suitable_view", lambda _name: view)

    def wait():
        with display_progress("m", None) as on_progress:
            on_progress(WAIT[0])
            raise KeyError

    with pytest.raises(KeyError):
        wait()
    assert view.drawn == [WAIT[0]]
    assert view.closed == 1


@pytest.mark.parametrize("value", ["0", "false", "OFF", "no"])
def test_progress_can_be_silenced(monkeypatch, value):
    """`CAR_VLLM_MLX_PROGRESS=0` shows nothing at all."""
    monkeypatch.setenv("CAR_VLLM_MLX_PROGRESS", value)
    assert suitable_view("m") is None
    shown = Display("m")
    for progress in WAIT:
        shown(progress)


def test_without_a_terminal_there_are_log_records(caplog):
    """A service finds the stages in its log."""
    caplog.set_level(logging.INFO, "langchain_car_vllm")
    assert isinstance(suitable_view("m"), Records)
    shown = Display("m")
    for progress in WAIT:
        shown(progress)
    assert caplog.messages == [
        "installing vllm-mlx: downloading mlx (10 MiB)",
        "downloading m: 3.2 of 20.4 GB",
        "loading m",
    ]


def test_a_download_is_logged_now_and_then(caplog):
    """A long download is heard of every ten seconds, however often it moves."""
    caplog.set_level(logging.INFO, "langchain_car_vllm")
    now = [0.0]
    records = Records("m", clock=lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        records.draw(Progress("download", done=second * 10**6, total=25 * 10**6))
    assert caplog.messages == [
        "downloading m: 0 of 25 MB",
        "downloading m: 10 of 25 MB",
        "downloading m: 20 of 25 MB",
    ]


def test_a_notebook_gets_one_line_that_is_updated(monkeypatch):
    """In a notebook one output is updated in place, and goes away at the end."""
    updates = []
    handle = types.SimpleNamespace(
        update=lambda content, raw: updates.append(content["text/plain"])
    )
    shell = types.SimpleNamespace(kernel=object())
    module = types.SimpleNamespace(
        get_ipython=lambda: shell,
        display=types.SimpleNamespace(display=lambda *_args, **_options: handle),
    )
    monkeypatch.setitem(sys.modules, "IPython", module)
    shown = Display("m")
    for progress in WAIT:
        shown(progress)
    assert updates == [
        "installing vllm-mlx: downloading mlx (10 MiB)",
        "downloading m: 3.2 of 20.4 GB",
        "loading m",
        "",
    ]


def test_ipython_in_a_terminal_is_no_notebook(monkeypatch):
    """A shell without a kernel has a terminal of its own."""
    module = types.SimpleNamespace(get_ipython=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "IPython", module)
    assert display.notebook_line() is None
    assert not isinstance(suitable_view("m"), Line)


def test_nothing_heavy_is_imported_beforehand():
    """`rich` costs nobody anything who does not wait."""
    code = (
        "import sys, langchain_car_vllm.progress.display as d; d.Display('m'); "
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
