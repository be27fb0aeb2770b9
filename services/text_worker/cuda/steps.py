"""Steps of few rows in one of a few fixed layouts, captured as CUDA graphs where there is a GPU.

A decode step of a small batch is hundreds of short kernels, and launching them one by one from Python costs more than
running them; a graph launches all at once. Every token is a row of its own, so decode steps, drafts to be verified and
the ends of prompts are all the same to it. Steps between two sizes are filled up: no row depends on another.
"""

import bisect
from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import Any

import torch
from torch import Tensor

from services.text_worker.backend import Span
from services.text_worker.cuda.layout import Layout, lay_out, resting, rows_of
from services.text_worker.cuda.pages import CudaPages

Pass = Callable[[Layout], Tensor]
WARM_UPS = 3


class FixedSteps:
    """Runs steps over one cache."""

    def __init__(self, run: Pass, pages: CudaPages, context: int, most_rows: int) -> None:
        """Captures a graph for every size up to `most_rows`, if the cache lies on a GPU; takes seconds then."""
        self._pages = pages
        self._sizes = [*(1 << i for i in range(most_rows.bit_length()) if 1 << i < most_rows), most_rows]
        self._steps = dict[int, _Step]()
        pool = None
        for size in reversed(self._sizes):  # the largest first: the others then fit in its memory
            layout = resting(size, pages.blocks, context, pages.keys.device)
            self._steps[size] = _Captured(run, layout, pool) if pages.keys.is_cuda else _Step(run, layout)
            pool = self._steps[size].pool

    def serve(self, spans: Several[Span], pages: CudaPages) -> bool:
        """Whether `run` can take these spans over this cache."""
        return pages is self._pages and sum(len(span.tokens) for span in spans) <= self._sizes[-1]

    def run(self, spans: Several[Span]) -> Tensor:
        """Logits of the wanted tokens, fp32 [sum of wanted, vocab]."""
        size = self._sizes[bisect.bisect_left(self._sizes, sum(len(span.tokens) for span in spans))]
        rows = rows_of(spans, size, self._pages.blocks - 1)
        logits = self._steps[size].run(lay_out(rows, self._pages.blocks, self._pages.keys.device))
        ends, wanted = 0, list[int]()
        for span in spans:
            ends += len(span.tokens)
            wanted += range(ends - span.wanted, ends)
        return logits[: len(wanted)] if wanted == list(range(len(wanted))) else logits[wanted]


class _Step:
    """One size, as it runs where there is no graph."""

    pool: Any = None

    def __init__(self, run: Pass, layout: Layout) -> None:
        self._run, self._layout = run, layout

    def run(self, layout: Layout) -> Tensor:
        self._layout.take(layout)
        return self._run(self._layout)


class _Captured(_Step):
    """One captured size. The layout's tensors are the memory that every replay reads."""

    def __init__(self, run: Pass, layout: Layout, pool: Any) -> None:
        super().__init__(run, layout)
        device = layout.tokens.device
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                run(layout)
        torch.cuda.current_stream(device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._logits = run(layout)
        self.pool = self._graph.pool()

    def run(self, layout: Layout) -> Tensor:
        """Valid until the next replay of any size; whoever asks copies it to the host at once."""
        self._layout.take(layout)
        self._graph.replay()
        return self._logits
