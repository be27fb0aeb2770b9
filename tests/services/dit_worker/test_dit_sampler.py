import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dit_worker.sampler import finish, next_time, noise, start, step


def _samples(flow, count: int):
    return [start(flow, seed=11 + i % 2, index=i, label=i % 3) for i in range(count)]


def test_noise_depends_on_seed_and_index_alone():
    first = noise(5, 3, (1, 8, 8))
    assert torch.equal(first, noise(5, 3, (1, 8, 8)))
    assert not torch.equal(first, noise(5, 4, (1, 8, 8)))
    assert not torch.equal(first, noise(3, 5, (1, 8, 8)))


def test_noise_is_the_same_on_every_machine():
    expected = torch.tensor([-0.95373386, 2.49557495, 1.19882548, -0.60905445])
    torch.testing.assert_close(noise(1, 2, (4,)), expected, rtol=1e-6, atol=0)


def test_noise_is_standard_normal():
    draws = torch.stack([noise(0, index, (1, 8, 8)) for index in range(2000)])
    assert draws.mean().item() == pytest.approx(0, abs=0.01)
    assert draws.std().item() == pytest.approx(1, abs=0.01)
    assert draws.abs().gt(1.959964).float().mean().item() == pytest.approx(0.05, abs=0.003)
    neighbours = torch.corrcoef(draws[:, 0].flatten(1).T) - torch.eye(64)
    assert neighbours.abs().amax() < 0.12


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 2**64 - 1), count=st.integers(1, 33))
@settings(max_examples=30, deadline=None)
def test_any_seed_gives_finite_noise(seed, index, count):
    drawn = noise(seed, index, (count,))
    assert drawn.shape == (count,)
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, 2**64)])
def test_a_seed_outside_64_bits_is_refused(seed, index):
    with pytest.raises(ValueError, match="seed and index"):
        noise(seed, index, (4,))


def test_rows_at_different_times_match_solo_runs(tiny):
    samples, ends = _samples(tiny, 7), [0.9, 0.75, 0.5, 0.5, 0.25, 0.1, 0.0]
    mixed = step(tiny, samples, ends)
    second_ends = [end / 2 for end in ends[:-1]]
    mixed = [*step(tiny, mixed[:-1], second_ends), mixed[-1]]
    for row, (sample, end) in enumerate(zip(samples, ends, strict=True)):
        (alone,) = step(tiny, [sample], [end])
        if end:
            (alone,) = step(tiny, [alone], [end / 2])
        torch.testing.assert_close(mixed[row].x, alone.x, rtol=0, atol=1e-5)
        assert (mixed[row].t, mixed[row].executed) == (alone.t, alone.executed)


def test_the_grid_from_noise_is_uniform_and_ends_at_zero():
    t, times = 1.0, []
    for left in range(4, 0, -1):
        t = next_time(t, left)
        times.append(t)
    assert times == pytest.approx([0.75, 0.5, 0.25, 0.0])
    assert t == 0.0


@given(plan=st.lists(st.integers(1, 8), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_replanning_always_moves_towards_zero(plan):
    t = 1.0
    for left in plan:
        if t == 0:
            break
        end = next_time(t, left)
        assert 0 <= end < t
        assert (end == 0) == (left == 1)
        t = end


def test_no_step_is_planned_with_none_left():
    with pytest.raises(ValueError, match="steps_left"):
        next_time(0.5, 0)


def test_a_finished_batch_counts_its_evaluations(tiny):
    done = finish(tiny, _samples(tiny, 3), 4)
    assert all(sample.finished and sample.executed == 4 for sample in done)
    assert all(torch.isfinite(sample.x).all() for sample in done)
