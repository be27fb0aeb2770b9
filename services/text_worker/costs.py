"""What the text engine's steps cost, by decode batch and by prefill length, measured once on this host."""

from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from headway.calibration import Curves, Probe, quiet_cost
from headway.cost import ZERO, Cost, StepCurve
from headway.engine import Device, Pulse
from services.text_worker.drawing import choose
from services.text_worker.model.cache import KvCache
from services.text_worker.model.dense import DenseModel, Span
from services.text_worker.sampling import Sampling

SAMPLED = Sampling(temperature=1.0, top_p=0.9)


@dataclass(frozen=True, slots=True)
class TextCosts:
    """Calibrated device milliseconds: `decode` by sequences in a step, `prefill` by tokens in a chunk."""

    decode: StepCurve
    prefill: StepCurve
    chunk_tokens: int

    def prefill_cost(self, tokens: int) -> Cost:
        """Running `tokens` prompt tokens in chunks of at most `chunk_tokens`."""
        whole, rest = divmod(tokens, self.chunk_tokens)
        cost = self.prefill.at(self.chunk_tokens).times(whole)
        return cost + self.prefill.at(rest) if rest else cost

    def step_cost(self, decodes: int, prefill_tokens: int) -> Cost:
        """One step over `decodes` sequences and a prefill chunk; either may be none."""
        decode = self.decode.at(decodes) if decodes else ZERO
        return decode + (self.prefill_cost(prefill_tokens) if prefill_tokens else ZERO)


def costs_of(curves: Curves, chunk_tokens: int) -> TextCosts:
    """The costs from calibrated curves. Raises KeyError when one is missing."""
    return TextCosts(curves["decode"], curves["prefill"], chunk_tokens)


def measure(model: DenseModel, cache: KvCache, *, max_batch: int, chunk_tokens: int, device: Device) -> Curves:
    """Times real steps, each under a device lease: decode at half the context, prefill from position 0.

    Overwrites the cache's content; call it before anything is served. Blocks for a second or two.
    """
    decode = [(size, _decode_cost(model, cache, size, device)) for size in _doubling(1, min(max_batch, cache.slots))]
    prefill = [
        (tokens, quiet_cost(partial(_step, model, cache, [Span(0, 0, (1,) * tokens)]), device))
        for tokens in _doubling(8, min(chunk_tokens, cache.context), factor=4)
    ]
    return {"decode": StepCurve(tuple(decode)), "prefill": StepCurve(tuple(prefill))}


def probe(model: DenseModel, cache: KvCache, device: Device) -> Probe:
    """What a decode step of one sequence costs now. Overwrites the cache's content."""
    return "decode", 1, _decode_cost(model, cache, 1, device)


def pulse(model: DenseModel, cache: KvCache, costs: TextCosts) -> Pulse:
    """A decode step of one sequence for a worker at rest, whose slots are all free. Overwrites the first one."""
    return Pulse(costs.decode.at(1), partial(_step, model, cache, _probe_spans(cache, 1)))


def _probe_spans(cache: KvCache, size: int) -> list[Span]:
    return [Span(slot, cache.context // 2, (1,)) for slot in range(size)]


def _decode_cost(model: DenseModel, cache: KvCache, size: int, device: Device) -> Cost:
    return quiet_cost(partial(_step, model, cache, _probe_spans(cache, size)), device)


def _step(model: DenseModel, cache: KvCache, spans: list[Span]) -> None:
    logits = model.forward(spans, cache)
    choose(logits, [SAMPLED] * len(spans), [0] * len(spans))


def _doubling(first: int, last: int, factor: int = 2) -> list[int]:
    """Sizes from `first` on, each `factor` times the one before, ending with `last` itself."""
    sizes = takewhile(lambda size: size < last, (first * factor**i for i in range(64)))
    return [*sizes, last]
