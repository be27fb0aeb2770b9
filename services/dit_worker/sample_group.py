"""The image worker's noun: the samples of one request, which step together."""

from dataclasses import dataclass

from torch import Tensor

from headway.engine import Batch, one_step_less
from headway.planning import Choice, Job
from headway.ticket import Ticket
from services.dit_worker.encode import Format
from services.dit_worker.model.guidance import Guidance


@dataclass(frozen=True, slots=True)
class ImagesSpec:
    """What was asked for, checked: one label an image."""

    labels: tuple[int, ...]
    seed: int
    guidance: Guidance
    form: Format
    encoding_quality: int
    previews: bool = False


@dataclass(slots=True, eq=False)
class SampleGroup:
    """One admitted request. Its images share everything but class and noise, so they are one tensor."""

    ticket: Ticket
    spec: ImagesSpec
    x: Tensor | None = None  # [items, channels, height, width] float32, None until the first step drew the noise
    t: float = 1.0
    """Where all its samples are in time."""
    begun: bool = False
    slowness: float = 1.0
    """How much slower than calibrated this host was when the group's first step ran."""
    job: Job | None = None
    """What is left to do, as planned with; None when a step has changed it."""

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

    def after(self, job: Job) -> Job | None:
        """See `headway.engine.Batch`: a group that jumps to the end is done, whatever other rungs it had."""
        ends = dict(zip((work.ticket.key for work in self.works), self.ends, strict=True))
        return None if ends[job.key] == 0.0 else one_step_less(job)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image, in the order of the request's labels."""

    index: int
    label: int
    data: bytes
    executed: int


@dataclass(frozen=True, slots=True)
class Previews:
    """An event: what a request's images would be if its last step had gone on to the end."""

    images: tuple[EncodedImage, ...]
