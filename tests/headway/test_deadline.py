import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.deadline import Budget, budget_of, floor_to_wire_s
from headway.errors import Expired


class Context:
    def __init__(self, remaining_s: float | None) -> None:
        self._remaining_s = remaining_s

    def time_remaining(self) -> float | None:
        return self._remaining_s


def take(remaining_s: float | None, **settings: float) -> Budget:
    defaults = {"max_deadline_s": 30.0, "reserve_s": 0.005}
    return budget_of(Context(remaining_s), clock=lambda: 100.0, **{**defaults, **settings})


@pytest.mark.parametrize(
    ("timeout_s", "floored_s"),
    [
        (0.0004, 0.0),
        (0.002, 0.0),
        (0.2345, 0.232),
        (0.999, 0.997),
        (2.341, 2.338),
        (12.01, 11.998),
        (123.4, 122.998),
        (2345.0, 2339.998),
    ],
)
def test_timeouts_are_floored_to_the_wire(timeout_s: float, floored_s: float) -> None:
    assert floor_to_wire_s(timeout_s) == pytest.approx(floored_s)


@given(st.floats(0, 90_000))
def test_flooring_never_grows_and_loses_at_most_one_quantum(timeout_s: float) -> None:
    floored_s = floor_to_wire_s(timeout_s)
    assert floored_s <= timeout_s + 1e-6
    assert timeout_s - floored_s <= max(0.001, timeout_s / 100) + 0.002 + 1e-6


def test_the_budget_is_what_is_left_less_the_reserve() -> None:
    budget = take(2.0)
    assert budget.total_s == pytest.approx(1.995)
    assert budget.remaining_s(101.0) == pytest.approx(0.995)
    assert budget.due_s == pytest.approx(101.995)


@pytest.mark.parametrize("remaining_s", [None, 1e9])
def test_a_call_without_a_deadline_gets_the_configured_most(remaining_s: float | None) -> None:
    assert take(remaining_s).deadline_s == pytest.approx(130.0)


@pytest.mark.parametrize("remaining_s", [-1.0, 0.0, 0.004])
def test_an_expired_budget_is_an_error_and_never_zero(remaining_s: float) -> None:
    with pytest.raises(Expired):
        take(remaining_s)


def test_the_next_hop_gets_what_is_left_on_the_wire_grid() -> None:
    budget = take(2.3479)
    assert budget.onward_timeout_s(100.0) == pytest.approx(2.338)
    with pytest.raises(Expired):
        budget.onward_timeout_s(102.3425)


@given(st.floats(0.01, 20), st.floats(0.01, 20))
def test_budgets_combine_by_minimum(first_s: float, second_s: float) -> None:
    budget = take(first_s, reserve_s=0.0)
    capped = budget.capped(100.0 + second_s)
    assert capped.due_s == pytest.approx(100.0 + min(first_s, second_s))
