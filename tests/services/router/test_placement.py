"""Placement is pure: what it ranks first, and what it refuses."""

import random
from collections.abc import Sequence

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from still_worker import Still

from headway.cost import Cost, Load, StepCurve, predict_finish
from headway.errors import BadInput, NoSuchRung, NotFound
from headway.quality import Ladder, Rung
from headway.requests import service_level
from headway.v1 import common_pb2, worker_pb2
from services.router.placement import Ask, Candidate, InTime, Placement, best_first, expect
from services.router.policies import Placer, read_policy
from services.router.roster import Roster
from services.router.view import (
    Asset,
    BadReport,
    Description,
    Report,
    View,
    check_report,
    make_view,
    read_description,
    read_report,
)

NOW_S = 1000.0
LADDER = Ladder((Rung("4", 1.0, nfe=4), Rung("2", 0.8, nfe=2), Rung("1", 0.5, nfe=1)))


def view(
    name: str,
    *,
    step_ms: float = 10.0,
    loads: tuple[Load, ...] = (),
    kind: common_pb2.Kind = common_pb2.KIND_IMAGE,
    device: str = "",
    assets: tuple[str, ...] = ("digits",),
    ladder: Ladder = LADDER,
) -> View:
    description = Description(name, kind, device, "", tuple(Asset(asset, f"hash-{asset}", ladder) for asset in assets))
    curves = {("", ""): StepCurve(((1, Cost(step_ms)),))}
    report = Report(NOW_S, loads, curves, 8, 0.0, len(loads), 0.0, False)
    return make_view(name, description, report, ())


def ask(budget_s: float = 1.0, level: common_pb2.ServiceLevel | None = None, asset: str = "") -> Ask:
    level = level or common_pb2.ServiceLevel()
    return Ask(common_pb2.KIND_IMAGE, "model", asset, level, NOW_S, NOW_S + budget_s)


def rank(request: Ask, views: Sequence[View], now_s: float, quantile: float) -> list[Placement]:
    """As Headway's own policy does, which looks at all of so few."""
    placer = Placer(read_policy("headway"), quantile=quantile, draw=random.Random(0))
    return placer.place(request, Roster(Still(view) for view in views), now_s)


def order(request: Ask, *views: View) -> list[str]:
    return [placement.view.address for placement in rank(request, views, NOW_S, 0.9)]


def test_higher_quality_in_time_comes_first_then_the_earlier_finish() -> None:
    slow, medium, quick = view("slow", step_ms=30), view("medium", step_ms=20), view("quick", step_ms=10)
    assert order(ask(1.0), slow, medium, quick) == ["quick", "medium", "slow"]
    first, second, third = rank(ask(0.081), [slow, medium, quick], NOW_S, 0.9)
    assert [placement.rung.label for placement in (first, second, third)] == ["4", "4", "2"]


def test_a_busy_worker_comes_after_an_idle_one() -> None:
    busy = view("busy", loads=(Load(NOW_S + 0.2, 8, 4),))
    assert order(ask(), busy, view("idle")) == ["idle", "busy"]


def test_the_target_is_aimed_at_before_quality() -> None:
    level = service_level(target_s=0.05)
    placements = rank(ask(10.0, level), [view("slow", step_ms=60), view("quick", step_ms=20)], NOW_S, 0.9)
    assert [(p.view.address, p.rung.label, p.in_time) for p in placements] == [
        ("quick", "2", InTime.FOR_TARGET),
        ("slow", "4", InTime.FOR_DEADLINE),
    ]


def test_what_nobody_can_do_in_time_is_still_ranked_for_the_worker_decides() -> None:
    (placement,) = rank(ask(0.005), [view("only")], NOW_S, 0.9)
    assert (placement.in_time, placement.rung.label) == (InTime.LATE, "1")


