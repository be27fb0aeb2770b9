import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import Cost, LearnedScale, LearnedStall, Load, StepCurve, predict_finish, solo_ms

CURVE = StepCurve(((1, Cost(10.0, 1.0)), (4, Cost(16.0, 4.0)), (8, Cost(24.0, 4.0))))


def test_means_and_variances_add_and_the_quantile_is_taken_once() -> None:
    total = Cost(10, 4).times(3) + Cost(5, 4)
    assert (total.mean_ms, total.var_ms2) == (35, 16)
    assert total.quantile_ms(0.5) == pytest.approx(35)
    assert total.quantile_ms(0.999) == pytest.approx(35 + 3.0902 * 4, rel=1e-4)
    assert Cost(1, 100).quantile_ms(0.01) == 0


def test_a_factor_of_its_own_widens_the_product() -> None:
    product = Cost(10, 0).scaled(Cost(2.0, 0.25))
    assert (product.mean_ms, product.var_ms2) == (20, 25)


@pytest.mark.parametrize(("items", "mean_ms"), [(1, 10), (2, 12), (4, 16), (6, 20), (8, 24), (12, 32)])
def test_the_curve_is_linear_between_and_beyond(items: int, mean_ms: float) -> None:
    assert CURVE.at(items).mean_ms == pytest.approx(mean_ms)


@pytest.mark.parametrize("sizes", [(), (0,), (4, 4), (8, 4)])
def test_a_curve_needs_rising_sizes(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rising"):
        StepCurve(tuple((size, Cost(1.0)) for size in sizes))


def test_loads_that_fit_share_their_steps() -> None:
    loads = [Load(1.0, 4, 2), Load(2.0, 4, 3)]
    first, second = predict_finish(loads, CURVE, max_batch=8)
    assert first.mean_ms == pytest.approx(2 * 24)
    assert second.mean_ms == pytest.approx(2 * 24 + 16)


def test_loads_that_do_not_fit_wait_in_order() -> None:
    loads = [Load(1.0, 8, 1), Load(2.0, 4, 1), Load(3.0, 1, 1)]
    assert [round(cost.mean_ms) for cost in predict_finish(loads, CURVE, max_batch=8)] == [24, 42, 42]


def test_a_load_larger_than_a_batch_takes_several_passes() -> None:
    (only,) = predict_finish([Load(1.0, 20, 2)], CURVE, max_batch=8)
    assert only.mean_ms == pytest.approx(2 * 3 * 24)


def test_setup_comes_before_the_first_step() -> None:
    frame, text = predict_finish([Load(1.0, 1, 0, Cost(50, 9)), Load(2.0, 1, 1, Cost(5))], CURVE, max_batch=8)
    assert (frame.mean_ms, frame.var_ms2) == (55, 9)  # both are taken up before the first step
    assert text.mean_ms > frame.mean_ms


def test_foreign_work_due_earlier_goes_first() -> None:
    loads = [Load(1.0, 1, 1), Load(3.0, 1, 1)]
    early, late = predict_finish(loads, CURVE, max_batch=1, foreign=[(2.0, 100.0)])
    assert (early.mean_ms, late.mean_ms) == (10, 120)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), min_size=1, max_size=12))
def test_every_load_finishes_and_adding_one_at_the_end_helps_nobody(rows: list[tuple[int, int]]) -> None:
    loads = [Load(float(index), items, steps) for index, (items, steps) in enumerate(rows)]
    finish = predict_finish(loads, CURVE, max_batch=8)
    before = predict_finish(loads[:-1], CURVE, max_batch=8)
    assert all(math.isfinite(cost.mean_ms) for cost in finish)
    assert all(a.mean_ms <= b.mean_ms + 1e-9 for a, b in zip(before, finish, strict=False))


def test_what_differs_from_step_to_step_is_not_taken_for_the_hosts_speed() -> None:
    scale = LearnedScale()
    for turn in range(400):
        scale.observe(predicted_ms=10, actual_ms=14 if turn % 2 else 6)
    assert scale.value.mean_ms == pytest.approx(1.0, abs=0.05)
    assert scale.value.var_ms2 < 0.01


def test_the_scale_is_learned_and_one_stall_is_not_the_rule() -> None:
    scale = LearnedScale()
    for _ in range(200):
        scale.observe(predicted_ms=10, actual_ms=15)
    assert scale.value.mean_ms == pytest.approx(1.5, abs=0.01)
    steady = scale.value.var_ms2
    scale.observe(predicted_ms=10, actual_ms=1e6)
    assert scale.value.mean_ms < 2.2
    assert scale.value.var_ms2 > steady, "a host that is not steady is trusted less"
    before = scale.value
    scale.observe(predicted_ms=0, actual_ms=5)
    assert scale.value == before


@given(st.integers(1, 40), st.integers(0, 9), st.floats(0, 50))
def test_alone_is_what_the_queue_of_one_takes(items: int, steps: int, setup_ms: float) -> None:
    load = Load(1.0, items, steps, Cost(setup_ms))
    assert solo_ms(load, CURVE, 8) == pytest.approx(predict_finish([load], CURVE, 8)[0].mean_ms)


def test_a_scale_settles_at_what_was_measured_at_rest() -> None:
    scale = LearnedScale()
    for turn in range(200):
        scale.observe(predicted_ms=10, actual_ms=50 if turn % 40 < 20 else 10)
    unsteady = scale.value
    scale.settle(0.25)
    assert scale.value.mean_ms == 0.25
    assert scale.value.var_ms2 == unsteady.var_ms2 / 2


def test_a_load_larger_than_a_step_costs_what_was_measured_where_it_was():
    curve = StepCurve(((1, Cost(10.0)), (16, Cost(160.0)), (128, Cost(1280.0))))
    (finish,) = predict_finish([Load(1.0, 48, 2)], curve, 16)
    assert finish.mean_ms == pytest.approx(960.0)
    (finish,) = predict_finish([Load(1.0, 200, 1)], curve, 128)
    assert finish.mean_ms == pytest.approx(2560.0)


def test_a_calm_spell_says_little_about_the_next() -> None:
    learned = LearnedScale()
    for ratio in [1.0] * 20 + [1.6] * 10:
        learned.observe(predicted_ms=10.0, actual_ms=10.0 * ratio)
    rough = learned.value.var_ms2
    for _ in range(100):
        learned.observe(predicted_ms=10.0, actual_ms=16.0)
    assert rough > 0.001
    assert learned.value.var_ms2 > rough / 2


def test_the_longest_stall_lately_is_kept_free_and_forgotten() -> None:
    learned = LearnedStall()
    learned.observe(most_ms=10.0, actual_ms=50.0)
    learned.observe(most_ms=10.0, actual_ms=9.0)
    assert 39.0 < learned.value_ms < 40.0
    for _ in range(10 * LearnedStall.HALF_LIFE_STEPS):
        learned.observe(most_ms=10.0, actual_ms=9.0)
    assert learned.value_ms < 0.1


def test_a_hang_of_the_machine_does_not_close_the_worker() -> None:
    learned = LearnedStall()
    learned.observe(most_ms=10.0, actual_ms=60_000.0)
    assert learned.value_ms == LearnedStall.MOST_MS
