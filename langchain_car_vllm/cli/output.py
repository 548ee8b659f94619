"""How results look: data on standard output, everything else on standard error."""

import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Annotated, Any, Self, TextIO

import typer

from langchain_car_vllm.progress import Progress

_GB = 1e9
_MB = 1e6
_QUIET = 10.0

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Catalog id, Hub repository or directory")
]


def say(text: str) -> None:
    """Tell a person something that is no data."""
    print(text, file=sys.stderr)


def print_json(value: Any) -> None:
    """Print data for a program."""
    print(json.dumps(value, indent=2))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and what they stand for, below each other."""
    found = list(facts)
    width = max(len(name) for name, _ in found)
    for name, value in found:
        print(f"{name.ljust(width)}  {value}")


def size(count: int | None) -> str:
    """Return bytes in a form for a person."""
    if count is None:
        return "unknown"
    return f"{count / _GB:.1f} GB" if count >= _GB / 10 else f"{count / _MB:.1f} MB"


class ProgressLine:
    """Shows a wait: one line that is written over on a terminal, else a line for each news.

    Args:
        stream: Where to, by default standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._shown = ""
        self._step: tuple[str, str] = ("", "")
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def __call__(self, progress: Progress) -> None:
        """Show where a wait is."""
        if progress.stage in ("ready", "generating"):
            self.clear()
            return
        line = _line(progress)
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[K{line[:width]}")
            self._shown = line
            return
        step = progress.stage, progress.detail
        now = time.monotonic()
        if line != self._shown and (step != self._step or now - self._shown_at > _QUIET):
            self._write(f"{line}\n")
            self._shown, self._step, self._shown_at = line, step, now

    def clear(self) -> None:
        """Take the line away, so that whatever follows starts at the margin."""
        if self._terminal and self._shown:
            self._write("\r\x1b[K")
        self._shown = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _line(progress: Progress) -> str:
    words: list[str] = [progress.stage]
    if progress.total:
        share = 100 * (progress.done or 0) // progress.total
        words.append(f"{size(progress.done or 0)} of {size(progress.total)} ({share} %)")
    elif progress.done:
        words.append(size(progress.done))
    if progress.detail:
        words.append(progress.detail)
    return ": ".join(words)
