"""`headway demo`: a shorter deadline buys lower quality and still arrives in time."""

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text as Words

from headway.cli.demo_kinds import GENEROUS_S, Frames, Images, Kind, Shot, Text
from headway.cli.show import ms, reason
from headway.cli.up import UpOptions, run_mesh
from headway.client import Headway
from headway.errors import HeadwayError
from headway.v1 import common_pb2

_MOST_RUNGS = 4
_START_S = 300.0
_PASSES = 3
_SETTLE_S = 5.0
_FITS = 0.6
_ROOM = 1.1


def run_demo(folder: Path, models: Path, address: str | None, console: Console) -> None:
    """Sends every kind of work with several deadlines to the mesh at `address`, or to one that it starts and ends.

    Writes pictures, the table and the mesh's log into `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if address is not None:
        show_all(address, folder, console)
    else:
        asyncio.run(_with_own_mesh(folder, models, console))


async def _with_own_mesh(folder: Path, models: Path, console: Console) -> None:
    run_folder = Path(tempfile.mkdtemp(prefix="headway-demo-"))
    options = UpOptions("127.0.0.1:0", models, run_folder, None, _START_S)
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    try:
        with (folder / "mesh.log").open("w", buffering=1) as log:
            say = lambda name, line: print(f"{name:<14} | {line}", file=log)  # noqa: E731
            mesh = asyncio.create_task(run_mesh(options, say, stop, ready.set_result))
            try:
                with console.status("starting Redis, device arbiter, prefix cache, three workers and router"):
                    await asyncio.wait([mesh, ready], return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    await asyncio.to_thread(show_all, ready.result(), folder, console)
            finally:
                stop.set()
                await mesh
    finally:
        shutil.rmtree(run_folder, ignore_errors=True)
    console.print("Everything that was started has ended.")


def show_all(address: str, folder: Path, console: Console) -> None:
    """Sends every kind with several deadlines and shows what each bought. Blocks."""
    with Headway(address) as mesh:
        kinds: list[Kind] = [make(mesh, console, folder) for make in (Text, Images, Frames)]
        shots: list[tuple[str, Shot]] = []
        for kind in kinds:
            with console.status(f"{kind.name}: asking what each rung costs on this machine"):
                deadlines_s = choose_deadlines_s(kind)
            shots += [(kind.name, kind.send(deadline_s, shown=True)) for deadline_s in deadlines_s]
    table = shots_table(shots)
    console.print(table)
    _save_picture(table, folder / "demo.svg")
    console.print(f"Pictures, this table and the log are in {folder}/", highlight=False)


def choose_deadlines_s(kind: Kind) -> list[float]:
    """A generous deadline, one for each lower rung, and a hopeless one; from what each rung is predicted to cost here.

    A rung's deadline lies halfway between its own cost and that of the next better one, but not below what a refusal
    says is the least, and the hops' share is added.
    Raises the error of a request that fails with ample time.
    """
    _settle(kind)
    plans = [[_plan(kind, label) for label in _some(kind.rungs())] for _ in range(_PASSES)]
    kept_ms = statistics.median(GENEROUS_S * 1000 - plan.budget_ms for row in plans for plan in row)
    costs_ms = [statistics.median(plan.predicted_p99_ms for plan in rung) for rung in zip(*plans, strict=True)]
    costs_ms.sort(reverse=True)  # predictions move while they learn
    hopeless_ms = costs_ms[-1] * 0.3 + kept_ms
    least_ms = _least_ms(kind.send(hopeless_ms / 1000)) * _ROOM + kept_ms
    between = [(cost + better) / 2 + kept_ms for cost, better in zip(costs_ms[1:], costs_ms, strict=False)]
    chosen_ms = [GENEROUS_S * 1000, *(max(deadline_ms, least_ms) for deadline_ms in between), hopeless_ms]
    return [deadline_ms / 1000 for deadline_ms in dict.fromkeys(chosen_ms)]


def _least_ms(refused: Shot) -> float:
    """What the refusal of a hopeless request says would do; 0 when it was not refused for that."""
    return 0.0 if refused.error is None else float(refused.error.metadata.get("least_budget_ms", 0))


def _plan(kind: Kind, label: str) -> common_pb2.Plan:
    shot = kind.send(GENEROUS_S, exact=label)
    if shot.plan is None:
        raise shot.error or HeadwayError(f"{kind.name}: the answer has no plan")
    return shot.plan


def _settle(kind: Kind) -> None:
    """Sends until the worker's predictions fit: it may have measured its costs while the machine was busy.

    The first request does not count; it pays for what later ones need not.
    """
    kind.send(GENEROUS_S)
    end_s = time.monotonic() + _SETTLE_S
    while time.monotonic() < end_s:
        shot = kind.send(GENEROUS_S)
        if shot.plan is None or shot.took_s * 1000 > shot.plan.predicted_p50_ms * _FITS:
            return


def _some(labels: Sequence[str]) -> list[str]:
    """At most a few of the labels, with the first and the last."""
    if len(labels) <= _MOST_RUNGS:
        return list(labels)
    last = len(labels) - 1
    return [labels[round(place * last / (_MOST_RUNGS - 1))] for place in range(_MOST_RUNGS)]


def shots_table(shots: Sequence[tuple[str, Shot]]) -> Table:
    """What every deadline bought."""
    table = Table("work", title="The deadline is the budget", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("deadline", "took", "rung", "steps", "quality"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("result", overflow="fold")
    last = None
    for name, shot in shots:
        if last not in (None, name):
            table.add_section()
        table.add_row(name if name != last else "", ms(shot.deadline_s * 1000), ms(shot.took_s * 1000), *_cells(shot))
        last = name
    return table


def _cells(shot: Shot) -> list[str | Words]:
    if shot.served is None:
        assert shot.error is not None
        least_ms = shot.error.metadata.get("least_budget_ms")
        hint = "" if least_ms is None else f": {least_ms} ms would do"
        why = shot.error.reason_name.lower().replace("_", " ")
        return ["-", "-", "-", Words("refused", style="yellow"), why + hint]
    verdict = Words("in time", style="green") if shot.in_time else Words("late", style="red")
    served = shot.served
    return [
        served.rung.label,
        str(served.steps_executed),
        f"{served.quality:.2f}",
        verdict,
        shot.result if served.reason == common_pb2.RUNG_REASON_BEST_FIT else f"{shot.result} ({reason(served.reason)})",
    ]


def _save_picture(table: Table, file: Path) -> None:
    with file.with_suffix(".txt").open("w") as plain:
        recorder = Console(record=True, width=100, file=plain)
        recorder.print(table)
    recorder.save_svg(str(file), title="headway demo")
