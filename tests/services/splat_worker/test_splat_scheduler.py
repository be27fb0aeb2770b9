"""Scheduler and engine over stepped time: what is planned, and what is decided again after binning."""

from dataclasses import replace

import pytest
import scene_files
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import Cost, StepCurve
from headway.deadline import Budget
from headway.errors import BadInput, Shed
from headway.planning import admit, plan_queue
from headway.quality import Ladder, Rung, read_wish
from headway.ticket import Finished, Ticket
from headway.v1 import common_pb2
from services.splat_worker.camera import look_at
from services.splat_worker.costs import SceneCosts
from services.splat_worker.cpu_renderer import CpuRenderer
from services.splat_worker.encode import Encoding
from services.splat_worker.engine import SplatEngine
from services.splat_worker.frame import Frame, FrameSpec, Gang, Shot
from services.splat_worker.ladder import RankedScene
from services.splat_worker.library import LoadedScene
from services.splat_worker.pace import Ahead
from services.splat_worker.scene import build_scene
from services.splat_worker.scheduler import SplatScheduler
from services.splat_worker.video import Film
from services.splat_worker.views import default_pose

LADDER = Ladder(
    (
        Rung("top", 1.0, gaussian_share=1.0, resolution_scale=1.0),
        Rung("half", 0.5, psnr_db=32.5, gaussian_share=0.5, resolution_scale=0.5),
        Rung("least", 0.2, psnr_db=25.0, gaussian_share=0.2, resolution_scale=0.25),
    )
)
SCENE = build_scene(scene_files.gaussians(count=400, degree=0))
LOADED = LoadedScene("test", RankedScene(SCENE, LADDER, default_pose(SCENE)))
SAME = Cost(1.0)


def flat(ms: float) -> StepCurve:
    return StepCurve(((1, Cost(ms)),))


# Blending costs 1 ms per 100 units of tile work, up to any amount.
COSTS = SceneCosts(
    render={"top": flat(100.0), "half": flat(40.0), "least": flat(10.0)},
    encode={encoding: flat(5.0) for encoding in Encoding},
    blend=StepCurve(((100, Cost(1.0)), (200, Cost(2.0)))),
)
SCHEDULER = SplatScheduler({LOADED.hash: COSTS}, rung_quantile=0.9, admission_quantile=0.999, overhead_ms=1.0)


def frame(budget_s: float = 10.0, level: common_pb2.ServiceLevel | None = None, size_px: int = 64) -> Frame:
    budget = Budget(0.0, budget_s, 0.0)
    wish = read_wish(level or common_pb2.ServiceLevel(), LADDER, common_pb2.KIND_SPLAT)
    camera = look_at((0, 1, 6), (0, 0, 0), (0, 1, 0), 50, size_px, size_px)
    spec = FrameSpec(LOADED, camera, (0.0, 0.0, 0.0), None, Encoding.RAW, 90)
    return Frame(Ticket(budget, wish, budget.due_s), spec)


def plan(*works: Frame, now_s: float = 0.0, scale: Cost = SAME) -> list[Frame]:
    planned = plan_queue([SCHEDULER.job(work, now_s) for work in works], SCHEDULER.setting(now_s, (), scale))
    by_key = {work.ticket.key: work for work in works}
    for key, choice in planned.items():
        by_key[key].ticket.choice = choice
        by_key[key].ticket.started_s = now_s
        by_key[key].ticket.plan = common_pb2.Plan(rung=choice.option.rung.to_proto(), steps=1)
    return [by_key[key] for key in planned]


def shot(work: Frame, scale: Cost = SAME) -> Shot:
    batch = SCHEDULER.next_batch(plan(work, scale=scale), 0.0, scale)
    assert batch is not None
    return batch


@pytest.mark.parametrize(("budget_s", "label"), [(1.0, "top"), (0.106, "top"), (0.1, "half"), (0.03, "least")])
def test_the_best_rung_that_fits_with_its_encoding_is_planned(budget_s: float, label: str) -> None:
    assert shot(frame(budget_s)).choice.option.rung.label == label


def test_a_slower_host_lowers_the_plan() -> None:
    assert shot(frame(0.15)).choice.option.rung.label == "top"
    assert shot(frame(0.15), Cost(2.0)).choice.option.rung.label == "half"


