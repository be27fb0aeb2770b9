import math

import pytest

from headway.errors import BadInput, NoSuchRung
from headway.quality import Ladder, Rung, read_wish
from headway.v1 import common_pb2

IMAGES = Ladder((Rung("4", 1.0, nfe=4), Rung("2", 0.9, nfe=2), Rung("1", 0.6, nfe=1)))
FRAMES = Ladder((Rung("full", 1.0), Rung("75%", 0.8, psnr_db=40.0), Rung("50%", 0.5, psnr_db=32.5)))


def wish(ladder: Ladder = IMAGES, kind: int = common_pb2.KIND_IMAGE, **level: object) -> list[str]:
    return [rung.label for rung in read_wish(common_pb2.ServiceLevel(**level), ladder, kind).allowed]


def floor(**measure: float) -> common_pb2.QualityFloor:
    return common_pb2.QualityFloor(**measure)


def test_best_effort_allows_every_rung() -> None:
    assert wish() == ["4", "2", "1"]
    assert wish(best_effort=common_pb2.BestEffort()) == ["4", "2", "1"]


def test_a_floor_keeps_what_reaches_it() -> None:
    assert wish(at_least=floor(nfe=2)) == ["4", "2"]
    assert wish(at_least=floor(normalised=0.95)) == ["4"]
    assert wish(FRAMES, common_pb2.KIND_SPLAT, at_least=floor(psnr_db=35)) == ["full", "75%"]
    assert wish(FRAMES, common_pb2.KIND_SPLAT, at_least=floor(psnr_db=200)) == ["full"]


def test_an_exact_rung_stands_alone() -> None:
    assert wish(exact="2") == ["2"]


@pytest.mark.parametrize("level", [{"exact": "3"}, {"at_least": floor(nfe=5)}])
def test_what_is_not_on_the_ladder_is_refused_with_what_is(level: dict[str, object]) -> None:
    with pytest.raises(NoSuchRung, match=r"'4', '2', '1'"):
        wish(**level)


@pytest.mark.parametrize(
    ("level", "field"),
    [
        ({"priority": 9}, "service_level.priority"),
        ({"exact": "x" * 65}, "service_level.exact"),
        ({"at_least": floor()}, "service_level.at_least"),
        ({"at_least": floor(psnr_db=30)}, "service_level.at_least"),
        ({"at_least": floor(nfe=0)}, "service_level.at_least.nfe"),
        ({"at_least": floor(normalised=math.nan)}, "service_level.at_least.normalised"),
        ({"at_least": floor(normalised=1.5)}, "service_level.at_least.normalised"),
        ({"target": {"seconds": -1}}, "service_level.target"),
    ],
)
def test_bad_service_levels_name_their_field(level: dict[str, object], field: str) -> None:
    with pytest.raises(BadInput) as refused:
        wish(**level)
    assert list(refused.value.violations) == [field]


def test_the_defaults_of_a_wish() -> None:
    made = read_wish(common_pb2.ServiceLevel(), IMAGES, common_pb2.KIND_IMAGE)
    assert (made.priority, made.exact, made.floored, made.target_s) == (common_pb2.PRIORITY_NORMAL, False, False, None)


@pytest.mark.parametrize(
    "rungs", [(), (Rung("a", 0.5), Rung("b", 0.9)), (Rung("a", 1.0), Rung("a", 0.5)), (Rung("a", 1.5),)]
)
def test_a_ladder_that_is_none_is_refused(rungs: tuple[Rung, ...]) -> None:
    with pytest.raises(ValueError, match="ladder"):
        Ladder(rungs)


def test_a_rung_tells_only_what_it_has() -> None:
    assert IMAGES.rungs[1].to_proto() == common_pb2.Rung(label="2", quality=0.9, nfe=2)
