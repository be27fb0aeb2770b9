"""The DFD of what a policy served: of the mixture, not a mean over rungs.

Noise depends on (seed, place) alone, so the images of every rung can be made again offline, from the same noise. A
mixture takes as many of them at each rung as the policy served there, and its DFD is measured as one set. All mixtures
have the same number of images, because a smaller set has a larger DFD.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from services.dit_worker.model import checkpoint
from services.dit_worker.serving_network import serving_network
from services.dit_worker.training.data import Split, digits
from services.dit_worker.training.dfd import estimate, frechet, moments
from services.dit_worker.training.extractor import JUDGES, Extractor, load_extractor
from services.dit_worker.training.quality import generate
from services.dit_worker.training.shapes.data_set import held_out

SEED = 0
RESAMPLES = 100


class ServedQuality:
    """Features of `count` images at every rung, and of the held-out images."""

    def __init__(self, folder: Path, count: int, resamples: int = RESAMPLES) -> None:
        """Seconds to minutes: makes all the images."""
        self._resamples = resamples
        model = checkpoint.load(folder)
        extractor, unseen = _judge(folder)
        labels = torch.arange(count) % model.config.topology.classes
        flow = serving_network(model.network)
        self._reference = moments(extractor(unseen.images))
        self._rungs = {
            str(steps): extractor(generate(flow, labels, steps, SEED, model.config.guidance))
            for steps in model.config.ladder
        }  # [count, features] each
        self._order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))

    def dfd(self, items_by_rung: Mapping[str, int]) -> tuple[float, float, float] | None:
        """The mixture's DFD and a 95 % interval over its images; None when nothing was served."""
        total = sum(items_by_rung.values())
        if total == 0:
            return None
        mixture = self._mixture({rung: items / total for rung, items in items_by_rung.items()})
        point = torch.tensor([frechet(moments(mixture), self._reference)])
        draw = torch.Generator().manual_seed(SEED)
        rows = torch.randint(len(mixture), (self._resamples, len(mixture)), generator=draw)
        spread = torch.tensor([frechet(moments(mixture[chosen]), self._reference) for chosen in rows])
        found = estimate(point, spread, least=0.0)
        return found.value, found.low, found.high

    def _mixture(self, shares: Mapping[str, float]) -> Tensor:
        """Each place once, at a rung drawn by its share; [count, features]."""
        features, done = torch.empty_like(next(iter(self._rungs.values()))), 0.0
        for rung, share in shares.items():
            first, last = round(done * len(self._order)), round((done + share) * len(self._order))
            chosen = self._order[first:last]
            features[chosen] = self._rungs[rung][chosen]
            done += share
        return features


def _judge(folder: Path) -> tuple[Extractor, Split]:
    """The extractor that the model's card was measured with, and the images that nothing was fitted to."""
    name = checkpoint.read_config(folder).name.removeprefix("dit-")
    return load_extractor(folder, JUDGES[name]), held_out() if name == "shapes" else digits().held_out
