"""The plot of `benchmarks.splats_frames`."""

from typing import Any

from benchmarks.figures import RESULTS


def plot(figures: dict[str, Any], name: str) -> None:
    """Writes benchmarks/results/NAME.png: time against gaussians, pixels and threads, and quality against cost."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(17, 4), layout="constrained")
    for axis, rows, across, size in (
        (axes[0], "by_gaussians", "thousand gaussians", lambda row: row["gaussians"] / 1e3),
        (axes[1], "by_pixels", "megapixels", lambda row: row["width"] * row["height"] / 1e6),
        (axes[2], "by_threads", "threads", lambda row: row["threads"]),
    ):
        _stages(axis, figures[rows], [size(row) for row in figures[rows]])
        axis.set(xlabel=across, ylabel="ms a frame", ylim=(0, None))
    _levels(axes[3], figures["levels"])
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    pyplot.close(figure)


def _stages(axis: Any, rows: list[dict[str, Any]], sizes: list[float]) -> None:
    stages = [[row[f"{stage}_ms"] for row in rows] for stage in ("project", "bin", "blend")]
    axis.stackplot(sizes, stages, labels=("project", "bin", "blend"), alpha=0.5)
    axis.plot(sizes, [row["median_ms"] for row in rows], "k.-", label="median")
    axis.legend(loc="upper left")


def _levels(axis: Any, rows: list[dict[str, Any]]) -> None:
    known = [row for row in rows if row["psnr_db"] is not None]
    axis.plot([row["median_ms"] for row in known], [row["psnr_db"] for row in known], "o-")
    for row in known:
        axis.annotate(row["rung"], (row["median_ms"], row["psnr_db"]), fontsize=7)
    axis.set(xlabel="ms a frame", ylabel="PSNR to the top level, dB", xlim=(0, None))
