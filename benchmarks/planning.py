"""What planning costs, and how far its plans are from the best: `python -m benchmarks.planning [--quick]`.

Times `plan_queue`, `admit` and a refusal against the length of the queue, on the costs of a batched image worker; and
compares plans of short queues with exhaustive search over every plan, judged by the planner's own model. Pure
computation in one thread. The full run takes about a minute, `--quick` a few seconds.
"""

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from benchmarks.figures import quantile, write
from headway.cost import Cost, Load, StepCurve
from headway.errors import Refused
from headway.planning import Job, Option, Setting, admit, check, plan_queue
from headway.quality import Rung
from headway.queue_model import QueueModel

RUNGS = (Rung("4", 1.0, nfe=4), Rung("2", 0.9, nfe=2), Rung("1", 0.6, nfe=1))
IMAGES = StepCurve(tuple((size, Cost(2 + 0.3 * size, (0.02 * size) ** 2)) for size in (1, 2, 4, 8, 16, 32, 64, 128)))
TOKENS = StepCurve(((1, Cost(10.0)), (8, Cost(14.0)), (32, Cost(25.0))))
FRAMES = StepCurve(((1, Cost(30.0)),))
WORKERS = {
    "images, 16 to 64 a request": (Setting(0.0, IMAGES, 128), (16, 32, 64)),
    "images, 1 or 2 a request, at most 4 a step": (Setting(0.0, IMAGES, 4), (1, 2)),
    "tokens, at most 8 a step": (Setting(0.0, TOKENS, 8), (1,)),
    "frames, one at a time": (Setting(0.0, FRAMES, 1), (1,)),
}
LENGTHS = (8, 16, 32, 64, 128, 256)
DEADLINES = (1.5, 3.0, 6.0)
"""Times the cost of the top rung alone."""


def make_job(key: int, draw: random.Random, setting: Setting, items: int, spread: float, priorities: str) -> Job:
    """A request somewhere on its way: its deadline is `spread` times one of `DEADLINES`, in part used up."""
    solo_ms = setting.curve.step(items, setting.max_batch).mean_ms * RUNGS[0].nfe
    due_s = setting.now_s + solo_ms * draw.choice(DEADLINES) * spread * draw.uniform(0.3, 1.2) / 1000
    options = tuple(Option(rung, Load(due_s, items, rung.nfe or 1)) for rung in RUNGS)
    return Job(key, int(draw.choice(priorities)), due_s, due_s, options)


