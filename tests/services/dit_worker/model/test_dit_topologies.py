"""Named sizes against their published figures and against the network itself, without allocating it."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from services.dit_worker.model import checkpoint
from services.dit_worker.model.dit import Dit
from services.dit_worker.model.topologies import TOPOLOGIES, footprint

PUBLISHED = {  # millions of parameters, giga multiply-adds at 32x32x4: table 1 and table 4 of arXiv 2212.09748
    "dit-s/2": (33, 6.06),
    "dit-b/2": (130, 23.01),
    "dit-l/2": (458, 80.71),
    "dit-xl/2": (675, 118.64),
}
MODELS = Path(__file__).parents[4] / "models"


@pytest.mark.parametrize("name", PUBLISHED)
def test_latent_sizes_are_the_published_ones(name):
    """Ours has two more scalar embeddings and no learned variance: within 2 %, on the smallest 4 %."""
    millions, giga = PUBLISHED[name]
    taken = footprint(TOPOLOGIES[name])
    assert taken.parameters / 1e6 == pytest.approx(millions, rel=0.04 if name == "dit-s/2" else 0.02)
    assert taken.multiply_adds / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("name", ["digits", "shapes", "dit-xl/2"])
def test_closed_forms_count_what_the_network_holds_and_does(name):
    """On the meta device: every shape is worked out, no weight is allocated."""
    topology, batch = TOPOLOGIES[name], 2
    network = Dit.empty(topology)
    assert all(weight.is_meta for weight in network.parameters())
    taken = footprint(topology)
    assert sum(weight.numel() for weight in network.parameters()) == taken.parameters
    scalars = torch.empty(batch, device="meta")
    labels = torch.zeros(batch, dtype=torch.int64, device="meta")
    x = torch.empty(batch, *topology.image_shape, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made = network(x, scalars, scalars, labels, scalars)
    assert made.shape == x.shape
    assert counter.get_total_flops() == 2 * batch * taken.multiply_adds


def test_the_largest_size_would_need_a_gibibyte_and_a_quarter():
    assert footprint(TOPOLOGIES["dit-xl/2"]).weight_bytes() == pytest.approx(1.26 * 2**30, rel=0.02)


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_shipped_configs_are_the_named_sizes(name):
    assert checkpoint.read_config(MODELS / f"dit-{name}").topology == TOPOLOGIES[name]
