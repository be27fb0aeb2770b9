"""When restoring is worth it, as it is learned."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import Cost
from services.text_worker.sharing.learned import LEAST_SHARE, LearnedTime, RestoreCosts

TIMES = st.floats(0.01, 1e4)


def costs(trip_ms: float = 1.0, block_ms: float = 2.0) -> RestoreCosts:
    made = RestoreCosts(Cost(0.5), 0.9)
    made.asked(trip_ms)
    made.fetched(1, block_ms)
    return made


def test_nothing_is_asked_or_written_before_anything_is_known() -> None:
    unknown = RestoreCosts(Cost(0.5), 0.9)
    assert not unknown.known
    assert not unknown.worth_asking(10, Cost(1e6))
    assert not unknown.worth_writing(10, Cost(1e6))


def test_the_cheaper_way_is_taken() -> None:
    assert costs().worth_asking(10, Cost(40.0))  # 10 blocks take 25 ms, and 1 to ask
    assert not costs().worth_asking(10, Cost(25.0))
    assert costs().worth_writing(10, Cost(27.0))
    assert not costs().worth_writing(10, Cost(25.9))
    assert costs().saved_ms(2, Cost(3.0)) < 0


def test_what_is_seldom_there_is_asked_for_where_it_saves_much_alone() -> None:
    learned = costs()
    for _ in range(200):
        learned.found(0.0)
    assert not learned.worth_asking(10, Cost(25.0 + 0.9 / LEAST_SHARE))
    assert learned.worth_asking(10, Cost(25.0 + 1.1 / LEAST_SHARE))
    for _ in range(200):
        learned.found(1.0)
    assert learned.worth_asking(10, Cost(27.0))


def test_slowness_counts_at_once_and_is_forgotten_slowly() -> None:
    learned = costs()
    learned.fetched(10, 10_000.0)
    assert not learned.worth_asking(10, Cost(400.0))
    learned.fetched(10, 20.0)
    assert not learned.worth_asking(10, Cost(400.0))
    for _ in range(200):
        learned.fetched(10, 20.0)
    assert learned.worth_asking(10, Cost(40.0))


@settings(max_examples=50, deadline=None)
@given(times=st.lists(TIMES, min_size=1, max_size=30))
def test_a_mean_stays_between_what_was_measured(times: list[float]) -> None:
    learned = LearnedTime()
    for ms in times:
        learned.observe(ms)
    assert learned.cost is not None
    assert min(times) * 0.999 <= learned.cost.mean_ms <= max(times) * 1.001
    assert learned.cost.var_ms2 >= 0


@settings(max_examples=50, deadline=None)
@given(trip=TIMES, block=TIMES, blocks=st.integers(1, 64), computing=TIMES)
def test_what_is_asked_for_saves_time_where_it_is_there(
    trip: float, block: float, blocks: int, computing: float
) -> None:
    learned = costs(trip, block)
    if learned.worth_asking(blocks, Cost(computing)):
        assert learned.restoring(blocks).fetching.mean_ms < computing
    if learned.worth_writing(blocks, Cost(computing)):
        assert learned.restoring(blocks).whole.mean_ms < computing
