"""A network small enough to check by hand, with every weight away from its zero start."""

import copy

import pytest
import torch

from services.dit_worker.model.dit import Dit
from services.dit_worker.model.topology import Topology

TINY = Topology(image_px=4, channels=1, patch_px=2, width=16, depth=2, heads=2, classes=3, frequencies=4)


@pytest.fixture(scope="session")
def tiny_network() -> Dit:
    """Shared by all tests, so not to be changed."""
    torch.manual_seed(7)
    network = Dit(TINY)
    torch.nn.init.normal_(network.final.weight, std=0.3)
    return network.eval()


@pytest.fixture
def tiny(tiny_network) -> Dit:
    """A test's own."""
    return copy.deepcopy(tiny_network)
