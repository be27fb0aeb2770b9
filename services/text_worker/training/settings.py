"""What a training run is told: the model's shape and how it is fitted."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings and grouped key/value heads; sizes in elements, `context` in tokens."""

    vocab: int = 4096
    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    mlp: int = 512
    context: int = 512
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Fit:
    """How the model is fitted; `batch` in sequences of `Shape.context` tokens."""

    steps: int = 1000
    batch: int = 16
    peak_learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    dropout: float = 0.1
    held_out_share: float = 0.05
    evaluate_every: int = 100
    seed: int = 20
