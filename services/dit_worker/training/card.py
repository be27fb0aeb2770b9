"""The model's card: every measured figure, as JSON for the worker; `page` has it for people."""

import json
from pathlib import Path
from typing import Any

from services.dit_worker.model.checkpoint import CARD, Config
from services.dit_worker.model.dit import Dit
from services.dit_worker.model.tensors import sha256_of
from services.dit_worker.training.data import DataSet
from services.dit_worker.training.dfd import Estimate
from services.dit_worker.training.extractor import EXTRACTOR, Extractor
from services.dit_worker.training.page import page
from services.dit_worker.training.quality import Figure, Measurement, Protocol, mean_dfds, normalised

PLACES = 5


def card(folder: Path, config: Config, measured: Measurement, extractor: Extractor, data: DataSet) -> dict[str, Any]:
    """The object that card.json holds. Figures are DFD unless named otherwise; lower is better."""
    topology = config.topology
    return {
        "name": config.name,
        "weights_sha256": config.weights_sha256,
        "image": [topology.image_px, topology.image_px, topology.channels],
        "guidance_max": config.guidance_max,
        "guidance": config.guidance.as_steps(),
        "rungs": [_rung(measured, steps, top=config.ladder[0]) for steps in config.ladder],
        "steps": {str(steps): _figure(figure) for steps, figure in measured.model.items()},
        "same_weights_euler": {str(steps): _figure(figure) for steps, figure in measured.euler.items()},
        "unguided": {str(steps): _figure(figure) for steps, figure in measured.unguided.items()},
        "floor_train_split": _figure(measured.floor),
        "class_gaussian_no_network": _figure(measured.gaussian),
        "class_means": _figure(measured.means),
        "paired_difference": {name: _estimate(one) for name, one in measured.degradation.items()},
        "nearest_train_l2": {name: round(one, 3) for name, one in measured.nearest_train.items()},
        "sample_of_seed_0": {
            "images": measured.protocol.sample,
            "dfd": {str(steps): round(dfd, PLACES) for steps, dfd in measured.sample.items()},
        },
        "extractor": {
            "sha256": sha256_of(folder / EXTRACTOR),
            "features": extractor.judge.features,
            "traits": extractor.judge.traits,
            "held_out_accuracy": round(extractor.accuracy(data.held_out), 4),
        },
        "data": {"set": data.name} | data.facts,
        "protocol": {
            "noise_seeds": measured.protocol.seeds,
            "few_seeds": measured.protocol.few_seeds,
            "images_per_seed": len(data.labels),
            "bootstrap_resamples": measured.protocol.resamples,
        },
        "training": config.training,
    }


def other_run(config: Config, network: Dit, extractor: Extractor, data: DataSet, protocol: Protocol) -> dict[str, Any]:
    """What the card keeps of another training run."""
    dfds = mean_dfds(network, extractor, data, protocol, config.guidance)
    return {
        "seed": config.training["seed"],
        "steps_done": config.training["steps_done"],
        "weights_sha256": config.weights_sha256,
        "dfd": {str(steps): round(dfd, PLACES) for steps, dfd in dfds.items()},
    }


def write(folder: Path, content: dict[str, Any]) -> None:
    """card.json and README.md, from the same object so that they cannot disagree."""
    (folder / CARD).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "README.md").write_text(page(content))


def _rung(measured: Measurement, steps: int, *, top: int) -> dict[str, Any]:
    dfd, best = measured.model[steps].estimate.value, measured.model[top].estimate.value
    quality = normalised(dfd, best, measured.gaussian.estimate.value)
    return {"steps": steps, "quality": round(quality, 4), "dfd": round(dfd, PLACES)}


def _figure(figure: Figure) -> dict[str, Any]:
    return _estimate(figure.estimate) | {"per_seed": [round(one, PLACES) for one in figure.per_seed]}


def _estimate(one: Estimate) -> dict[str, Any]:
    return {"dfd": round(one.value, PLACES), "interval_95": [round(one.low, PLACES), round(one.high, PLACES)]}
