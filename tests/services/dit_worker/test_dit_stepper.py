"""Steps on every device there is, and the network that serves, against the network that was trained."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import Cost, StepCurve
from services.dit_worker.costs import efficient_size, fastest_threads, in_passes
from services.dit_worker.cuda_stepper import CudaStepper
from services.dit_worker.sampler import Rows, take
from services.dit_worker.serving_network import serving_network
from services.dit_worker.stepper import CpuStepper, pass_edges

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}


def rows(count: int, seed: int = 0) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    t = torch.rand(count, generator=draw) * 0.9 + 0.1
    return Rows(
        torch.randn(count, 1, 4, 4, generator=draw),
        t,
        t * torch.rand(count, generator=draw),
        torch.randint(0, 4, (count,), generator=draw),
        1 + torch.rand(count, generator=draw),
    )


def stepper(network, device: str, precision: torch.dtype, most_rows: int):
    serving = serving_network(network, precision).to(device)
    return CpuStepper(serving, most_rows) if device == "cpu" else CudaStepper(serving, torch.device(device), most_rows)


@pytest.mark.parametrize("precision", TOLERANCES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_a_step_is_what_the_trained_network_says(tiny, device, precision):
    stepping = stepper(tiny, device, precision, most_rows=8)
    for count in (1, 3, 8, 9, 21):
        given_rows = rows(count, seed=count)
        on_device = Rows(given_rows.x.to(stepping.device), *given_rows.tensors[1:])
        after = stepping(on_device)
        assert after.device.type == device and after.dtype == torch.float32
        torch.testing.assert_close(after.cpu(), take(tiny, given_rows), rtol=0, atol=TOLERANCES[precision])


@pytest.mark.parametrize("device", DEVICES)
def test_one_rows_result_does_not_depend_on_the_others(tiny, device):
    stepping = stepper(tiny, device, torch.float32, most_rows=8)
    many = rows(13)
    many = Rows(many.x.to(stepping.device), *many.tensors[1:])
    together = stepping(many)
    for index in range(len(many)):
        alone = stepping(many.cut(index, index + 1))
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)


def test_serving_leaves_the_trained_network_as_it_was(tiny):
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    serving_network(tiny, torch.bfloat16)
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 300), most=st.integers(1, 64))
def test_passes_cover_all_rows_evenly(count, most):
    edges = pass_edges(count, most)
    assert [start for start, _ in edges] == [0, *(end for _, end in edges[:-1])] and edges[-1][1] == count
    sizes = [end - start for start, end in edges]
    assert max(sizes) <= most and max(sizes) - min(sizes) <= 1
    assert len(edges) == -(-count // most)


def curve(*points: tuple[int, float]) -> StepCurve:
    return StepCurve(tuple((size, Cost(mean_ms, 1.0)) for size, mean_ms in points))


def test_a_pass_is_as_large_as_pays_and_no_larger():
    assert efficient_size(curve((1, 10.0), (8, 20.0), (16, 32.0), (32, 63.0), (64, 140.0))) == 16
    assert efficient_size(curve((1, 10.0), (8, 11.0), (64, 12.0))) == 64
    assert efficient_size(curve((1, 1.0), (8, 8.0), (16, 16.1), (32, 33.0))) == 16
    assert efficient_size(curve((1, 1.0), (8, 8.0))) == 8


def test_steps_beyond_one_pass_cost_as_many_passes():
    found = in_passes(curve((1, 10.0), (8, 20.0), (32, 99.0)), 8, 30)
    assert found.points == (*curve((1, 10.0), (8, 20.0)).points, (32, Cost(80.0, 4.0)))
    whole = curve((1, 10.0), (8, 20.0))
    assert in_passes(whole, 8, 8) == whole


def test_the_quickest_number_of_threads_is_taken():
    assert fastest_threads({"threads": curve((1, 10.0), (2, 7.0), (4, 8.0))}) == 2
