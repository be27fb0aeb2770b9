"""The training loop: AdamW under a cosine, seeded by step so that a resumed run is as if never stopped."""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.text_worker.training.network import Network
from services.text_worker.training.settings import Fit
from services.text_worker.training.vocabulary import TokenStream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The best held-out evaluation of a run. Losses are nats per token."""

    step: int
    held_out_loss: float
    train_loss: float
    trained_tokens: int


def learning_rate(fit: Fit, step: int) -> float:
    """Linear warm-up to the peak, then a cosine down to a twentieth of it."""
    if step < fit.warmup_steps:
        return fit.peak_learning_rate * (step + 1) / fit.warmup_steps
    progress = (step - fit.warmup_steps) / max(1, fit.steps - fit.warmup_steps)
    return fit.peak_learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def window_batch(stream: TokenStream, fit: Fit, context: int, step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each [batch, context]; a pure function of the seed and the step."""
    generator = torch.Generator().manual_seed(fit.seed * 1_000_003 + step)
    choice = torch.randint(len(stream.starts), (fit.batch,), generator=generator)
    first = stream.starts[choice].clamp(max=len(stream.tokens) - context - 1)
    window = stream.tokens[first[:, None] + torch.arange(context + 1)]  # [batch, context + 1]
    return window[:, :-1], window[:, 1:]


def loss_of(network: Network, inputs: Tensor, targets: Tensor, *, exact: bool = False) -> Tensor:
    """Mean cross entropy in nats per token, the loss in fp32; products in bfloat16 unless `exact`."""
    with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
        logits = network(inputs)
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def held_out_loss(network: Network, stream: TokenStream, context: int, batch: int, *, exact: bool = False) -> float:
    """Mean loss over the whole held-out stream, cut into consecutive windows."""
    network.eval()
    count = (len(stream.tokens) - 1) // context
    inputs = stream.tokens[: count * context].view(count, context)
    targets = stream.tokens[1 : count * context + 1].view(count, context)
    losses = [
        loss_of(network, inputs[i : i + batch], targets[i : i + batch], exact=exact).item() * len(inputs[i : i + batch])
        for i in range(0, count, batch)
    ]
    network.train()
    return sum(losses) / count


def optimizer_for(network: Network, fit: Fit) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": fit.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=fit.peak_learning_rate, betas=(0.9, 0.95))


class Trainer:
    """One resumable run: its state is `folder/state.pt`, the best weights so far `folder/best.pt`."""

    def __init__(self, network: Network, fit: Fit, context: int, folder: Path) -> None:
        self.network, self.fit, self.context, self.folder = network, fit, context, folder
        self.optimizer = optimizer_for(network, fit)
        self.step = 0
        self.best: Outcome | None = None

    def resume(self) -> None:
        """Goes on from the last checkpoint, where there is one."""
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.best = Outcome(**state["best"]) if state["best"] else None
        log.info("resumed at step %d", self.step)

    def run(self, train: TokenStream, held_out: TokenStream) -> Outcome:
        """Trains to the last step and returns the best held-out evaluation."""
        started_s, recent = time.monotonic(), 0.0
        while self.step < self.fit.steps:
            loss = self.train_step(train)
            recent = loss if recent == 0.0 else 0.95 * recent + 0.05 * loss
            if self.step % 20 == 0:
                log.info("step %d loss %.3f after %.0f s", self.step, recent, time.monotonic() - started_s)
            if self.step % self.fit.evaluate_every == 0 or self.step == self.fit.steps:
                self.evaluate(held_out, recent)
        if self.best is None:
            raise RuntimeError("the run ended without an evaluation: steps must be at least 1")
        return self.best

    def train_step(self, train: TokenStream) -> float:
        """One optimiser step; returns its loss."""
        torch.manual_seed(self.fit.seed * 7_919 + self.step)  # dropout, too, is a function of the step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.fit, self.step)
        inputs, targets = window_batch(train, self.fit, self.context, self.step)
        loss = loss_of(self.network, inputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def evaluate(self, held_out: TokenStream, train_loss: float) -> None:
        """Measures the held-out loss, keeps the weights when they are the best so far, and checkpoints."""
        loss = held_out_loss(self.network, held_out, self.context, self.fit.batch)
        log.info("step %d held-out loss %.4f perplexity %.2f", self.step, loss, math.exp(loss))
        if self.best is None or loss < self.best.held_out_loss:
            tokens = self.step * self.fit.batch * self.context
            self.best = Outcome(self.step, loss, train_loss, tokens)
            _save(self.network.state_dict(), self.folder / "best.pt")
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": vars(self.best),
        }
        _save(state, self.folder / "state.pt")


def _save(state: object, path: Path) -> None:
    """Writes beside the file and renames, so that a killed run leaves the last whole checkpoint."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
