"""What a step is said to cost: sequences, drafts and prompts together."""

import pytest

from headway.cost import Cost, StepCurve
from headway.planning import Setting
from headway.v1 import worker_pb2
from services.text_worker.costs import TextCosts, costs_of
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.store import KvStore
from services.text_worker.main import complete_state
from services.text_worker.model.architecture import Architecture, Attention, Layer, Mlp, Rope
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


def test_a_state_has_all_costs_at_the_hosts_present_speed() -> None:
    """Routers add what a prompt would cost to what is queued, which is told so too."""
    layer = Layer(Attention(1, 1, 2, Rope(1e4, 2), 1.0), Mlp(2))
    small = Architecture("llama", 8, 2, (layer,), 512, 1e-5, True, frozenset())
    state = worker_pb2.WorkerState(loads=[worker_pb2.Load(setup_mean_ms=3 * 9.0)])
    complete_state(KvStore(Pages(small, 9)), costs(7.5), state, Setting(0.0, DECODE, 1, scale=Cost(3.0)))
    assert state.prefill_token_ms == pytest.approx(3 * 9.0 / 64)
    assert state.queued_prefill_tokens == 64
    assert (state.free_kv_blocks, state.total_kv_blocks) == (8, 8)
    assert not state.HasField("kept_kv_ms")
