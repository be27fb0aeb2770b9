"""The training loop: seeded, resumable to the bit on one machine, its state kept in safetensors."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from services.dit_worker.model.dit import Dit
from services.dit_worker.model.topology import Topology
from services.dit_worker.training.data import Source
from services.dit_worker.training.objective import Batch, Losses, draw_guidance, draw_times, losses
from services.dit_worker.training.pictures import plot_losses
from services.dit_worker.training.recipe import Recipe


class ResumeError(ValueError):
    """A training state that does not belong to this recipe or topology."""


class Training:
    """One run. `sampling` holds the weights to ship; `advance` takes one optimiser step."""

    def __init__(self, recipe: Recipe, topology: Topology, data: Source) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.topology, self.data, self.step = recipe, topology, data, 0
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.network = Dit(topology)
        self.target = _average(self.network, recipe.target_ema)
        self.sampling = _average(self.network, recipe.sampling_ema)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=0,
        )

    def draw(self) -> Batch:
        recipe, generator = self.recipe, self.generator
        drawn = self.data.batch(self.step, recipe.batch, generator)
        labels, guidance = draw_guidance(
            drawn.labels, self.topology, recipe.label_drop, recipe.guidance_max, generator, recipe.guided_share
        )
        noise = torch.randn(drawn.images.shape, generator=generator)
        return Batch(drawn.images, noise, labels, guidance, draw_times(recipe.jvp_rows, recipe.batch, generator))

    def advance(self) -> Losses:
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate_at(self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.autocast):
            terms = losses(self.network, self.target, self.draw(), self.topology.null_class)
        self.optimiser.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        self.optimiser.step()
        self.target.update_parameters(self.network)
        self.sampling.update_parameters(self.network)
        self.step += 1
        return Losses(terms.terminal.detach(), terms.flow.detach())

    def shipped(self) -> Dit:
        """The sampling average as a network of its own."""
        network = Dit(self.topology)
        network.load_state_dict(self.sampling.module.state_dict())
        return network

    def record(self) -> dict[str, Any]:
        """What the config keeps of how the weights were made."""
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        return self.recipe.as_dict() | {"steps_done": self.step, "parameters": parameters}

    def save(self, path: Path) -> None:
        """Written beside and renamed, so a kill leaves the last whole state."""
        identity = {"step": self.step, "recipe": self.recipe.as_dict(), "topology": self.topology.as_dict()}
        partial = path.with_suffix(".partial")
        save_file(dict(self._tensors()), partial, metadata={"headway": json.dumps(identity)})
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Raises ResumeError when the file was written by another recipe or topology."""
        with safe_open(path, framework="pt") as file:
            identity = json.loads(file.metadata()["headway"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        continues = self.recipe.continues(identity["recipe"], int(identity["step"]))
        if not continues or identity["topology"] != self.topology.as_dict():
            raise ResumeError(f"{path.name} was written by another recipe; start in an empty folder or use the same")
        self.step = int(identity["step"])
        for name, module in self._modules():
            module.load_state_dict(_under(state, name))
        for index, parameter in enumerate(self.optimiser.param_groups[0]["params"]):
            self.optimiser.state[parameter] = _under(state, f"adam.{index}")
        self.generator.set_state(state["generator"])

    def _modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        yield from (("network", self.network), ("target", self.target), ("sampling", self.sampling))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, module in self._modules():
            yield from ((f"{name}.{key}", value) for key, value in module.state_dict().items())
        for index, parameter in enumerate(self.optimiser.param_groups[0]["params"]):
            yield from ((f"adam.{index}.{key}", value) for key, value in self.optimiser.state[parameter].items())
        yield "generator", self.generator.get_state()


def run(training: Training, folder: Path, *, report_every: int = 50, save_every: int = 200) -> None:
    """Train to the recipe's last step, resuming from `folder` where a state lies there; blocks.

    Writes state.safetensors, loss.csv (step, terminal, flow, seconds) and loss.png into `folder`; where the cool-down
    begins also level.safetensors, from which a longer run may go on in its state's place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state, log = folder / "state.safetensors", folder / "loss.csv"
    if state.exists():
        training.load(state)
    started = time.monotonic()
    while training.step < training.recipe.steps:
        terms = training.advance()
        if training.step % report_every == 0:
            elapsed_s = time.monotonic() - started
            row = f"{training.step},{float(terms.terminal):.5f},{float(terms.flow):.5f},{elapsed_s:.1f}"
            with log.open("a") as file:
                file.write(row + "\n")
            print(row, flush=True)
        if training.step == training.recipe.level_until:
            training.save(folder / "level.safetensors")
        if training.step % save_every == 0:
            training.save(state)
            if log.exists():
                plot_losses(log, folder / "loss.png")
    training.save(state)


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    head = prefix + "."
    return {key.removeprefix(head): value for key, value in state.items() if key.startswith(head)}


def _average(network: Dit, rate: float) -> AveragedModel:
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(rate))  # type: ignore[no-untyped-call]
