"""What deciding and accounting cost beside a step of the largest batch, with one image in each of its requests.

The parts of the worker run here without its server: plan as the engine loop does, step, apply. The second of four steps
is timed, in which no noise is drawn and nothing is encoded, so that all but the step itself is bookkeeping.
"""

import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.cost import ONE
from headway.deadline import Budget
from headway.device import DeviceClient
from headway.policy import Planned
from headway.quality import Ladder, Rung, read_wish
from headway.ticket import Ticket
from headway.v1 import common_pb2
from services.dit_worker.config import DitWorkerConfig
from services.dit_worker.encode import Format
from services.dit_worker.engine import DitEngine
from services.dit_worker.hardware import Hardware, prepare
from services.dit_worker.model import checkpoint
from services.dit_worker.model.guidance import UNGUIDED
from services.dit_worker.sample_group import ImagesSpec, SampleGroup
from services.dit_worker.sampler import Rows
from services.dit_worker.scheduler import DitScheduler

LARGEST = 128
PATIENCE_S = 600.0


class TimedStepper:
    """A stepper that says how long its last step took."""

    def __init__(self, hardware: Hardware) -> None:
        self._stepper, self.device, self.took_s = hardware.stepper, hardware.stepper.device, 0.0

    def __call__(self, rows: Rows) -> Tensor:
        start_s = time.perf_counter()
        after = self._stepper(rows)
        if after.is_cuda:
            torch.cuda.synchronize()
        self.took_s = time.perf_counter() - start_s
        return after


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one turn of the engine loop."""

    decide_s: float
    step_s: float
    around_step_s: float
    apply_s: float

    @property
    def share(self) -> float:
        """Bookkeeping over the step."""
        return (self.decide_s + self.around_step_s + self.apply_s) / self.step_s


def bookkeeping(folder: Path, threads: int, repeats: int, cache_dir: Path) -> dict[str, Any]:
    """Medians over `repeats` turns; steps of as many images as the worker would take, and of `LARGEST`."""
    model = checkpoint.load(folder)
    ladder = Ladder(tuple(Rung(str(rung.steps), rung.quality, nfe=rung.steps) for rung in model.rungs))
    found = {}
    for name, max_batch in (("as measured", None), ("largest", LARGEST)):
        config = DitWorkerConfig(model=folder, threads=threads, cache_dir=cache_dir, max_batch=max_batch)
        hardware = prepare(config, model, DeviceClient(None))
        scheduler = DitScheduler(
            hardware.costs, hardware.max_batch, config.rung_quantile, config.admission_quantile, overhead_ms=1.0
        )
        turns = [_turn(hardware, scheduler, ladder) for _ in range(repeats)]
        found[name] = {
            "images": hardware.max_batch,
            "requests": LARGEST,
            "step_ms": 1000 * statistics.median(turn.step_s for turn in turns),
            "decide_ms": 1000 * statistics.median(turn.decide_s for turn in turns),
            "around_step_ms": 1000 * statistics.median(turn.around_step_s for turn in turns),
            "apply_ms": 1000 * statistics.median(turn.apply_s for turn in turns),
            "share_of_step": statistics.median(turn.share for turn in turns),
        }
    return found


def _turn(hardware: Hardware, scheduler: DitScheduler, ladder: Ladder) -> Timed:
    stepper = TimedStepper(hardware)
    engine = DitEngine(hardware.flow, stepper, hardware.decoder, scheduler, time.monotonic)
    works = {work.ticket.key: work for work in (_request(seed, ladder) for seed in range(LARGEST))}
    timed = None
    for _ in range(2):  # the second is the one that counts
        timed = _loop_once(engine, stepper, scheduler, works)
    assert timed is not None
    return timed


def _loop_once(
    engine: DitEngine, stepper: TimedStepper, scheduler: DitScheduler, works: dict[int, SampleGroup]
) -> Timed:
    policy, marks = Planned(), [time.perf_counter()]
    now_s = time.monotonic()
    setting = scheduler.setting(now_s, (), ONE)
    plan = policy.plan([scheduler.job(work, now_s) for work in works.values()], setting)
    for key, choice in plan.items():
        works[key].ticket.choice = choice
    batch = scheduler.next_batch([works[key] for key in policy.ready(plan, setting)], now_s, ONE)
    assert batch is not None
    marks.append(time.perf_counter())
    result = engine.run(batch)
    marks.append(time.perf_counter())
    engine.apply(batch, result, now_s)
    marks.append(time.perf_counter())
    decided, ran, applied = (b - a for a, b in itertools.pairwise(marks))
    return Timed(decided, stepper.took_s, ran - stepper.took_s, applied)


def _request(seed: int, ladder: Ladder) -> SampleGroup:
    budget = Budget(time.monotonic(), time.monotonic() + PATIENCE_S, 0.0)
    ticket = Ticket(budget, read_wish(common_pb2.ServiceLevel(), ladder, common_pb2.KIND_IMAGE), budget.due_s)
    return SampleGroup(ticket, ImagesSpec((seed % 8,), seed, UNGUIDED, Format.RAW, 90))
