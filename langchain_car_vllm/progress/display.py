"""Shows a wait to a person: bars in a terminal, a line in a notebook, log records, or plain lines.

`CAR_VLLM_MLX_PROGRESS=0` silences all of them. Nothing is imported or drawn before there is
something to wait for.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from langchain_car_vllm.environment import CAR_VLLM_MLX_PROGRESS
from langchain_car_vllm.progress import OnProgress, Progress, Stage
from langchain_car_vllm.support.printable import printable
from langchain_car_vllm.support.process_state import ProcessLock, import_whole

if TYPE_CHECKING:
    from rich.progress import TaskID

log = logging.getLogger("langchain_car_vllm")

_SHOWN: frozenset[Stage] = frozenset({"queued", "install", "download", "load", "prefill"})
_TITLES: dict[Stage, str] = {
    "queued": "waiting",
    "install": "installing vllm-mlx",
    "download": "downloading",
    "load": "loading",
    "ready": "ready",
    "prefill": "reading the prompt",
    "generating": "answering",
}
_LOG_SECONDS = 10.0
_GB = 1e9
_MB = 1e6

Publish = Callable[[str], None]
"""Puts a line where the last one was."""


class View(Protocol):
    """Somewhere to draw."""

    def draw(self, progress: Progress) -> None:
        """Draw one step."""

    def close(self) -> None:
        """Leave the place as it was found."""


# A process has one screen: of several waits at once, as of a `batch`, one is drawn.
_screen = ProcessLock(reentrant=False)


class Display:
    """An `on_progress` for people. Call `close` when the wait ends, however it ends.

    Of several waits of this process one is drawn at a time; when it ends, another one goes on. What
    cannot be drawn is left: no call fails because its wait could not be shown.

    Args:
        name: What is waited for, such as a model id.
        view: Makes the place to draw at the first step; by default what suits the process.
    """

    def __init__(self, name: str, view: Callable[[str], View | None] | None = None) -> None:
        self._name = name
        self._make = view or suitable_view
        self._view: View | None = None
        self._is_open = False

    def __call__(self, progress: Progress) -> None:
        """Show a step; `ready` and `generating` end the display."""
        if progress.stage not in _SHOWN:
            if self._view is not None and progress.stage == "generating":
                self._draw(progress)
            self.close()
            return
        if not self._is_open:
            if not _screen.acquire(blocking=False):
                return
            self._is_open = True
            with suppress(Exception):
                self._view = self._make(self._name)
        self._draw(progress)

    def _draw(self, progress: Progress) -> None:
        if self._view is None:
            return
        try:
            self._view.draw(progress)
        except Exception as error:  # noqa: BLE001 - a stream of the program's may raise anything
            log.debug("the wait cannot be shown: %s", error)
            self._take_down()

    def _take_down(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            with suppress(Exception):
                view.close()

    def close(self) -> None:
        """Take down what was drawn; may be called again and again."""
        try:
            self._take_down()
        finally:
            if self._is_open:
                self._is_open = False
                _screen.release()


@contextmanager
def display_progress(name: str, on_progress: OnProgress | None) -> Iterator[OnProgress]:
    """Yield what a wait is to tell its progress to, and leave nothing drawn.

    Args:
        name: What is waited for.
        on_progress: The user's own callback, which replaces the display.
    """
    if on_progress is not None:
        yield on_progress
        return
    display = Display(name)
    try:
        yield display
    finally:
        display.close()


def describe(name: str, progress: Progress) -> str:
    """Return a step as one line, such as `downloading X: 3.2 of 20.4 GB`."""
    title = _TITLES[progress.stage]
    subject = f"{title} {name}" if progress.stage in {"download", "load"} else title
    amount = _amount(progress.done, progress.total) if progress.stage == "download" else ""
    detail = progress.detail
    if detail.startswith(title):  # the same, or more exactly: an adapter
        subject, detail = detail.replace("`", ""), ""
    return printable(": ".join(part for part in (subject, amount or detail) if part))


def _amount(done: int | None, total: int | None) -> str:
    if done is None or (total is None and not done):
        return ""  # nothing came yet, and nobody knows how much will
    if total is None:
        return f"{done / _MB:.0f} MB"
    if total >= _GB:
        return f"{done / _GB:.1f} of {total / _GB:.1f} GB"
    return f"{done / _MB:.0f} of {total / _MB:.0f} MB"


def suitable_view(name: str) -> View | None:
    """Return the view that suits this process, None where it is to be silent."""
    if not CAR_VLLM_MLX_PROGRESS.read():
        return None
    if publish := notebook_line():
        return Line(name, publish)
    if _is_terminal(sys.stderr):
        bars = Bars(name, sys.stderr)
        return bars if bars.can_draw else Records(name, _print_line)
    if sys.stderr is None or _takes_records():
        return Records(name)
    return Records(name, _print_line)


def _takes_records() -> bool:
    """Tell whether a record comes out anywhere, or whoever set our logger wants none of it."""
    if not log.isEnabledFor(logging.INFO):
        return log.level > logging.INFO
    place: logging.Logger | None = log
    while place is not None:
        if any(map(_takes_record, place.handlers)):
            return True
        place = place.parent if place.propagate else None
    return False


def _takes_record(handler: logging.Handler) -> bool:
    return handler.level <= logging.INFO and not isinstance(handler, logging.NullHandler)


def _is_terminal(stream: Any) -> bool:
    """Tell it also of a stream that is closed, and of a program's own, which may only write."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def _log_record(line: str) -> None:
    log.info("%s", line)


