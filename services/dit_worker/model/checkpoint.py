"""A model's folder: `model.safetensors` (fp16), `config.json` (what it is), `card.json` (how good it is).

A model of latents has a folder `vae` beside them (see `decoder`); its hash stands in config.json as `decoder_sha256`.

A checkpoint is read as an attacker's file would be: sizes are bounded before anything is read, the header is
compared with the topology before any tensor is made, and the weights must hash to what config and card say.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from services.dit_worker.model.decoder import VAE, Decoder, Pixels, load_decoder
from services.dit_worker.model.dit import Dit
from services.dit_worker.model.guidance import UNGUIDED, Guidance
from services.dit_worker.model.tensors import CheckpointError as CheckpointError
from services.dit_worker.model.tensors import check_size, read_tensors
from services.dit_worker.model.tensors import sha256_of as sha256_of
from services.dit_worker.model.topology import Topology, TopologyError

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "card.json"
MAX_JSON_BYTES = 256 * 1024
DTYPES = ("F16",)
MAX_LADDER_STEPS = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class MeasuredRung:
    """One step count of the ladder; quality is normalised to [0, 1], `dfd` is the figure it came from."""

    steps: int
    quality: float
    dfd: float


@dataclass(frozen=True, slots=True)
class Config:
    """What config.json says: everything that serving needs but the weights and the measurements."""

    name: str
    topology: Topology
    class_names: tuple[str, ...]
    guidance_max: float
    ladder: tuple[int, ...]
    weights_sha256: str
    training: dict[str, Any]
    decoder_sha256: str | None = None
    guidance: Guidance = UNGUIDED
    """Where the caller asks for none."""

    @property
    def fingerprint(self) -> str:
        """sha256 over all of the config, and so over the weights too; lower-case hex."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        decoder = {} if self.decoder_sha256 is None else {"decoder_sha256": self.decoder_sha256}
        guidance = {} if self.guidance == UNGUIDED else {"guidance": self.guidance.as_steps()}
        return (
            decoder
            | guidance
            | {
                "format": FORMAT,
                "name": self.name,
                "topology": self.topology.as_dict(),
                "class_names": list(self.class_names),
                "guidance_max": self.guidance_max,
                "ladder": list(self.ladder),
                "weights_sha256": self.weights_sha256,
                "training": self.training,
            }
        )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model in evaluation mode, fp32, its ladder, best first, and what makes images of its samples."""

    config: Config
    network: Dit
    rungs: tuple[MeasuredRung, ...]
    decoder: Decoder


def save(folder: Path, network: Dit, draft: Config) -> Config:
    """Write weights and config, filling in the draft's hash; measuring what was written makes the card."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {key: value.detach().half().contiguous() for key, value in network.state_dict().items()}
    save_file(halves, folder / WEIGHTS)
    config = replace(draft, weights_sha256=sha256_of(folder / WEIGHTS))
    write_config(folder, config)
    return config


def write_config(folder: Path, config: Config) -> None:
    """Writes config.json."""
    (folder / CONFIG).write_text(json.dumps(config.as_dict(), indent=2) + "\n")


def load(folder: Path) -> Checkpoint:
    """Read a whole model folder; raises CheckpointError unless it is what its card measured."""
    config, network = load_weights(folder)
    return Checkpoint(config, network, read_rungs(folder, config), _decoder(folder, config))


def load_weights(folder: Path) -> tuple[Config, Dit]:
    """Config and network without the card: what measuring starts from."""
    config = read_config(folder)
    path = folder / WEIGHTS
    network = Dit.empty(config.topology)
    expected = network.state_dict()
    check_size(path, expected, DTYPES)
    if (digest := sha256_of(path)) != config.weights_sha256:
        raise CheckpointError(WEIGHTS, f"hash is {digest[:12]}..., {CONFIG} says {config.weights_sha256[:12]}...")
    network.load_state_dict(read_tensors(path, expected, DTYPES), assign=True)
    return config, network.float().eval().requires_grad_(False)


