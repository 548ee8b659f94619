"""How results look: data on standard output, everything else on standard error.

What comes from outside, such as an answer, a log or the name of a file, gives a terminal no orders.
"""

import codecs
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from langchain_car_vllm.models.catalog import PREFIX
from langchain_car_vllm.support.printable import printable, printable_answer

_GB = 1e9
_MB = 1e6


def model_id(name: str) -> str:
    """Return a served name as the id that every command takes: the catalog's with its prefix."""
    return name if "/" in name else f"{PREFIX}{name}"


def say(text: str) -> None:
    """Tell a person something that is not data; nobody where standard error takes nothing."""
    if sys.stderr is not None:  # `print` would take standard output instead
        with suppress(OSError, ValueError):  # it is closed, or on a full disk
            print(printable(text), file=sys.stderr)


def print_answer(text: str) -> None:
    """Print a part of what a model wrote; a pipe or a file gets every character of it."""
    print(printable_answer(text) if sys.stdout.isatty() else text, end="", flush=True)


def log_printer() -> Callable[[bytes], None]:
    """Return what prints a log part by part; a pipe or a file gets every byte of it."""
    out = sys.stdout.buffer
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    is_terminal = sys.stdout.isatty()

    def print_part(part: bytes) -> None:
        out.write(printable_answer(decoder.decode(part)).encode() if is_terminal else part)
        out.flush()

    return print_part


def discard(*descriptors: int) -> None:
    """Have nothing come of what is written to them from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def print_json(value: Any) -> None:
    """Print data for a program."""
    print(json.dumps(value, indent=2))


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, dispensable: Sequence[str] = ()
) -> None:
    """Print columns as wide as their widest cell.

    Where a terminal is too narrow, the last one, which says most, goes below its row.

    Args:
        header: Their names.
        rows: Their cells.
        dispensable: Columns to leave out before that, one after the other.
    """
    table = [list(header), *([to_cell(cell) for cell in row] for row in rows)]
    for name in dispensable:
        if _width(table) <= _terminal_width():
            break
        place = table[0].index(name)
        for row in table:
            del row[place]
    remarks = [""] * len(table)
    if _width(table) > _terminal_width() and len(table[0]) > 1:
        remarks = [f"\n    {row.pop()}" for row in table]
        remarks[0] = ""
    widths = _widths(table)
    for row, remark in zip(table, remarks, strict=True):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip() + remark)


def to_cell(text: str) -> str:
    """Return text as it stands in one line."""
    return printable(text).replace("\n", " ")


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*table, strict=True)]


def _width(table: Sequence[Sequence[str]]) -> int:
    widths = _widths(table)
    return sum(widths) + 2 * (len(widths) - 1)


def _terminal_width() -> float:
    """Return how wide a line may be: a pipe has no end."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and what they stand for, below each other."""
    found = list(facts)
    width = max(len(name) for name, _ in found)
    for name, value in found:
        print(f"{name.ljust(width)}  {to_cell(value)}")


def size(count: int | None) -> str:
    """Return bytes in a form for a person."""
    if count is None:
        return "unknown"
    return f"{count / _GB:.1f} GB" if count >= _GB / 10 else f"{count / _MB:.1f} MB"
