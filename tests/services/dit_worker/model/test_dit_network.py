import dataclasses

import pytest
import torch

from services.dit_worker.model.dit import Dit, rms_norm
from services.dit_worker.model.topology import Topology, TopologyError
from services.dit_worker.training.recipe import DIGITS


def _inputs(batch: int = 3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 1, 4, 4, generator=generator)
    t = torch.rand(batch, generator=generator)
    return x, t, t * 0.5, torch.arange(batch) % 3, torch.ones(batch)


def test_patches_and_image_are_each_others_inverse(tiny):
    x = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(tiny._to_image(tiny._to_patches(x)), x)
    planes = Dit(dataclasses.replace(tiny.topology, channels=3))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(planes._to_image(planes._to_patches(x)), x)


def test_every_input_reaches_the_output(tiny):
    x, t, gap, labels, inverse = _inputs()
    base = tiny(x, t, gap, labels, inverse)
    changed = [
        tiny(x + 0.1, t, gap, labels, inverse),
        tiny(x, t * 0.9, gap, labels, inverse),
        tiny(x, t, gap * 0.9, labels, inverse),
        tiny(x, t, gap, (labels + 1) % 4, inverse),
        tiny(x, t, gap, labels, inverse * 0.5),
    ]
    for other in changed:
        assert (other - base).abs().amax() > 1e-3


def test_average_velocity_feeds_the_gap_and_the_inverse_guidance(tiny):
    x, t, gap, labels, inverse = _inputs()
    torch.testing.assert_close(
        tiny.average_velocity(x, t, t - gap, labels, inverse * 2), tiny(x, t, gap, labels, inverse / 2)
    )


def test_linears_start_with_a_bounded_spectral_norm():
    network = Dit(DIGITS)
    weight = network.blocks[0].expand.weight
    assert torch.linalg.matrix_norm(weight, ord=2).item() == pytest.approx(2.0, rel=1e-4)


def test_rms_norm_gives_unit_size_and_survives_zero():
    torch.testing.assert_close(rms_norm(torch.randn(5, 64)).square().mean(dim=-1), torch.ones(5), rtol=1e-3, atol=0)
    assert torch.equal(rms_norm(torch.zeros(2, 8)), torch.zeros(2, 8))


def test_an_empty_network_takes_no_memory():
    assert all(tensor.is_meta for tensor in Dit.empty(DIGITS).state_dict().values())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"width": 0}, "width"),
        ({"depth": 10_000}, "depth"),
        ({"heads": 5}, "heads"),
        ({"image_px": 9}, "image_px"),
        ({"classes": True}, "classes"),
        ({"patch_px": 2.0}, "patch_px"),
    ],
)
def test_a_bad_topology_names_its_field(change, field):
    with pytest.raises(TopologyError, match=field):
        Topology.from_dict(DIGITS.as_dict() | change)


def test_a_topology_is_read_strictly():
    with pytest.raises(TopologyError, match="'widht'"):
        Topology.from_dict(DIGITS.as_dict() | {"widht": 3})
    with pytest.raises(TopologyError, match="'depth' is missing"):
        Topology.from_dict({key: value for key, value in DIGITS.as_dict().items() if key != "depth"})
