"""Draws a run's rows as SVG."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.rows import Row

mpl.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.size": 9})
_NO_DATE = {"Date": None}
_COLOURS = {
    "raw HTTP": "#9aa5b1",
    "OpenAI SDK": "#b8a1d9",
    "ChatVllmMlx": "#1f77b4",
    "ChatOpenAI": "#d98c5f",
    "ChatOllama": "#7fb07f",
}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the plots whose rows were measured and return their files."""
    overhead = [row for row in rows if row.section == "overhead" and row.unit in ("us", "ms")]
    turns = [row for row in rows if row.section == "agents" and row.series]
    growth = [row for row in rows if "at once" in row.series]
    engines = [row for row in rows if row.section == "defaults"]
    drawn = []
    for name, chosen, plot in (
        ("overhead", overhead, _bars),
        ("turns", turns, _turns),
        ("growth", growth, _growth),
        ("engines", engines, _bars),
    ):
        if chosen:
            figure = Figure(figsize=(8, 2.4 * -(-len(chosen) // 2)), layout="constrained")
            axes = figure.subplots(-(-len(chosen) // 2), min(2, len(chosen)), squeeze=False)
            for place, row in zip(axes.flat, chosen, strict=False):
                plot(place, row)
            for place in list(axes.flat)[len(chosen) :]:
                place.set_visible(False)
            path = folder / f"{name}.svg"
            figure.savefig(path, metadata=_NO_DATE)
            drawn.append(path)
    return drawn


def _title(axes: Axes, row: Row) -> None:
    axes.set_title(row.what.replace("`", ""), fontsize=9)


def _bars(axes: Axes, row: Row) -> None:
    names, values = list(row.figures), list(row.figures.values())
    bars = axes.barh(names, values, color=[_COLOURS.get(name, "#1f77b4") for name in names])
    axes.bar_label(bars, fmt="%.3g", padding=2)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel(row.unit)
    _title(axes, row)


def _turns(axes: Axes, row: Row) -> None:
    for name, values in row.series.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("turn")
    axes.set_ylabel(row.unit, fontsize=8)
    axes.legend(fontsize=7)
    _title(axes, row)


def _growth(axes: Axes, row: Row) -> None:
    together = row.series["at once"]
    for name, values in row.series.items():
        if name != "at once":
            axes.plot(together, values, marker="o", markersize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(together, [f"{many:g}" for many in together])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("streams at once")
    axes.set_ylabel("us per chunk")
    axes.legend(fontsize=7)
    axes.set_title("astream, per chunk", fontsize=9)