def queue(length: int, load: float, items: int, seed: int) -> list[Job]:
    """Jobs whose work at the top rung is `load` times the time until the last of them is due."""
    draw, setting = random.Random(seed), WORKERS["images, 16 to 64 a request"][0]
    steps = 4 * -(-length * items // setting.max_batch)
    last_ms = steps * setting.curve.step(min(length * items, setting.max_batch), setting.max_batch).mean_ms / load
    solo_ms = 4 * setting.curve.step(items, setting.max_batch).mean_ms
    jobs = []
    for key in range(length):
        due_s = (DEADLINES[0] * solo_ms + draw.random() * last_ms) / 1000
        options = tuple(Option(rung, Load(due_s, items, rung.nfe or 1, Cost(0.1))) for rung in RUNGS)
        jobs.append(Job(key, draw.choice((1, 2, 2, 3)), due_s, due_s, options))
    return jobs


def too_much(key: int, due_s: float, setting: Setting) -> Job:
    """A request that an idle worker could just do in time, and that a busy one must refuse."""
    steps = int(due_s * 1000 / setting.scale.mean_ms / setting.curve.at(128).mean_ms * 0.8)
    return Job(key, 2, due_s, due_s, (Option(RUNGS[0], Load(due_s, 128, max(1, steps))),))


def plans(model: QueueModel) -> Iterator[tuple[int, ...]]:
    """Every plan that keeps every deadline, in the model's order of jobs."""
    for levels in itertools.product(*(range(len(job.options)) for job in model.order)):
        if max(model.lateness_ms(levels, model.by_due)) <= 1e-9:
            yield levels


def worth(model: QueueModel, levels: Sequence[int]) -> tuple[float, float, float]:
    """Summed quality of high, normal and low priority."""
    high, normal, low = (
        sum(
            job.options[level].rung.quality
            for job, level in zip(model.order, levels, strict=True)
            if job.priority == wanted
        )
        for wanted in (3, 2, 1)
    )
    return high, normal, low


def best_worth(model: QueueModel) -> tuple[float, float, float] | None:
    """The most quality for high, then normal, then low priority; None where no plan keeps every deadline."""
    return max((worth(model, levels) for levels in plans(model)), default=None)


def planned_levels(model: QueueModel) -> tuple[int, ...]:
    """What `plan_queue` plans for a model's jobs, in the model's order."""
    plan = plan_queue(model.order, model.setting)
    return tuple(plan[job.key].level for job in model.order)


def gap_figures(name: str, queues: int, priorities: str) -> dict[str, Any]:
    """Plans of short queues against the best there are."""
    setting, items = WORKERS[name]
    gaps, unkept, kept, outdone = [], 0, 0, 0
    for seed in range(queues):
        draw = random.Random(seed)
        length = draw.randint(2, 6)
        jobs = [make_job(key, draw, setting, draw.choice(items), 1.0, priorities) for key in range(length)]
        model = QueueModel(jobs, setting)
        best = best_worth(model)
        if best is None:
            continue
        kept, levels = kept + 1, planned_levels(model)
        ours = worth(model, levels)
        unkept += max(model.lateness_ms(levels, model.by_due)) > 1e-9
        gaps.append(1 - sum(ours) / sum(best))
        outdone += next((mine < other for mine, other in zip(ours, best, strict=True) if abs(mine - other) > 1e-9), 0)
    return {
        "worker": name,
        "priorities": "mixed" if len(priorities) > 1 else "one",
        "queues_that_can_be_kept": kept,
        "not_kept_by_ours": unkept,
        "a_better_plan_exists": outdone,
        "quality_gap_mean": statistics.mean(gaps),
        "quality_gap_p95": quantile(gaps, 0.95),
        "quality_gap_most": max(gaps),
    }


def timing_figures(length: int, load: float, items: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of planning, admitting and refusing, median and p95 over queues."""
    setting = Setting(0.0, IMAGES, 128, Cost(1.05, 0.0005))
    times: dict[str, list[float]] = {"plan": [], "admit": [], "refuse": []}
    for seed in range(repeats):
        jobs = queue(length, load, items, seed)
        newcomer = queue(1, 0.1, items, seed + 1)[0]
        newcomer = Job(length + 1, 2, 60.0, 60.0, newcomer.options)
        hopeless = too_much(length + 2, statistics.median(job.due_s for job in jobs), setting)
        times["plan"].append(timed_ms(lambda jobs=jobs: plan_queue(jobs, setting)))
        times["admit"].append(timed_ms(lambda jobs=jobs, new=newcomer: admit(jobs, new, setting)))
        times["refuse"].append(timed_ms(lambda jobs=jobs, new=hopeless: check(jobs, new, setting)))
    row: dict[str, Any] = {"length": length, "load": load, "images_each": items}
    for name, found in times.items():
        row[f"{name}_p50_ms"], row[f"{name}_p95_ms"] = statistics.median(found), quantile(found, 0.95)
    return row


def timed_ms(act: Callable[[], object]) -> float:
    """The time that one call takes; a refusal is an answer, too."""
    start_s = time.perf_counter()
    with suppress(Refused):
        act()
    return (time.perf_counter() - start_s) * 1000


def main() -> None:
    """Measures, prints, and writes `benchmarks/results/planning.json` unless `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer queues; write nothing")
    quick = parser.parse_args().quick
    gaps = [gap_figures(name, 25 if quick else 400, kinds) for name in WORKERS for kinds in ("2", "123")]
    for row in gaps:
        print(f"{row['worker']:44} {row['priorities']:5}: gap {row['quality_gap_mean']:7.2%} mean,"
              f" {row['quality_gap_most']:6.1%} most; not kept {row['not_kept_by_ours']}"
              f" of {row['queues_that_can_be_kept']}")  # fmt: skip
    cells = itertools.product((1, 32), (0.5, 1.5), LENGTHS)
    times = [timing_figures(length, load, items, 5 if quick else 60) for items, load, length in cells]
    for row in times:
        print(f"{row['length']:4} requests of {row['images_each']:2} at load {row['load']}:"
              f" plan {row['plan_p50_ms']:6.2f} ms, admit {row['admit_p50_ms']:6.2f} ms,"
              f" refuse {row['refuse_p50_ms']:6.2f} ms (p95 {row['refuse_p95_ms']:.2f})")  # fmt: skip
    if not quick:
        print(write("planning", {"gap": gaps, "times": times}))


if __name__ == "__main__":
    main()
