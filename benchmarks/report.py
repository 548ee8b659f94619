"""Puts a run into the documentation: `python -m benchmarks.report [FOLDER]`.

Copies the JSON and draws the plots into `docs/performance/`, and writes the tables of
`docs/performance.md` between its markers. A run with `--busy` in the same folder stands beside it.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.__main__ import BUSY, OUTPUT, QUIET
from benchmarks.plots import draw
from benchmarks.rows import Check, Row, read, write

DOCS = Path(__file__).parents[1] / "docs"
_TITLES = {
    "agents": "Agents",
    "company": "Agents in company",
    "real": "The real server",
    "overhead": "Client overhead",
    "crowds": "Many streams at once",
    "requests": "Large requests",
    "first_call": "First call",
    "profile": "Profile",
    "imports": "Import and runtime",
    "supervision": "Supervision",
    "defaults": "Launch defaults",
}


def main() -> None:
    """Write the documentation's part of a run."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    machine, rows = read(folder / QUIET)
    busy = read(folder / BUSY)[1] if (folder / BUSY).exists() else []
    target = DOCS / "performance"
    write(rows, target / QUIET)
    if busy:
        write(busy, target / BUSY)
    else:
        (target / BUSY).unlink(missing_ok=True)
    draw(rows, target)
    page = DOCS / "performance.md"
    text = page.read_text(encoding="utf-8")
    text = _between(text, "machine", _machine(machine))
    for section, title in _TITLES.items():
        chosen = [row for row in rows if row.section == section]
        if chosen:
            text = _between(text, section, table(title, chosen, busy))
    page.write_text(text, encoding="utf-8")


def _between(text: str, name: str, content: str) -> str:
    """Replace what stands between a marker and its end."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    replaced, count = re.subn(
        pattern, lambda found: found[1] + content + found[2], text, flags=re.DOTALL
    )
    assert count == 1, f"docs/performance.md has no place for `{name}`"
    return replaced


def _machine(machine: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {found}" for name, found in machine["libraries"].items())
    return (
        f"{machine['cores']} cores, {machine['memory_gb']} GB, no GPU; {machine['system']}, "
        f"Python {machine['python']}, {libraries}.\n"
    )


def table(title: str, rows: Iterable[Row], busy: Iterable[Row] = ()) -> str:
    """Return rows as a Markdown table.

    Args:
        title: What the rows are about.
        rows: Of a run with the machine to itself.
        busy: Of a run beside other work.
    """
    others = {(row.what, check.what): check for row in busy for check in row.checks}
    lines = [f"| {title} | measured | against | bar | room | beside other work |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        figures = ", ".join(f"{name} {_figure(value)}" for name, value in row.figures.items())
        start = f"| {row.what} | {figures} {row.unit} |"
        for check in row.checks or (None,):
            other = others.get((row.what, check.what)) if check else None
            lines.append(f"{start} {_check(check)} | {_beside(other)} |")
            start = "| | |"
    return "\n".join(lines) + "\n"


def _check(check: Check | None) -> str:
    if check is None:
        return " | | "
    value = f"{_figure(check.value)} {check.unit}".strip()
    bar = f"{'at least' if check.at_least else 'at most'} {check.bar:g} {check.unit}".strip()
    verdict = f"**{check.verdict}**" if not check.holds else check.verdict
    room = "" if check.room is None else f" {check.room:.0%}"
    return f"{value} {check.what}".strip() + f" | {bar} | {verdict}{room}"


def _beside(check: Check | None) -> str:
    return (
        ""
        if check is None
        else f"{_figure(check.value)} {check.unit}".rstrip() + f", {check.verdict}"
    )


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    main()
