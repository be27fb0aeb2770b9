"""One picture of a run: what was kept, what it was worth, how long it took, what was refused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.experiment.runner import Cell, Results

Value = Callable[[Cell], tuple[float, float, float] | None]
"""A figure of a cell with its interval: (value, low, high); None draws no point."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes over the load."""

    title: str
    value: Value
    log: bool = False
    of: tuple[str, ...] | None = None
    """Contenders to draw; None: all."""


def plain(*path: str) -> Value:
    """The figure at `path` of a cell's figures, without an interval."""

    def read(cell: Cell) -> tuple[float, float, float] | None:
        found: Any = cell.figures
        for key in path:
            found = None if found is None else found.get(key)
        return None if found is None else (found, found, found)

    return read


def _attained(cell: Cell) -> tuple[float, float, float] | None:
    found = cell.figures["attainment_deadline"]
    return None if found["share"] is None else (found["share"], *found["share_95"])


def _in_time_of_all(cell: Cell) -> tuple[float, float, float] | None:
    found = cell.figures["in_time_of_all"]
    return (found["share"], *found["share_95"])


def _refused(cell: Cell) -> tuple[float, float, float]:
    share = 1 - cell.figures["admitted"] / max(1, cell.figures["n"])
    return share, share, share


ALL = (
    Panel("admitted requests answered by their deadline", _attained),
    Panel("all requests answered by their deadline", _in_time_of_all),
    Panel("mean normalised quality of what was served", plain("served_quality")),
    Panel("goodput over the clairvoyant bound", plain("goodput_over_bound")),
    Panel("share refused", _refused),
    Panel("latency over deadline, p50", plain("latency_over_deadline", "p50")),
    Panel("latency over deadline, p95", plain("latency_over_deadline", "p95")),
    Panel("latency over deadline, p99", plain("latency_over_deadline", "p99")),
    Panel("refusal seen by the caller, p95, ms", plain("refusal_ms", "p95"), log=True),
)


def draw(results: Results, path: Path, title: str, panels: Sequence[Panel] = ALL) -> None:
    """Writes a picture of the steady cells; the format is the path's suffix."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5 * columns, 3.4 * rows), squeeze=False)
    for panel, axis in zip(panels, axes.flat, strict=False):
        _panel(axis, panel, results)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(8, len(labels)), frameon=False)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.04, 1, 0.98))
    figure.savefig(path)
    pyplot.close(figure)


def _panel(axis: Any, panel: Panel, results: Results) -> None:
    for number, name in enumerate(results.contenders()):
        if panel.of is None or name in panel.of:
            _line(axis, panel, results, name, f"C{number}")
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel("arrival rate over what the cheapest rung sustains", fontsize=8)
    axis.grid(alpha=0.3)
    if panel.log:
        axis.set_yscale("log")


def _line(axis: Any, panel: Panel, results: Results, name: str, colour: str) -> None:
    cells = [results.cell(name, "steady", load) for load in results.loads()]
    points = [(cell.load, panel.value(cell)) for cell in cells if cell is not None]
    drawn = [(load, *value) for load, value in points if value is not None]
    if not drawn:
        return
    loads, values, lows, highs = zip(*drawn, strict=True)
    axis.plot(loads, values, marker="o", markersize=3, color=colour, label=name)
    axis.fill_between(loads, lows, highs, color=colour, alpha=0.15, linewidth=0)
