"""Runs the benchmark: `python -m benchmarks [SECTION ...] [--output FOLDER]`.

Prints each row with its bars, writes JSON and plots, and ends with 1 where a bar falls. Rows of
sections that were left out stay in the JSON as they were measured before.
"""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.rows import Row, read, show, write

SECTIONS = (
    "overhead",
    "profile",
    "imports",
    "supervision",
    "agents",
    "company",
    "real",
    "defaults",
)
OUTPUT = Path(__file__).parents[1] / ".benchmarks"


def main() -> int:
    """Measure what was asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FOLDER")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    measured: list[Row] = []
    for section in given.sections or SECTIONS:
        began = time.monotonic()
        print(f"\n== {section}", flush=True)
        for row in import_module(f"benchmarks.{section}").rows():
            show(row)
            measured.append(row)
        write(measured, given.output / "results.json")
        print(f"-- {time.monotonic() - began:.0f} s", flush=True)
    # Imported late: what lies on the heap is walked through by the collector while it is measured.
    from benchmarks.plots import draw

    draw(read(given.output / "results.json")[1], given.output)
    missed = [row.what for row in measured if not row.holds]
    print(f"\n{len(measured)} rows, {len(missed)} missed: {'; '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
