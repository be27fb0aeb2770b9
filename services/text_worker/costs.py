"""What the text engine's steps cost, by decode batch and by prefill length, measured once on this host."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

from headway.calibration import Curves, Probe, quiet_cost
from headway.cost import ZERO, Cost, StepCurve
from headway.engine import Device, Pulse
from services.text_worker.backend import Blocks, Model, Span
from services.text_worker.drawing import choose
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.store import blocks_of
from services.text_worker.sampling import Sampling
from services.text_worker.speculation import MOST_DRAFTS

SAMPLED = Sampling(temperature=1.0, top_p=0.9)


@dataclass(frozen=True, slots=True)
class TextCosts:
    """Calibrated device milliseconds: `decode` by sequences in a step, `prefill` by tokens in a chunk."""

    decode: StepCurve
    prefill: StepCurve
    chunk_tokens: int
    verify: Cost | None = None
    """One sequence with `MOST_DRAFTS` drafts; None: as if each were a sequence."""
    taking_in: Cost = ZERO
    """Writing one restored block into the cache; nothing where none is shared."""

    def prefill_cost(self, tokens: int) -> Cost:
        """Running `tokens` prompt tokens in chunks of at most `chunk_tokens`."""
        whole, rest = divmod(tokens, self.chunk_tokens)
        cost = self.prefill.at(self.chunk_tokens).times(whole)
        return cost + self.prefill.at(rest) if rest else cost

    def step_cost(self, decodes: int, prefill_tokens: int, drafts: int = 0, restored: int = 0) -> Cost:
        """One step: so many sequences decode, with so many drafts in all, beside a prefill chunk and restored blocks.

        Any may be none.

        A draft takes the products of a sequence more, and of attention only what `verify` says: it reads no keys of
        its own.
        """
        decode = self._decode_cost(decodes, drafts) if decodes else ZERO
        prefill = self.prefill_cost(prefill_tokens) if prefill_tokens else ZERO
        return decode + prefill + self.taking_in.times(restored)

    def _decode_cost(self, decodes: int, drafts: int) -> Cost:
        cost = self.decode.at(decodes + drafts)
        if drafts == 0 or self.verify is None:
            return cost
        saved_ms = max(0.0, self.decode.at(1 + MOST_DRAFTS).mean_ms - self.verify.mean_ms) / MOST_DRAFTS * drafts
        return replace(cost, mean_ms=max(self.decode.at(decodes).mean_ms, cost.mean_ms - saved_ms))


def costs_of(curves: Curves, chunk_tokens: int) -> TextCosts:
    """The costs from calibrated curves. Raises KeyError when one is missing."""
    return TextCosts(curves["decode"], curves["prefill"], chunk_tokens, curves["verify"].at(1))


def measure(model: Model, pages: Blocks, *, max_batch: int, chunk_tokens: int, device: Device) -> Curves:
    """Times real steps, each under a device lease: decode at half the context, prefill from position 0.

    Even where one sequence runs at a time, batches are measured that are as large as it is with its drafts.
    Overwrites the cache's content; call it before anything is served. Blocks for a second or two.
    """
    most_rows = max(max_batch, 1 + MOST_DRAFTS)
    decode = [(size, _decode_cost(model, pages, size, device)) for size in _doubling(1, most_rows)]
    prefill = [
        (tokens, quiet_cost(partial(_step, model, pages, [_span(pages, 0, 0, tokens)]), device))
        for tokens in _doubling(8, min(chunk_tokens, model.context), factor=4)
    ]
    verify = quiet_cost(partial(_step, model, pages, [_verify_span(model, pages)]), device)
    return {
        "decode": StepCurve(tuple(decode)),
        "prefill": StepCurve(tuple(prefill)),
        "verify": StepCurve(((1, verify),)),
    }


def with_taking_in(costs: TextCosts, pages: Blocks, device: Device) -> TextCosts:
    """The costs with that of taking in a restored block, measured now on the spare one; as they are on a GPU.

    Blocks for some milliseconds.
    """
    if not isinstance(pages, Pages):
        return costs
    content = pages.read(pages.blocks - 1)
    return replace(costs, taking_in=quiet_cost(partial(pages.write, pages.blocks - 1, content), device))


def probe(model: Model, pages: Blocks, device: Device) -> Probe:
    """What a decode step of one sequence costs now. Overwrites nothing that is kept."""
    return "decode", 1, _decode_cost(model, pages, 1, device)


def pulse(model: Model, pages: Blocks, costs: TextCosts) -> Pulse:
    """A decode step of one sequence for a worker at rest. Overwrites nothing that is kept."""
    return Pulse(costs.decode.at(1), partial(_step, model, pages, _probe_spans(model, pages, 1)))


def _probe_spans(model: Model, pages: Blocks, size: int) -> list[Span]:
    return [_span(pages, line, model.context // 2, 1) for line in range(size)]


def _verify_span(model: Model, pages: Blocks) -> Span:
    """A token and its drafts at half the context, all wanted."""
    rows = min(1 + MOST_DRAFTS, model.context)
    return replace(_span(pages, 0, min(model.context // 2, model.context - rows), rows), wanted=rows)


def _span(pages: Blocks, line: int, start: int, tokens: int) -> Span:
    """Blocks are read round and round, as the cache may be small; a single token is written to the spare block."""
    count = blocks_of(start + tokens)
    blocks = [(line * count + place) % (pages.blocks - 1) for place in range(count - 1)]
    return Span([*blocks, pages.blocks - 1], start, (1,) * tokens)


def _decode_cost(model: Model, pages: Blocks, size: int, device: Device) -> Cost:
    return quiet_cost(partial(_step, model, pages, _probe_spans(model, pages, size)), device)


def _step(model: Model, pages: Blocks, spans: list[Span]) -> None:
    logits = model.forward(spans, pages)
    choose(logits, [SAMPLED] * len(logits), [0] * len(logits))


def _doubling(first: int, last: int, factor: int = 2) -> list[int]:
    """Sizes from `first` on, each `factor` times the one before, ending with `last` itself."""
    sizes = takewhile(lambda size: size < last, (first * factor**i for i in range(64)))
    return [*sizes, last]