def test_work_of_other_kinds_on_the_same_device_counts() -> None:
    frames = view("splat", kind=common_pb2.KIND_SPLAT, device="gpu0", loads=(Load(NOW_S + 0.1, 1, 0, Cost(500.0)),))
    shared, own = view("shared", device="gpu0", step_ms=9), view("own", device="gpu1", step_ms=10)
    assert order(ask(), frames, shared, own) == ["own", "shared"]
    assert order(ask(0.09), frames, shared, own) == ["shared", "own"]  # due before the frame


def test_the_asset_must_be_there() -> None:
    digits, faces = view("a"), view("b", assets=("digits", "faces"))
    assert order(ask(asset="faces"), digits, faces) == ["b"]
    assert order(ask(asset="hash-faces"), digits, faces) == ["b"]
    with pytest.raises(NotFound) as failure:
        order(ask(asset="cats"), digits, faces)
    assert failure.value.metadata["known"] == "digits,faces"
    assert order(ask(asset="cats")) == []


def test_rungs_and_floors_are_checked() -> None:
    short = view("short", ladder=Ladder((Rung("1", 1.0, nfe=1),)))
    assert order(ask(level=service_level(exact="2")), short, view("long")) == ["long"]
    with pytest.raises(NoSuchRung):
        order(ask(level=service_level(exact="9")), short, view("long"))
    with pytest.raises(BadInput):
        order(ask(level=service_level(at_least="psnr_db=3")), view("long"))


def test_frames_cost_by_their_rung_and_size() -> None:
    ladder = Ladder((Rung("100%", 1.0), Rung("50%", 0.6, psnr_db=35.0)))
    description = Description("s", common_pb2.KIND_SPLAT, "", "", (Asset("room", "hash", ladder),))
    curves = {
        ("hash", "100%"): StepCurve(((1, Cost(100.0)),)),
        ("hash", "50%"): StepCurve(((1, Cost(40.0)),)),
    }
    worker = make_view("s", description, Report(NOW_S, (), curves, 1, 0.0, 0, 0.0, False), ())
    level = common_pb2.ServiceLevel()
    small = Ask(common_pb2.KIND_SPLAT, "scene", "room", level, NOW_S, NOW_S + 0.15)
    large = Ask(common_pb2.KIND_SPLAT, "scene", "room", level, NOW_S, NOW_S + 0.15, pixels=512 * 512 * 3)
    assert rank(small, [worker], NOW_S, 0.9)[0].rung.label == "100%"
    assert rank(large, [worker], NOW_S, 0.9)[0].rung.label == "50%"


def test_texts_cost_their_prompt_and_their_tokens() -> None:
    ladder = Ladder(
        (
            Rung("100%", 1.0, token_share=1.0),
            Rung("50%", 0.5, token_share=0.5),
            Rung("floor", 0.0, token_share=0.0),
        )
    )
    description = Description("t", common_pb2.KIND_TEXT, "", "", (Asset("model", "hash", ladder),))
    curves = {("hash", ""): StepCurve(((1, Cost(1.0)),))}
    worker = make_view("t", description, Report(NOW_S, (), curves, 4, 0.5, 0, 0.0, False), ())
    level = common_pb2.ServiceLevel()

    def placed(tokens: int, prompt_tokens: int) -> tuple[str, float]:
        text = Ask(
            common_pb2.KIND_TEXT, "model", "", level, NOW_S, NOW_S + 0.2, tokens=tokens, prompt_tokens=prompt_tokens
        )
        placement = rank(text, [worker], NOW_S, 0.9)[0]
        return placement.rung.label, placement.finish.mean_ms

    assert placed(100, 100) == ("100%", 150.0)
    assert placed(100, 240) == ("50%", 170.0)
    assert placed(100, 360) == ("floor", 196.0)
    assert placed(10, 380) == ("100%", 200.0)


