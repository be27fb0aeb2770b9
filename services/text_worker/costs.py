"""What the text engine's steps cost, by decode batch and by prefill length, measured once on this host."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from headway.calibration import Curves, cost_of
from headway.cost import ZERO, Cost, StepCurve
from services.text_worker.model.cache import KvCache
from services.text_worker.model.llama import Llama, Span
from services.text_worker.sampling import Sampling, choose

Lease = Callable[[], AbstractContextManager[Any]]

MOST_REPEATS, LEAST_REPEATS, POINT_BUDGET_S = 12, 3, 0.15
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


def measure(model: Llama, cache: KvCache, *, max_batch: int, chunk_tokens: int, lease: Lease) -> Curves:
    """Times real steps, each under a device lease: decode at half the context, prefill from position 0.

    Overwrites the cache's content; call it before anything is served. Blocks for a second or two.
    """
    middle = cache.context // 2
    decode = [
        (size, _timed(model, cache, [Span(slot, middle, (1,)) for slot in range(size)], lease))
        for size in _doubling(1, min(max_batch, cache.slots))
    ]
    prefill = [
        (tokens, _timed(model, cache, [Span(0, 0, (1,) * tokens)], lease))
        for tokens in _doubling(8, min(chunk_tokens, cache.context), factor=4)
    ]
    return {"decode": StepCurve(tuple(decode)), "prefill": StepCurve(tuple(prefill))}


def _timed(model: Llama, cache: KvCache, spans: list[Span], lease: Lease) -> Cost:
    with lease():
        model.forward(spans, cache)  # the first run of a shape allocates
    return cost_of(list(_samples(model, cache, spans, lease)))


def _samples(model: Llama, cache: KvCache, spans: list[Span], lease: Lease) -> Iterator[float]:
    began_s = time.perf_counter()
    for repeat in range(MOST_REPEATS):
        if repeat >= LEAST_REPEATS and time.perf_counter() - began_s > POINT_BUDGET_S:
            return
        with lease():
            start_s = time.perf_counter()
            logits = model.forward(spans, cache)
            choose(logits, [SAMPLED] * len(spans), [0] * len(spans))
            yield (time.perf_counter() - start_s) * 1000


def _doubling(first: int, last: int, factor: int = 2) -> list[int]:
    """Sizes from `first` on, each `factor` times the one before, ending with `last` itself."""
    sizes = takewhile(lambda size: size < last, (first * factor**i for i in range(64)))
    return [*sizes, last]
