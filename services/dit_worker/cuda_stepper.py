"""Takes a step over rows of samples on a CUDA device: one captured graph for each batch size.

A step of a small transformer is a few hundred short kernels, and launching them one by one from Python costs more than
running them; a graph launches all at once. Batches between two captured sizes are filled up: no row depends on another.
"""

import bisect
from typing import Any

import torch
from torch import Tensor

from services.dit_worker.model.flow_map import FlowMap
from services.dit_worker.sampler import Rows, take
from services.dit_worker.stepper import pass_edges

GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
WARM_UPS = 3


class CudaStepper:
    """`flow`'s tensors must lie on `device` already, and stay where they are."""

    def __init__(self, flow: FlowMap, device: torch.device, most_rows: int = GRAPH_SIZES[-1]) -> None:
        """Captures a graph for every size up to `most_rows`; takes seconds."""
        self.device = device
        self._sizes = [size for size in GRAPH_SIZES if size < most_rows] + [most_rows]
        pool, self._graphs = None, dict[int, _Graph]()
        for size in reversed(self._sizes):  # the largest first: the others then fit in its memory
            self._graphs[size] = _Graph(flow, size, device, pool)
            pool = self._graphs[size].pool

    def __call__(self, rows: Rows) -> Tensor:
        edges = pass_edges(len(rows), self._sizes[-1])
        return torch.cat([self._one_pass(rows.cut(a, b)) for a, b in edges])

    def _one_pass(self, rows: Rows) -> Tensor:
        return self._graphs[self._sizes[bisect.bisect_left(self._sizes, len(rows))]].replay(rows)


class _Graph:
    """One captured step. Its rows are the memory that every replay reads."""

    def __init__(self, flow: FlowMap, size: int, device: torch.device, pool: Any) -> None:
        self._rows = _resting(flow, size, device)
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                take(flow, self._rows)
        torch.cuda.current_stream(device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._after = take(flow, self._rows)

    @property
    def pool(self) -> Any:
        return self._graph.pool()

    def replay(self, rows: Rows) -> Tensor:
        for mine, given in zip(self._rows.tensors, rows.tensors, strict=True):
            mine[: len(rows)].copy_(given, non_blocking=True)
        self._graph.replay()
        return self._after[: len(rows)].clone()  # the next replay overwrites it


def _resting(flow: FlowMap, size: int, device: torch.device) -> Rows:
    """Rows that stand still; sound numbers, because what fills a batch up is stepped too."""
    x = torch.zeros(size, *flow.topology.image_shape, device=device)
    one = torch.ones(size, device=device)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    return Rows(x, one, torch.zeros(size, device=device), labels, one.clone())