def _print_line(line: str) -> None:
    """Tell whom neither a bar nor a record reaches: a wait without a word looks like a hang."""
    with suppress(OSError, ValueError):  # standard error may be closed
        sys.stderr.write(f"{line}\n")


def notebook_line() -> Publish | None:
    """Return what updates one line of a notebook's output, None outside of a notebook."""
    interactive: Any = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    handle = interactive.display.display({"text/plain": ""}, raw=True, display_id=True)
    return lambda line: handle.update({"text/plain": line}, raw=True)


class Line:
    """One line that is replaced at every step.

    Args:
        name: What is waited for.
        publish: Puts a line where the last one was.
    """

    def __init__(self, name: str, publish: Publish) -> None:
        self._name = name
        self._publish = publish

    def draw(self, progress: Progress) -> None:
        """Replace the line."""
        self._publish(describe(self._name, progress))

    def close(self) -> None:
        """Leave nothing."""
        self._publish("")


class Records:
    """One line for each stage, and one every ten seconds of progress or news.

    Args:
        name: What is waited for.
        tell: Takes a line: logs it, or prints it.
        clock: Seconds that never go back.
    """

    def __init__(
        self, name: str, tell: Publish = _log_record, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._tell = tell
        self._clock = clock
        self._stage: Stage | None = None
        self._logged_at = 0.0
        self._said = ""

    def draw(self, progress: Progress) -> None:
        """Log a stage that is new, and at times what has changed within it."""
        if progress.stage == "queued" and not progress.detail:
            return  # every start is, for an instant
        now, said = self._clock(), describe(self._name, progress)
        is_due = said != self._said and now - self._logged_at >= _LOG_SECONDS
        if progress.stage != self._stage or is_due:
            self._stage, self._logged_at, self._said = progress.stage, now, said
            self._tell(said)

    def close(self) -> None:
        """Leave nothing."""


class Bars:
    """A bar that says how far and how fast; it goes away with the wait.

    Attributes:
        can_draw: Whether the terminal can move its cursor and has the bar's characters.
    """

    def __init__(self, name: str, file: TextIO) -> None:
        import_whole("rich.progress")
        from rich.console import Console  # noqa: PLC0415 - only where there is a wait to show
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TransferSpeedColumn,
        )

        self._name = name
        self._stage: Stage | None = None
        title = TextColumn("{task.description}", markup=False)  # a name may hold brackets
        self._plain = (SpinnerColumn(), title, TimeElapsedColumn())
        self._bytes = (*self._plain[:2], BarColumn(), DownloadColumn(), TransferSpeedColumn())
        console = Console(file=file)
        self.can_draw = console.is_interactive and not console.options.ascii_only
        # What the program itself prints meanwhile stays its own, and goes where it sent it.
        self._bars = Progress(
            *self._plain,
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: TaskID | None = None

    def draw(self, progress: Progress) -> None:
        """Move the bar; each stage has one of its own."""
        counts = progress.stage == "download" and progress.total is not None
        title = describe(self._name, Progress(progress.stage) if counts else progress)
        done = progress.done or 0
        self._bars.columns = self._bytes if counts else self._plain
        former = self._task
        if former is None or progress.stage != self._stage:
            self._stage = progress.stage
            self._task = self._bars.add_task(title, total=progress.total, completed=done)
            with suppress(RuntimeError):  # there is no thread left to move it
                self._bars.start()
            if former is not None:
                self._bars.remove_task(former)
        else:
            self._bars.update(former, description=title, total=progress.total, completed=done)

    def close(self) -> None:
        """Take the bar away."""
        self._bars.stop()