def read_config(folder: Path) -> Config:
    raw = _read_json(folder, CONFIG)
    if raw.get("format") != FORMAT:
        raise CheckpointError(f"{CONFIG} format", f"must be {FORMAT}, got {raw.get('format')!r}")
    try:
        topology = Topology.from_dict(_typed(raw, CONFIG, "topology", dict))
    except TopologyError as error:
        raise CheckpointError(f"{CONFIG} topology", str(error)) from error
    names = tuple(_typed(raw, CONFIG, "class_names", list))
    if len(names) != topology.classes or not all(isinstance(name, str) and name for name in names):
        raise CheckpointError(f"{CONFIG} class_names", f"must be {topology.classes} names, got {len(names)}")
    return Config(
        name=_name(raw),
        topology=topology,
        class_names=names,
        guidance_max=_number(raw, CONFIG, "guidance_max", low=1, high=100),
        ladder=_ladder(_typed(raw, CONFIG, "ladder", list)),
        weights_sha256=_typed(raw, CONFIG, "weights_sha256", str),
        training=_typed(raw, CONFIG, "training", dict),
        decoder_sha256=_typed(raw, CONFIG, "decoder_sha256", str) if "decoder_sha256" in raw else None,
        guidance=_guidance(raw) if "guidance" in raw else UNGUIDED,
    )


def read_rungs(folder: Path, config: Config) -> tuple[MeasuredRung, ...]:
    """The ladder as the card measured it, best first."""
    raw = _read_json(folder, CARD)
    if _typed(raw, CARD, "weights_sha256", str) != config.weights_sha256:
        raise CheckpointError(f"{CARD} weights_sha256", "the card measured other weights; run the measure command")
    rungs = tuple(_rung(entry) for entry in _typed(raw, CARD, "rungs", list))
    if tuple(rung.steps for rung in rungs) != config.ladder:
        raise CheckpointError(f"{CARD} rungs", f"must be the ladder {list(config.ladder)} of {CONFIG}, best first")
    qualities = [rung.quality for rung in rungs]
    if qualities != sorted(qualities, reverse=True):
        raise CheckpointError(f"{CARD} rungs quality", f"must fall along the ladder, got {qualities}")
    return rungs


def _decoder(folder: Path, config: Config) -> Decoder:
    if config.decoder_sha256 is None:
        return Pixels()
    return load_decoder(folder / VAE, config.topology.image_shape, config.decoder_sha256)


def _rung(entry: object) -> MeasuredRung:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{CARD} rungs", "each must be an object")
    return MeasuredRung(
        steps=_typed(entry, f"{CARD} rungs", "steps", int),
        quality=_number(entry, f"{CARD} rungs", "quality", low=0, high=1),
        dfd=_number(entry, f"{CARD} rungs", "dfd", low=0, high=1e9),
    )


def _name(raw: dict[str, Any]) -> str:
    name: str = _typed(raw, CONFIG, "name", str)
    if not NAME.fullmatch(name):
        raise CheckpointError(f"{CONFIG} name", f"must match {NAME.pattern}, got {name[:80]!r}")
    return name


def _ladder(steps: list[Any]) -> tuple[int, ...]:
    sound = all(type(n) is int and 1 <= n <= MAX_LADDER_STEPS for n in steps)
    if not sound or not steps or sorted(set(steps), reverse=True) != steps:
        limit = f"must be falling step counts in 1..{MAX_LADDER_STEPS}"
        raise CheckpointError(f"{CONFIG} ladder", f"{limit}, got {steps!r}")
    return tuple(steps)


def _guidance(raw: dict[str, Any]) -> Guidance:
    """By number of steps, each of which is a rung."""
    weights, most = _typed(raw, CONFIG, "guidance", dict), _number(raw, CONFIG, "guidance_max", low=1, high=100)
    rungs = {str(steps): steps for steps in _ladder(_typed(raw, CONFIG, "ladder", list))}
    if not weights or not weights.keys() <= rungs.keys():
        raise CheckpointError(f"{CONFIG} guidance", f"must have weights for steps of the ladder, got {list(weights)!r}")
    by_steps = {rungs[key]: _number(weights, f"{CONFIG} guidance", key, low=1, high=most) for key in weights}
    return Guidance.by_steps(by_steps)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(name, f"is over {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(name, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, CheckpointError) else CheckpointError(name, "is not JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(name, "must hold one object")
    return value


def _typed(raw: dict[str, Any], file: str, key: str, kind: type) -> Any:
    value = raw.get(key)
    if type(value) is not kind:
        raise CheckpointError(f"{file} {key}", f"must be {kind.__name__}, got {type(value).__name__}")
    return value


def _number(raw: dict[str, Any], file: str, key: str, *, low: float, high: float) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise CheckpointError(f"{file} {key}", f"must be a number in {low}..{high}, got {value!r}")
    return float(value)