def test_the_most_urgent_frame_goes_first_and_alone() -> None:
    late, soon = frame(9.0), frame(1.0)
    batch = SCHEDULER.next_batch(plan(late, soon), 0.0, SAME)
    assert batch is not None
    assert batch.works == (soon,)
    assert (batch.items, batch.predicted.mean_ms) == (1, 105.0)
    assert SCHEDULER.next_batch([], 0.0, SAME) is None


def label_after(work: Frame, tile_work: int, spent_ms: float) -> str:
    return SCHEDULER.after_binning(shot(work), tile_work, spent_ms, spent_ms / 1000).option.rung.label


def test_after_binning_a_view_as_expected_keeps_its_rung() -> None:
    assert label_after(frame(0.11), tile_work=8000, spent_ms=20.0) == "top"


def test_after_binning_a_costlier_view_is_lowered_as_far_as_it_takes() -> None:
    assert label_after(frame(0.13), tile_work=20_000, spent_ms=20.0) == "half"
    assert label_after(frame(0.11), tile_work=40_000, spent_ms=20.0) == "least"


def test_after_binning_a_floor_or_exact_rung_is_never_broken() -> None:
    exact = common_pb2.ServiceLevel(exact="top")
    assert label_after(frame(0.11, exact), tile_work=90_000, spent_ms=20.0) == "top"
    floor = common_pb2.ServiceLevel(at_least=common_pb2.QualityFloor(psnr_db=30))
    assert label_after(frame(0.11, floor), tile_work=90_000, spent_ms=20.0) == "half"


def test_after_binning_starting_again_must_be_quicker_than_going_on() -> None:
    # 10 ms are left of the blending, none of the budget: the lowest rung would take longer than that.
    assert label_after(frame(0.107), tile_work=500, spent_ms=106.0) == "top"


@settings(max_examples=60, deadline=None)
@given(
    budget_s=st.floats(0.02, 1.0), tile_work=st.integers(1, 200_000), spent_ms=st.floats(0, 500), slow=st.floats(0.2, 5)
)
def test_after_binning_a_rung_is_never_raised(budget_s: float, tile_work: int, spent_ms: float, slow: float) -> None:
    planned = shot(frame(budget_s), Cost(slow))
    decided = SCHEDULER.after_binning(planned, tile_work, spent_ms, spent_ms / 1000)
    assert decided.level >= planned.choice.level
    assert decided.job == planned.choice.job


def test_frames_of_a_path_that_are_to_come_keep_others_out() -> None:
    busy, half = replace(SCHEDULER, ahead=Ahead()), common_pb2.ServiceLevel(exact="half")
    busy.ahead.keep(1, [(1.0, 980.0)])
    small, large = busy.job(frame(0.5), 0.0), busy.job(frame(0.5, half), 0.0)  # of 15 and of 45 ms
    admit([], small, busy.setting(0.0, (), SAME))  # due earlier, and the path still fits behind it
    with pytest.raises(Shed):
        admit([], large, busy.setting(0.0, (), SAME))
    busy.ahead.keep(1, ())
    admit([], large, busy.setting(0.0, (), SAME))


GANGS = replace(COSTS, gang=StepCurve(((1, Cost(10.0)), (2, Cost(16.0)))))  # two side by side take 80 %
GANG_SCHEDULER = replace(SCHEDULER, costs={LOADED.hash: GANGS})


def planned_step(scheduler: SplatScheduler, *works: Frame) -> Shot | Gang:
    batch = scheduler.next_batch(plan(*works), 0.0, SAME)
    assert batch is not None
    return batch


def test_frames_that_are_alike_go_side_by_side_where_that_is_quicker() -> None:
    gang = planned_step(GANG_SCHEDULER, frame(), frame(), frame())
    assert isinstance(gang, Gang)
    assert (len(gang.works), gang.items) == (2, 2)
    assert gang.predicted.mean_ms == pytest.approx(0.8 * 2 * 105)
    assert [each.slowness for each in gang.shots] == pytest.approx([1.6, 1.6])


def test_frames_go_one_by_one_where_a_gang_is_no_quicker_or_was_not_measured() -> None:
    slower = replace(COSTS, gang=StepCurve(((1, Cost(10.0)), (2, Cost(19.8)))))
    assert isinstance(planned_step(SCHEDULER, frame(), frame()), Shot)
    assert isinstance(planned_step(replace(SCHEDULER, costs={LOADED.hash: slower}), frame(), frame()), Shot)
    assert isinstance(planned_step(GANG_SCHEDULER, frame()), Shot)