def test_who_holds_up_others_less_comes_before_who_would_be_done_a_little_earlier() -> None:
    """Of a prompt that one worker has cached, the other would compute the whole while its other texts wait."""
    description = Description("t", common_pb2.KIND_TEXT, "", "", (Asset("model", "hash", LADDER),))
    ladder = Ladder((Rung("100%", 1.0, token_share=1.0),))
    curves = {("", ""): StepCurve(((1, Cost(1.0)), (8, Cost(2.0))))}

    def text_worker(name: str, queued: int) -> Candidate:
        loads = tuple(Load(NOW_S + 1, 1, 10) for _ in range(queued))
        report = Report(NOW_S, loads, curves, 8, 0.1, queued, 0.0, False)
        asset = Asset("model", "hash", ladder)
        return Candidate(make_view(name, description, report, ()), asset, (), 400 if name == "holder" else 0)

    text = Ask(
        common_pb2.KIND_TEXT, "model", "", common_pb2.ServiceLevel(), NOW_S, NOW_S + 9,
        tokens=10, prompt_tokens=100, bytes_per_token=4,
    )  # fmt: skip

    def first(holders_queue: int, others_queue: int) -> str:
        candidates = [text_worker("holder", holders_queue), text_worker("other", others_queue)]
        return best_first(expect(text, candidates, NOW_S, 0.9), 0.9)[0].view.address

    holder, other = expect(text, [text_worker("holder", 16), text_worker("other", 3)], NOW_S, 0.9)
    assert other.finish.mean_ms < holder.finish.mean_ms
    assert other.others_ms == pytest.approx(3 * 9.9)  # each of the three waits for all tokens but the last
    assert holder.others_ms == 0.0
    assert first(16, 3) == "holder"
    assert first(16, 0) == "other"  # nobody waits there
    assert first(40, 3) == "other"


@pytest.mark.parametrize(
    ("quick", "steady", "first"),
    [
        (None, None, "quick"),
        (100.0, None, "steady"),
        (100.0, 1000.0, "steady"),
        (100.0, 110.0, "quick"),
        (1000.0, 100.0, "quick"),
    ],
)
def test_a_prompt_that_nobody_has_goes_to_the_cache_that_loses_least(
    quick: float | None, steady: float | None, first: str
) -> None:
    """Unless that worker is slower by more than is lost: 20 ms of prefill here."""
    ladder = Ladder((Rung("100%", 1.0, token_share=1.0),))
    about = Description("t", common_pb2.KIND_TEXT, "", "", (Asset("model", "hash", ladder),))

    def text_worker(name: str, step_ms: float, kept_kv_ms: float | None) -> Still:
        curves = {("", ""): StepCurve(((1, Cost(step_ms)),))}
        return Still(make_view(name, about, Report(NOW_S, (), curves, 8, 0.2, 0, 0.0, False, kept_kv_ms), ()))

    text = Ask(
        common_pb2.KIND_TEXT, "model", "", common_pb2.ServiceLevel(), NOW_S, NOW_S + 9, tokens=10, prompt_tokens=100
    )
    for slower_ms, comes_first in ((1.0, first), (3.5, "quick")):
        workers = [text_worker("quick", 5.0, quick), text_worker("steady", 5.0 + slower_ms, steady)]
        placer = Placer(read_policy("headway"), quantile=0.9, draw=random.Random(0))
        assert placer.place(text, Roster(workers), NOW_S)[0].view.address == comes_first


