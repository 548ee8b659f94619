"""Runs the benchmark: `python -m benchmarks [SECTION ...] [--busy] [--output FOLDER]`.

Prints each row with its bars and the room that is left, writes JSON and plots, and ends with 1
where a bar falls. Rows of sections that were left out stay in the JSON as they were measured
before. With `--busy` another process keeps one core busy, and the figures go into a file of their
own.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

from benchmarks.rows import Row, read, show, write

SECTIONS = (
    "overhead",
    "crowds",
    "requests",
    "profile",
    "imports",
    "first_call",
    "supervision",
    "agents",
    "company",
    "real",
    "defaults",
)
OUTPUT = Path(__file__).parents[1] / ".benchmarks"
QUIET, BUSY = "results.json", "results-busy.json"


def main() -> int:
    """Measure what was asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER")
    parser.add_argument("--busy", action="store_true", help="keep one core busy with other work")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    results = given.output / (BUSY if given.busy else QUIET)
    measured: list[Row] = []
    with _other_work() if given.busy else nullcontext():
        for section in given.sections or SECTIONS:
            began = time.monotonic()
            print(f"\n== {section}", flush=True)
            for row in import_module(f"benchmarks.{section}").rows():
                show(row)
                measured.append(row)
            write(measured, results)
            print(f"-- {time.monotonic() - began:.0f} s", flush=True)
    # Imported late: what lies on the heap is walked through by the collector while it is measured.
    from benchmarks.plots import draw

    draw(read(results)[1], given.output)
    missed = [row.what for row in measured if not row.holds]
    thin = [row.what for row in measured if row.is_thin]
    print(f"\n{len(measured)} rows, {len(missed)} missed: {'; '.join(missed) or 'none'}")
    print(f"{len(thin)} thin: {'; '.join(thin) or 'none'}")
    return 1 if missed else 0


@contextmanager
def _other_work() -> Iterator[None]:
    """Keep one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as worker:
        try:
            yield
        finally:
            worker.kill()


if __name__ == "__main__":
    sys.exit(main())
