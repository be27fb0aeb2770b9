"""What a step is said to cost: sequences, drafts and prompts together."""

from headway.cost import Cost, StepCurve
from services.text_worker.costs import TextCosts, costs_of
from services.text_worker.speculation import MOST_DRAFTS

DECODE = StepCurve(((1, Cost(4.0)), (8, Cost(11.0, 0.5)), (16, Cost(20.0))))
PREFILL = StepCurve(((8, Cost(2.0)), (64, Cost(9.0))))


def costs(verify_ms: float) -> TextCosts:
    return costs_of({"decode": DECODE, "prefill": PREFILL, "verify": StepCurve(((1, Cost(verify_ms)),))}, 64)


def test_a_step_is_the_sum_of_its_kinds() -> None:
    assert costs(7.5).step_cost(2, 72) == DECODE.at(2) + PREFILL.at(64) + PREFILL.at(8)
    assert costs(7.5).step_cost(0, 8) == PREFILL.at(8)
    assert costs(7.5).step_cost(8, 0) == DECODE.at(8)


def test_drafts_cost_what_was_measured_of_one_sequence() -> None:
    assert costs(7.5).step_cost(1, 0, MOST_DRAFTS) == Cost(7.5, 0.5)
    assert costs(7.5).step_cost(2, 0, 6).mean_ms == 11.0 - 6 * 0.5
    assert TextCosts(DECODE, PREFILL, 64).step_cost(1, 0, MOST_DRAFTS) == DECODE.at(8)


def test_drafts_are_never_cheaper_than_none_nor_dearer_than_sequences() -> None:
    """Whatever a noisy host measured."""
    assert costs(1.0).step_cost(1, 0, 3).mean_ms == DECODE.at(1).mean_ms
    assert costs(50.0).step_cost(1, 0, 3) == DECODE.at(4)
