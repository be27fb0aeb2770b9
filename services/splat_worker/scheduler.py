"""What to draw next, and at which rung. Pure: it reads works, what paths keep free, and times, and changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headway.cost import ZERO, Cost, Foreign, Load, StepCurve
from headway.planning import Choice, Job, Option, Setting
from services.splat_worker.costs import SceneCosts
from services.splat_worker.frame import Frame, Gang, Shot
from services.splat_worker.pace import Ahead

RENDER = "render"
# A frame is one indivisible step, whose cost is the load's own. What a gang saves is not promised beforehand.
_NO_STEPS = StepCurve(((1, ZERO),))


PAYS = 0.97
"""Frames go side by side where they take at most this share of the time that they take one after the other."""


@dataclass(frozen=True, slots=True)
class SplatScheduler:
    """A `headway.engine.Scheduler`: the planner's first frame, or the first few where a gang of them is quicker."""

    costs: Mapping[str, SceneCosts]
    """By scene hash."""
    rung_quantile: float
    admission_quantile: float
    overhead_ms: float
    failover_share: float = 0.0
    ahead: Ahead = field(default_factory=Ahead)

    def setting(self, now_s: float, foreign: Foreign, scale: Cost) -> Setting:
        return Setting(
            now_s,
            _NO_STEPS,
            1,
            scale,
            foreign,
            tuple(self.ahead.scaled(scale.mean_ms)),
            rung_quantile=self.rung_quantile,
            admission_quantile=self.admission_quantile,
            overhead_ms=self.overhead_ms,
            failover_share=self.failover_share,
            commits=True,
        )

    def job(self, work: Frame, now_s: float) -> Job:
        """The allowed rungs, each with the whole cost of the frame as calibrated."""
        if work.job is None:
            work.job = self._job(work)
        return work.job

    def _job(self, work: Frame) -> Job:
        ticket = work.ticket
        options = tuple(
            Option(rung, Load(ticket.budget.due_s, 1, 0, self.frame(work, rung.label))) for rung in ticket.wish.allowed
        )
        return Job(ticket.key, ticket.wish.priority, ticket.budget.due_s, ticket.target_s, options)

    def next_batch(self, works: Sequence[Frame], now_s: float, scale: Cost) -> Shot | Gang | None:
        if not works:
            return None
        return self._gang(works, now_s, scale) or self._shot(works[0], scale.mean_ms)

    def _shot(self, work: Frame, slowness: float) -> Shot:
        choice = work.ticket.choice
        assert choice is not None  # the loop plans every work before it asks for a step
        return Shot(RENDER, (work,), 1, self.frame(work, choice.option.rung.label), choice, slowness)

    def _gang(self, works: Sequence[Frame], now_s: float, scale: Cost) -> Gang | None:
        """The first works side by side, as many as are alike, where that is quicker and all are still in time.

        They are the planner's first, so nothing more urgent waits behind them but what a step makes wait anyway.
        """
        costs = self.costs[works[0].spec.scene.hash]
        alike = _alike(works[: costs.gang.points[-1][0]])
        gangs = (self._gang_of(works[:size], costs, now_s, scale) for size in costs.gang_sizes if size <= alike)
        return next((gang for gang in gangs if gang is not None), None)

    def _gang_of(self, members: Sequence[Frame], costs: SceneCosts, now_s: float, scale: Cost) -> Gang | None:
        """The gang of frames that are alike; None where it is no quicker, or makes one of them late."""
        size = len(members)
        efficiency = costs.side_by_side(size)
        if efficiency > PAYS:
            return None
        slowness = scale.mean_ms * efficiency * size  # of each: they share the cores
        shots = tuple(self._shot(work, slowness) for work in members)
        alone = sum((shot.predicted for shot in shots), ZERO)
        together = Cost(alone.mean_ms * efficiency, alone.var_ms2 * efficiency**2)
        room_ms = min(work.ticket.target_s for work in members) - now_s
        if together.scaled(scale).quantile_ms(self.admission_quantile) + self.overhead_ms > room_ms * 1000:
            return None
        return Gang(RENDER, tuple(members), size, together, shots)

    def frame(self, work: Frame, label: str) -> Cost:
        """What a frame costs at a rung, encoding included, on a host that is as quick as when it was calibrated."""
        spec = work.spec
        return self.costs[spec.scene.hash].frame(label, spec.pixels, spec.encoding)

    def encode(self, work: Frame) -> Cost:
        """What encoding it costs."""
        return self.costs[work.spec.scene.hash].encode[work.spec.encoding].at(work.spec.pixels)

    def after_binning(self, shot: Shot, tile_work: int, spent_ms: float, now_s: float) -> Choice:
        """The choice again, now that the tile lists say what is left: as it is while that is in time, else lower. Of
        scenes whose blending was measured by itself, as it is where frames are drawn in stages.

        A view that is costlier than those calibrated is so at every rung, so the lower rungs' costs grow alike. When no
        rung is in time, the quickest way to be done is taken.
        """
        (work,), choice = shot.works, shot.choice
        costs, due_s = self.costs[work.spec.scene.hash], choice.job.due_s
        assert costs.blend is not None
        left_ms = (costs.blend.at(tile_work) + self.encode(work)).mean_ms * shot.slowness
        room_ms = (due_s - now_s) * 1000 - self.overhead_ms
        lower = choice.job.options[choice.level + 1 :]
        if left_ms <= room_ms or not lower:
            return choice
        expected_ms = shot.predicted.mean_ms * shot.slowness
        costlier = max(1.0, (spent_ms + left_ms) / expected_ms)
        again_ms = [option.load.setup.mean_ms * shot.slowness * costlier for option in lower]
        step = next((i for i, ms in enumerate(again_ms) if ms <= room_ms), len(lower) - 1)
        if again_ms[step] >= left_ms:
            return choice
        return Choice(choice.job, choice.level + 1 + step, Cost(again_ms[step]))


def _alike(works: Sequence[Frame]) -> int:
    """How many of the first frames are of one kind and level, and no two of one film, which needs them one by one."""
    first, films = works[0], set[int]()
    for count, work in enumerate(works):
        if work.spec.kind != first.spec.kind or work.ticket.rung != first.ticket.rung or id(work.film) in films:
            return count
        if work.film is not None:
            films.add(id(work.film))
    return len(works)
