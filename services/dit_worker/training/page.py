"""A model's card for people: README.md, made from nothing but the object that card.json holds."""

from typing import Any

from services.dit_worker.model.guidance import Guidance


def page(content: dict[str, Any]) -> str:
    """The whole page, as Markdown."""
    return "\n".join([_what(content), _quality(content), _recipe(content)])


def _what(content: dict[str, Any]) -> str:
    px, _, channels = content["image"]
    colour = "grey" if channels == 1 else "RGB"
    return f"""# {content["name"]}

A class-conditional flow map for {px}x{px} {colour} {content["data"]["set"]}: a semi-Lipschitz diffusion transformer
trained by Terminal Velocity Matching ([arXiv 2511.19797](https://arxiv.org/abs/2511.19797), written from the paper's
formulas). It jumps from any time to any earlier one, so the number of steps is chosen, and chosen again, while an image
is being made.

| file | what |
|---|---|
| `model.safetensors` | {content["training"]["parameters"]:,} weights, fp16; sha256 `{content["weights_sha256"]}` |
| `config.json` | topology, classes, ladder, the recipe's every number |
| `extractor.safetensors` | the network DFD is measured on; sha256 `{content["extractor"]["sha256"]}` |
| `card.json` | this page's figures, with each seed's value |
| `samples.png` | a block for each rung ({_ladder(content)} steps), the same noise in each |

![samples](samples.png)
"""


def _quality(content: dict[str, Any]) -> str:
    protocol, extractor = content["protocol"], content["extractor"]
    seeds, images = protocol["noise_seeds"], protocol["images_per_seed"]
    few = "Euler and what is not guided take" if content["unguided"] else "Euler takes"
    return f"""## Measured quality

DFD: the Frechet distance between generated and held-out images on {extractor["features"]} standardised features of
a small convolutional network trained on train images ({_knows(extractor)}).
It is **not FID** and compares with no published figure. Lower is better. Mean of {seeds} noise seeds with {images}
images each, clamped as served; 95 % intervals from {protocol["bootstrap_resamples"]} bootstrap resamples of the
held-out images and the seeds, centred on the mean. {few} the first {protocol["few_seeds"]} seeds.

| steps (NFE) | guidance | DFD | 95 % interval | normalised quality | not guided | same weights, Euler |
|---|---|---|---|---|---|---|
{_step_rows(content)}

| for comparison | DFD | 95 % interval |
|---|---|---|
| floor: train images themselves | {_cells(content["floor_train_split"])} |
| a Gaussian for each class, no network | {_cells(content["class_gaussian_no_network"])} |
| the mean image of each class | {_cells(content["class_means"])} |

Paired differences (same noise, same labels): {_differences(content)}.
Mean L2 distance to the nearest train image: {_nearest(content)}.
The first {content["sample_of_seed_0"]["images"]} images of seed 0 alone, quick to reproduce: {_sample(content)}.

Normalised quality is 1 - (DFD - DFD of the top rung) / (DFD of the Gaussian - DFD of the top rung), clipped
to [0, 1]. The ladder is {_ladder(content)} steps. {_guidance(content)}
"""


def _recipe(content: dict[str, Any]) -> str:
    data, training = content["data"], content["training"]
    precision = ", linears and attention in bfloat16" if training.get("autocast") else ""
    command = f"python -m services.dit_worker.training --data {data['set']}"
    return f"""## Recipe

- Data: {data["name"]};
  {data["licence"]}. {data["train"]} train and {data["held_out"]} held-out images:
  {data["split"]}.
  The model was not fitted to, stopped by or chosen on the held-out images.
- Training: {training["steps_done"]} steps of {training["batch"]}, seed {training["seed"]}, one CPU thread{precision}.
  The full list of settings is in `config.json`. {_runs(content)}
- The extractor saw the train images, which flatters the floor. Where images of the model lie nearer to train images
  than held-out images do, it has begun to memorise.

```
{command}                  # train (resumable), judge, export, measure
{command} --only measure   # the card and this page from the shipped files
```
"""


def _step_rows(content: dict[str, Any]) -> str:
    return "\n".join(_step_row(content, steps, figure) for steps, figure in content["steps"].items())


def _step_row(content: dict[str, Any], steps: str, figure: dict[str, Any]) -> str:
    quality = {str(rung["steps"]): f"{rung['quality']:.3f}" for rung in content["rungs"]}
    weight = Guidance.by_steps({int(key): value for key, value in content["guidance"].items()}).at(1 / int(steps), 0.0)
    plain = content["unguided"].get(steps, figure)["dfd"]
    euler = content["same_weights_euler"][steps]["dfd"]
    rest = f"{quality.get(steps, 'not a rung')} | {plain:.3f} | {euler:.3f}"
    return f"| {steps} | {weight:g} | {_cells(figure)} | {rest} |"


def _guidance(content: dict[str, Any]) -> str:
    if content["guidance_max"] == 1:
        return "It is not guided."
    return f"""Guidance is by the length of a step,
as in the table, so that it stays one while the rest is planned anew; a caller may ask for any other from 1 to
{content["guidance_max"]:g}. The table's weights were chosen on train images, with other noise."""


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


def _runs(content: dict[str, Any]) -> str:
    others = content.get("other_runs", [])
    if not others:
        return "One training run: no interval holds the spread between runs."
    runs = (
        f"seed {run['seed']}: " + ", ".join(f"{dfd:.3f} at {steps}" for steps, dfd in run["dfd"].items())
        for run in others
    )
    return f"{len(others) + 1} training runs; DFD of the others, by steps: {'; '.join(runs)}."


def _ladder(content: dict[str, Any]) -> str:
    return ", ".join(str(rung["steps"]) for rung in content["rungs"])


def _sample(content: dict[str, Any]) -> str:
    return ", ".join(f"{dfd:.3f} at {steps}" for steps, dfd in content["sample_of_seed_0"]["dfd"].items())


def _knows(extractor: dict[str, Any]) -> str:
    accuracy = f"{extractor['held_out_accuracy']:.1%} of held-out classes right"
    return f"{accuracy}; it learnt {extractor['traits']} traits beside" if extractor["traits"] else accuracy
