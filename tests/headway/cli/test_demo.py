import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from headway.cli.demo import _some, choose_deadlines_s, shots_table
from headway.cli.demo_kinds import GENEROUS_S, Shot, _step_aside
from headway.errors import BudgetTooSmall, Failed
from headway.v1 import common_pb2, splat_pb2

COSTS_MS = {"4": 80.0, "2": 40.0, "1": 20.0}


class Priced:
    """A kind of work with known costs, of which the hops keep 10 ms."""

    name = "images"
    least_ms = 20.0

    def rungs(self) -> Sequence[str]:
        return list(COSTS_MS)

    def send(self, deadline_s: float, *, exact: str | None = None, shown: bool = False) -> Shot:
        if deadline_s < 0.02:
            return Shot(deadline_s, 0.001, None, None, BudgetTooSmall(budget_ms=6, least_budget_ms=self.least_ms), "")
        plan = common_pb2.Plan(budget_ms=deadline_s * 1000 - 10, predicted_p99_ms=COSTS_MS[exact or "4"])
        return Shot(deadline_s, 0.1, plan, common_pb2.Served(), None, "")


class Broken(Priced):
    def send(self, deadline_s: float, *, exact: str | None = None, shown: bool = False) -> Shot:
        return Shot(deadline_s, 0.1, None, None, Failed("broken"), "")


def test_each_deadline_lies_between_two_rungs() -> None:
    generous, two, one, hopeless = choose_deadlines_s(Priced())
    assert (generous, two, one) == (GENEROUS_S, pytest.approx(0.070), pytest.approx(0.040))
    assert hopeless == pytest.approx(0.016)


def test_no_rung_gets_less_than_a_refusal_says_would_do() -> None:
    kind = Priced()
    kind.least_ms = 50.0
    assert choose_deadlines_s(kind) == [GENEROUS_S, pytest.approx(0.070), pytest.approx(0.065), pytest.approx(0.016)]
    kind.least_ms = 100.0
    assert choose_deadlines_s(kind) == [GENEROUS_S, pytest.approx(0.120), pytest.approx(0.016)]


def test_a_failure_with_ample_time_is_not_hidden() -> None:
    with pytest.raises(Failed, match="broken"):
        choose_deadlines_s(Broken())


@pytest.mark.parametrize(("count", "kept"), [(1, "a"), (4, "abcd"), (7, "aceg"), (10, "adgj")])
def test_of_many_rungs_a_few_are_shown_with_first_and_last(count: int, kept: str) -> None:
    assert "".join(_some("abcdefghij"[:count])) == kept


def test_the_table_tells_served_late_and_refused_apart() -> None:
    rung = common_pb2.Rung(label="2")
    served = common_pb2.Served(rung=rung, quality=0.5, steps_executed=2, reason=common_pb2.RUNG_REASON_BEST_FIT)
    shots = [
        ("images", Shot(1.0, 0.5, None, served, None, "a.png")),
        ("images", Shot(1.0, 1.5, None, served, None, "b.png")),
        ("text", Shot(0.005, 0.001, None, None, BudgetTooSmall(budget_ms=5, least_budget_ms=30), "")),
    ]
    page = Console(width=100, file=io.StringIO())
    page.print(shots_table(shots))
    rows = page.file.getvalue().splitlines()
    assert any("in time" in row and "a.png" in row for row in rows)
    assert any("late" in row and "b.png" in row for row in rows)
    assert any("refused" in row and "budget too small: 30 ms would do" in row for row in rows)


def test_each_frame_is_seen_from_a_place_of_its_own() -> None:
    vector = splat_pb2.Vector3
    camera = splat_pb2.LookAtCamera(
        position=vector(x=1, z=-4), target=vector(x=1), up=vector(y=-1), field_of_view_deg=40
    )
    first, second = _step_aside(camera, 1), _step_aside(camera, 2)
    assert first != second
    assert (first.look_at.position.z, first.look_at.position.x) == (pytest.approx(-3.996), 1)
    assert (first.look_at.up, first.look_at.field_of_view_deg) == (camera.up, 40)
