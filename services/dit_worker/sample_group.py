"""The image worker's noun: the samples of one request, which step together."""

from dataclasses import dataclass

from headway.engine import Batch
from headway.planning import Choice
from headway.ticket import Ticket
from services.dit_worker.encode import Format
from services.dit_worker.sampler import Sample


@dataclass(frozen=True, slots=True)
class ImagesSpec:
    """What was asked for, checked: one label an image."""

    labels: tuple[int, ...]
    seed: int
    guidance: float
    form: Format
    encoding_quality: int


@dataclass(slots=True, eq=False)
class SampleGroup:
    """One admitted request. `samples` is empty until its first step draws the noise."""

    ticket: Ticket
    spec: ImagesSpec
    samples: tuple[Sample, ...] = ()
    t: float = 1.0
    """Where all its samples are in time."""
    begun: bool = False
    slowness: float = 1.0
    """How much slower than calibrated this host was when the group's first step ran."""

    @property
    def items(self) -> int:
        return len(self.spec.labels)


@dataclass(frozen=True, slots=True)
class Jump(Batch[SampleGroup]):
    """One step: each group jumps to its own end, as planned when the step was put together.

    A plan may change while the step runs, so what it was taken for stands here: `choices` and `ends`, one a group.
    """

    slowness: float

    choices: tuple[Choice, ...]
    ends: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One finished image, in the order of the request's labels."""

    index: int
    label: int
    data: bytes
    executed: int
