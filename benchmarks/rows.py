"""What is measured: rows of figures, and the bars that they must keep."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

THIN = 0.05
"""A bar with less room than this falls with the weather."""
_LIBRARIES = ("langchain-core", "langchain-openai", "langchain-ollama", "openai")


@dataclass(frozen=True)
class Check:
    """One comparison with a bar.

    Attributes:
        what: What the value is, such as `of ChatOllama's`.
        value: The figure.
        bar: The most it may be, or the least.
        unit: Empty for a ratio.
        at_least: Whether the bar is the least.
    """

    what: str
    value: float
    bar: float
    unit: str = ""
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the bar is kept."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    @property
    def room(self) -> float | None:
        """Share of the bar that is left, negative where it falls, None for a bar of zero."""
        if not self.bar:
            return None
        left = self.value - self.bar if self.at_least else self.bar - self.value
        return left / self.bar

    @property
    def verdict(self) -> str:
        """Whether the bar is kept, and whether by little."""
        if not self.holds:
            return "missed"
        return "kept" if self.room is None or self.room >= THIN else "kept, thin"


@dataclass(frozen=True)
class Row:
    """Figures that stand side by side.

    Attributes:
        section: The part of the benchmark it belongs to.
        what: What was done.
        unit: Of the figures.
        figures: By whom it was done, the median of all rounds.
        checks: The bars; none for a row that only informs.
        series: Figures over turns or company, for the plots.
    """

    section: str
    what: str
    unit: str
    figures: Mapping[str, float]
    checks: tuple[Check, ...] = ()
    series: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether all bars are kept."""
        return all(check.holds for check in self.checks)

    @property
    def is_thin(self) -> bool:
        """Whether a bar is kept by little."""
        return any(check.verdict == "kept, thin" for check in self.checks)


def machine() -> dict[str, Any]:
    """Return what is worth knowing of the machine, and nothing that names it."""
    gigabytes = round(psutil.virtual_memory().total / 2**30)
    return {
        "cores": os.cpu_count(),
        "memory_gb": gigabytes,
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def show(row: Row) -> None:
    """Print a row."""
    figures = "  ".join(f"{name} {value:.4g}" for name, value in row.figures.items())
    print(f"{row.what} [{row.unit}]: {figures}", flush=True)
    for check in row.checks:
        relation = ">=" if check.at_least else "<="
        room = "" if check.room is None else f", {check.room:.0%} of room"
        print(
            f"    {check.value:.4g} {check.unit} {check.what} {relation} {check.bar:g}: "
            f"{check.verdict}{room}"
        )


def write(rows: list[Row], path: Path) -> list[Row]:
    """Write a run's rows as JSON, beside those of sections that it left out; return them all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = {row.section for row in rows}
    kept = read(path)[1] if path.exists() else []
    rows = [*(row for row in kept if row.section not in measured), *rows]
    found = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return rows


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Return the machine and the rows of a run."""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        Row(**{**row, "checks": tuple(Check(**check) for check in row["checks"])})
        for row in found["rows"]
    ]
    return found["machine"], rows
