"""The model's card: every measured figure as JSON for the worker, and as a page for people."""

import json
from pathlib import Path
from typing import Any

from services.dit_worker.model.checkpoint import CARD, Config, sha256_of
from services.dit_worker.training.data import SPLIT_SEED, Digits
from services.dit_worker.training.dfd import Estimate
from services.dit_worker.training.extractor import EXTRACTOR, FEATURES, Extractor
from services.dit_worker.training.quality import Figure, Measurement, normalised

DATA = "scikit-learn digits (test set of UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak)"
DATA_LICENCE = "CC BY 4.0 (UCI); carried by scikit-learn, BSD-3-Clause"
PLACES = 5


def card(folder: Path, config: Config, measured: Measurement, extractor: Extractor, data: Digits) -> dict[str, Any]:
    """The object that card.json holds. Figures are DFD unless named otherwise; lower is better."""
    return {
        "name": config.name,
        "weights_sha256": config.weights_sha256,
        "rungs": [_rung(measured, steps, top=config.ladder[0]) for steps in config.ladder],
        "steps": {str(steps): _figure(figure) for steps, figure in measured.model.items()},
        "same_weights_euler": {str(steps): _figure(figure) for steps, figure in measured.euler.items()},
        "floor_train_split": _figure(measured.floor),
        "class_gaussian_no_network": _figure(measured.gaussian),
        "class_means": _figure(measured.means),
        "paired_difference": {name: _estimate(one) for name, one in measured.degradation.items()},
        "nearest_train_l2": {name: round(one, 3) for name, one in measured.nearest_train.items()},
        "extractor": {
            "sha256": sha256_of(folder / EXTRACTOR),
            "features": FEATURES,
            "held_out_accuracy": round(extractor.accuracy(data.held_out), 4),
        },
        "data": {
            "name": DATA,
            "licence": DATA_LICENCE,
            "train": len(data.train),
            "held_out": len(data.held_out),
            "split_seed": SPLIT_SEED,
        },
        "protocol": {
            "noise_seeds": measured.protocol.seeds,
            "images_per_seed": len(data.train),
            "bootstrap_resamples": measured.protocol.resamples,
        },
        "training": config.training,
    }


def write(folder: Path, content: dict[str, Any]) -> None:
    """card.json and README.md, from the same object so that they cannot disagree."""
    (folder / CARD).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "README.md").write_text(page(content))


def page(content: dict[str, Any]) -> str:
    seeds, images, resamples = content["protocol"].values()
    data, training, extractor = content["data"], content["training"], content["extractor"]
    return f"""# {content["name"]}

A class-conditional flow map for 8x8 grey digits: a semi-Lipschitz diffusion transformer trained by Terminal
Velocity Matching ([arXiv 2511.19797](https://arxiv.org/abs/2511.19797), written from the paper's formulas).
It jumps from any time to any earlier one, so the number of steps is chosen, and chosen again, while an image
is being made.

| file | what |
|---|---|
| `model.safetensors` | {training["parameters"]:,} weights, fp16; sha256 `{content["weights_sha256"]}` |
| `config.json` | topology, classes, ladder, the recipe's every number |
| `extractor.safetensors` | the network DFD is measured on; sha256 `{extractor["sha256"]}` |
| `card.json` | this page's figures, with each seed's value |

## Measured quality

DFD: the Frechet distance between generated and held-out images on {extractor["features"]} standardised
features of a small convolutional network trained on the train split ({extractor["held_out_accuracy"]:.1%} right
on the held-out split). It is **not FID** and compares with no published figure. Lower is better. Mean of
{seeds} noise seeds with {images} images each (the train split's labels), clamped as served; 95 % intervals
from {resamples} bootstrap resamples of the held-out images and the seeds, centred on the mean.

| steps (NFE) | DFD | 95 % interval | normalised quality | same weights, Euler |
|---|---|---|---|---|
{_step_rows(content)}

| for comparison | DFD | 95 % interval |
|---|---|---|
| floor: the train split itself | {_cells(content["floor_train_split"])} |
| a Gaussian for each class, no network | {_cells(content["class_gaussian_no_network"])} |
| the mean image of each class | {_cells(content["class_means"])} |

Paired differences (same noise, same labels): {_differences(content)}.
Mean L2 distance to the nearest train image: {_nearest(content)}.

Normalised quality is 1 - (DFD - DFD of the top rung) / (DFD of the Gaussian - DFD of the top rung), clipped
to [0, 1]. The ladder is {", ".join(str(rung["steps"]) for rung in content["rungs"])} steps.

## Recipe

- Data: {data["name"]};
  {data["licence"]}. {data["train"]} images to train on, {data["held_out"]} held out, stratified, split seed
  {data["split_seed"]}. The model was not fitted to, stopped by or chosen on those; the extractor was not fitted to
  them either, but its layers were settled on with its accuracy on them in view.
- Training: {training["steps"]} steps of {training["batch"]}, seed {training["seed"]}, one CPU thread. The
  full list of settings is in `config.json`. One training run: no interval holds the spread between runs.
- Limits: 8x8 grey digits, no guidance (w = 1). The extractor saw the train split, which flatters the floor.
- Where images of the model lie nearer to train images than held-out images do, it has begun to memorise.

```
python -m services.dit_worker.training train      # weights; resumable
python -m services.dit_worker.training export     # fp16 checkpoint, config.json and extractor
python -m services.dit_worker.training measure    # card.json and this page from the shipped files
```
"""


def _rung(measured: Measurement, steps: int, *, top: int) -> dict[str, Any]:
    dfd, best = measured.model[steps].estimate.value, measured.model[top].estimate.value
    quality = normalised(dfd, best, measured.gaussian.estimate.value)
    return {"steps": steps, "quality": round(quality, 4), "dfd": round(dfd, PLACES)}


def _figure(figure: Figure) -> dict[str, Any]:
    return _estimate(figure.estimate) | {"per_seed": [round(one, PLACES) for one in figure.per_seed]}


def _estimate(one: Estimate) -> dict[str, Any]:
    return {"dfd": round(one.value, PLACES), "interval_95": [round(one.low, PLACES), round(one.high, PLACES)]}


def _step_rows(content: dict[str, Any]) -> str:
    quality = {str(rung["steps"]): f"{rung['quality']:.3f}" for rung in content["rungs"]}
    rows = (
        f"| {steps} | {_cells(figure)} | {quality.get(steps, 'not a rung')} | "
        f"{content['same_weights_euler'][steps]['dfd']:.3f} |"
        for steps, figure in content["steps"].items()
    )
    return "\n".join(rows)


def _cells(figure: dict[str, Any]) -> str:
    low, high = figure["interval_95"]
    return f"{figure['dfd']:.3f} | {low:.3f} to {high:.3f}"


def _differences(content: dict[str, Any]) -> str:
    def one(name: str, figure: dict[str, Any]) -> str:
        low, high = figure["interval_95"]
        return f"DFD({name.replace('-', ') - DFD(')}) = {figure['dfd']:.3f} ({low:.3f} to {high:.3f})"

    return "; ".join(one(name, figure) for name, figure in content["paired_difference"].items())


def _nearest(content: dict[str, Any]) -> str:
    return "; ".join(f"{name} {value:.2f}" for name, value in content["nearest_train_l2"].items())