def test_frames_that_differ_are_no_gang() -> None:
    exact = common_pb2.ServiceLevel(exact="half")
    assert isinstance(planned_step(GANG_SCHEDULER, frame(), frame(10.0, exact)), Shot)
    assert isinstance(planned_step(GANG_SCHEDULER, frame(), frame(size_px=128)), Shot)
    film, first, second = Film(64, 64), frame(), frame()
    first.film = second.film = film
    assert isinstance(planned_step(GANG_SCHEDULER, first, second), Shot)


@settings(max_examples=40, deadline=None)
@given(urgent_s=st.floats(0.11, 1.0), patient_s=st.floats(0.11, 1.0))
def test_a_gang_never_makes_one_of_its_frames_late(urgent_s: float, patient_s: float) -> None:
    exact = common_pb2.ServiceLevel(exact="top")
    step = planned_step(GANG_SCHEDULER, frame(urgent_s, exact), frame(patient_s, exact))
    in_time = min(urgent_s, patient_s) >= 0.8 * 2 * 0.105 + 0.001
    assert isinstance(step, Gang) == in_time


def test_the_engine_draws_a_gang_as_it_draws_each_alone() -> None:
    other = replace(frame().spec, camera=look_at((3, 1, 5), (0, 0, 0), (0, 1, 0), 50, 64, 64))
    works, twins = [frame(), frame()], [frame(), frame()]
    works[1].spec = twins[1].spec = other
    alone = [drawn(twin, Clock(0.001))[1].result.data for twin in twins]
    renderer, clock = CpuRenderer(2), Clock(0.001)
    engine, batch = SplatEngine(renderer, GANG_SCHEDULER, clock), planned_step(GANG_SCHEDULER, *works)
    events = engine.apply(batch, engine.run(batch), clock.now_s)
    renderer.close()
    assert [ticket for ticket, _ in events] == [work.ticket for work in works]
    assert [event.result.data for _, event in events] == alone


class Clock:
    """Moves on by `step_s` whenever it is read."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def drawn(work: Frame, clock: Clock) -> tuple[Frame, Finished]:
    engine, batch = SplatEngine(CpuRenderer(1), SCHEDULER, clock), shot(work)
    ((_, event),) = engine.apply(batch, engine.run(batch), clock.now_s)
    assert isinstance(event, Finished)
    return work, event


def test_the_engine_draws_what_was_planned() -> None:
    work, event = drawn(frame(0.12), Clock(0.001))
    assert (work.ticket.rung.label, work.ticket.steps_executed) == ("top", 1)
    assert (event.result.rendered_width, event.result.gaussians) == (64, 400)
    assert len(event.result.data) == 64 * 64 * 3
    assert [stage.name for stage in work.ticket.stages] == ["queue", "render", "encode"]


def test_a_view_that_is_too_complex_ends_its_own_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.splat_worker.rasterizer.binning.MAX_PAIRS", 10)
    engine, work = SplatEngine(CpuRenderer(1), SCHEDULER, Clock(0.001)), frame()
    batch = shot(work)
    ((ticket, error),) = engine.apply(batch, engine.run(batch), 0.0)
    assert ticket is work.ticket
    assert isinstance(error, BadInput)
    assert "camera" in error.violations


def test_the_engine_lowers_a_late_frame_after_binning_and_says_so() -> None:
    work, event = drawn(frame(0.12), Clock(0.05))  # project and bin take 50 ms of stepped time, half of the budget
    assert work.ticket.rung.label == "top"  # the blending that is left is small: no reason to start again
    huge = replace(COSTS, blend=StepCurve(((1, Cost(500.0)),)))
    slow = replace(SCHEDULER, costs={LOADED.hash: huge})
    work, clock = frame(0.12), Clock(0.01)
    engine = SplatEngine(CpuRenderer(1), slow, clock)
    batch = slow.next_batch(plan(work), 0.0, SAME)
    assert batch is not None and batch.choice.option.rung.label == "top"
    ((_, event),) = engine.apply(batch, engine.run(batch), clock.now_s)
    assert work.ticket.rung.label == "least"
    assert work.ticket.reason == common_pb2.RUNG_REASON_REPLANNED_LATE
    assert (event.result.width, event.result.rendered_width, event.result.gaussians) == (64, 16, 80)