loads = st.builds(
    Load,
    due_s=st.floats(NOW_S, NOW_S + 5),
    items=st.integers(1, 12),
    steps_left=st.integers(0, 5),
    setup=st.builds(Cost, st.floats(0, 50)),
)
fleets = st.lists(
    st.tuples(st.floats(1, 100), st.lists(loads, max_size=4), st.sampled_from(["", "a", "b"])), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(fleets, st.floats(0.01, 3), st.randoms(use_true_random=False))
def test_ranking_is_an_order_of_promises_and_does_not_depend_on_the_order_of_reports(
    fleet: list[tuple[float, list[Load], str]], budget_s: float, random: object
) -> None:
    views = [
        view(f"w{index}", step_ms=step_ms, loads=tuple(sorted(admitted, key=lambda load: load.due_s)), device=device)
        for index, (step_ms, admitted, device) in enumerate(fleet)
    ]
    placements = rank(ask(budget_s), views, NOW_S, 0.9)
    assert {placement.view.address for placement in placements} == {worker.address for worker in views}
    keys = [(p.in_time, -p.rung.quality) for p in placements]
    assert keys == sorted(keys)
    for placement in placements:
        in_time = placement.finish.quantile_ms(0.9) <= (ask(budget_s).due_s - NOW_S) * 1000  # rounded as it is there
        assert in_time == (placement.in_time is not InTime.LATE)
    assert order(ask(budget_s), *reversed(views)) == [placement.view.address for placement in placements]


@settings(max_examples=60, deadline=None)
@given(st.lists(loads, max_size=5), st.lists(loads, max_size=3))
def test_what_was_sent_since_the_report_counts_like_what_was_reported(before: list[Load], sent: list[Load]) -> None:
    report = Report(NOW_S, tuple(before), {}, 8, 0.0, len(before), 0.0, False)
    description = Description("w", common_pb2.KIND_IMAGE, "", "", ())
    seen = make_view("w", description, report, sent)
    assert list(seen.loads) == sorted([*before, *sent], key=lambda load: load.due_s)
    assert seen.in_flight == len(before) + len(sent)
    finish = predict_finish(seen.loads, report.general, 8)
    total_ms = max((cost.mean_ms for cost in finish), default=0.0)
    assert sum(work_ms for _, work_ms in seen.demand) == pytest.approx(total_ms)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_reports_are_refused_or_read_but_never_break_placement(garbage: bytes) -> None:
    try:
        message = worker_pb2.WorkerState.FromString(garbage)
        check_report(message)
    except (DecodeError, BadReport):
        return
    description = Description("w", common_pb2.KIND_IMAGE, "", "", (Asset("digits", "h", LADDER),))
    rank(ask(), [make_view("w", description, read_report(message, NOW_S), ())], NOW_S, 0.9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("where", ["step mean", "step variance", "setup mean", "setup variance", "prefill", "kept"])
def test_costs_that_are_no_costs_are_refused(value: float, where: str) -> None:
    state = {
        "step mean": worker_pb2.WorkerState(step_costs=[worker_pb2.StepCost(batch=1, mean_ms=value)]),
        "step variance": worker_pb2.WorkerState(step_costs=[worker_pb2.StepCost(batch=1, mean_ms=1, var_ms2=value)]),
        "setup mean": worker_pb2.WorkerState(loads=[worker_pb2.Load(setup_mean_ms=value)]),
        "setup variance": worker_pb2.WorkerState(loads=[worker_pb2.Load(setup_var_ms2=value)]),
        "prefill": worker_pb2.WorkerState(prefill_token_ms=value),
        "kept": worker_pb2.WorkerState(kept_kv_ms=value),
    }[where]
    with pytest.raises(BadReport):
        check_report(state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_work_that_is_due_at_no_time_is_refused_and_late_work_is_not(value: float) -> None:
    check_report(worker_pb2.WorkerState(loads=[worker_pb2.Load(due_in_ms=-5.0)]))
    with pytest.raises(BadReport):
        check_report(worker_pb2.WorkerState(loads=[worker_pb2.Load(due_in_ms=value)]))


def test_a_worker_that_has_kept_all_does_not_say_for_how_long() -> None:
    assert read_report(worker_pb2.WorkerState(), NOW_S).kept_kv_ms is None
    assert read_report(worker_pb2.WorkerState(kept_kv_ms=0.0), NOW_S).kept_kv_ms == 0.0


def test_a_worker_of_another_kind_or_with_broken_ladders_is_refused() -> None:
    described = worker_pb2.DescribeResponse(kind=common_pb2.KIND_TEXT)
    with pytest.raises(BadReport, match="text, not for image"):
        read_description(described, common_pb2.KIND_IMAGE)
    described.assets.add(name="empty")
    with pytest.raises(BadReport, match="ladders"):
        read_description(described, common_pb2.KIND_TEXT)
