"""From noise to image, one function evaluation at a time, each sample at its own place in time.

Time runs from 1 (noise) to 0 (data). A flow map jumps between any two times, so how many steps remain may be
decided anew after each one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from services.dit_worker.model.flow_map import FlowMap, jump
from services.dit_worker.model.guidance import UNGUIDED, Guidance

MAX_SEED = 2**64 - 1
UNIT_53 = 2.0**-53


@dataclass(frozen=True, slots=True)
class Sample:
    """One image under way: x is [channels, height, width] float32 at time t, after `executed` evaluations."""

    seed: int
    index: int
    label: int
    guidance: Guidance
    x: Tensor
    t: float = 1.0
    executed: int = 0

    @property
    def finished(self) -> bool:
        return self.t == 0.0


def noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 of `shape` from (seed, index) alone, both in 0 .. 2^64 - 1.

    Philox4x64 keyed by the pair, then Box-Muller spelt out: numpy promises its bit streams to stay as they
    are, not its normal draws.
    """
    if not (0 <= seed <= MAX_SEED and 0 <= index <= MAX_SEED):
        raise ValueError(f"seed and index must lie in 0..{MAX_SEED}, got {seed} and {index}")
    count = int(np.prod(shape))
    bits = np.random.Philox(key=np.array([seed, index], dtype=np.uint64)).random_raw(2 * ((count + 1) // 2))
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * UNIT_53  # in (0, 1), never 0
    radius, angle = np.sqrt(-2 * np.log(uniform[0::2])), 2 * np.pi * uniform[1::2]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy(normal.astype(np.float32)).view(shape)


def start(flow: FlowMap, *, seed: int, index: int, label: int, guidance: Guidance = UNGUIDED) -> Sample:
    """A sample of pure noise at t = 1."""
    return Sample(seed, index, label, guidance, noise(seed, index, flow.topology.image_shape))


def noises(flow: FlowMap, seed: int, count: int) -> Tensor:
    """The noise of images 0 to `count` - 1 of a request; [count, channels, height, width] float32."""
    return torch.stack([noise(seed, index, flow.topology.image_shape) for index in range(count)])


def next_time(t: float, steps_left: int) -> float:
    """Where the next of `steps_left` equal steps to 0 ends. From t = 1 this walks the uniform grid."""
    if steps_left < 1:
        raise ValueError(f"steps_left must be at least 1, got {steps_left}")
    return 0.0 if steps_left == 1 else t - t / steps_left


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples that take one step together, each from its own t to its own s, whatever their classes and weights."""

    x: Tensor  # [rows, channels, height, width] float32
    t: Tensor  # [rows] float32
    s: Tensor  # [rows] float32, 0 <= s < t
    labels: Tensor  # [rows] int64
    guidance: Tensor  # [rows] float32

    def __len__(self) -> int:
        return len(self.x)

    def cut(self, start: int, end: int) -> "Rows":
        """Rows `start` to `end`; shares memory."""
        return Rows(*(tensor[start:end] for tensor in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """In the order of the fields."""
        return self.x, self.t, self.s, self.labels, self.guidance


@torch.inference_mode()
def take(flow: FlowMap, rows: Rows) -> Tensor:
    """One forward pass: x at s, shaped as `rows.x`."""
    return jump(flow, rows.x, rows.t, rows.s, rows.labels, rows.guidance)


def step(flow: FlowMap, samples: Sequence[Sample], ends: Sequence[float]) -> list[Sample]:
    """One forward pass: each sample jumps from its own t to its own end, 0 <= end < t. Order is kept."""
    weights = [sample.guidance.at(sample.t, end) for sample, end in zip(samples, ends, strict=True)]
    rows = Rows(
        torch.stack([sample.x for sample in samples]),
        torch.tensor([sample.t for sample in samples], dtype=torch.float32),
        torch.tensor(ends, dtype=torch.float32),
        torch.tensor([sample.label for sample in samples]),
        torch.tensor(weights, dtype=torch.float32),
    )
    return [
        replace(sample, x=row, t=end, executed=sample.executed + 1)
        for sample, row, end in zip(samples, take(flow, rows), ends, strict=True)
    ]


def foreseen(before: Tensor, after: Tensor, t: float, s: float) -> Tensor:
    """Where the step from `before` at t to `after` at s would end at 0: x + (0 - t) F, for a preview; same shapes."""
    return after if s == 0.0 else before + (after - before) * (t / (t - s))


def finish(flow: FlowMap, samples: Sequence[Sample], steps: int) -> list[Sample]:
    """Run a whole batch to t = 0 in `steps` equal steps."""
    batch = list(samples)
    for left in range(steps, 0, -1):
        batch = step(flow, batch, [next_time(sample.t, left) for sample in batch])
    return batch
