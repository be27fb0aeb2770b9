"""The most quality that any schedule could give, had it known all arrivals beforehand.

    maximise    sum over requests i and rungs r of  q(i, r) x(i, r)
    such that   sum over r of x(i, r) <= 1,   x >= 0,
    and         for every interval [a, b): work of requests that come at or after a and are due by b is at most b - a

with work(i) = sum over r of c(i, r) x(i, r), each rung costed at its best batch efficiency. It is a bound, not a
schedule: x may be a fraction, work may be interrupted at no cost, and one request alone runs as efficiently as a full
batch.

The intervals are as many as the square of the requests. They are written as a flow instead: cut time at every arrival
and deadline into slots; y(i, k) is the time that request i gets in slot k of its window; a request gets as much as its
work, and a slot gives no more than its length. By max-flow min-cut (Federgruen and Groenevelt, Preemptive scheduling of
uniform machines by ordinary network flow techniques, 1986) work fits in slots just when it obeys all intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import csr_array, vstack

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """A request as the bound sees it."""

    release_s: float
    due_s: float
    options: tuple[tuple[float, float], ...]
    """(quality, seconds of the worker) of each rung it may be given."""


def bound(windows: Sequence[Window]) -> float:
    """The optimum of the program above: an upper bound on the sum of qualities. Raises RuntimeError unless solved."""
    if not windows:
        return 0.0
    quality = np.array([option[0] for window in windows for option in window.options])
    cost_s = np.array([option[1] for window in windows for option in window.options])
    owner = np.repeat(np.arange(len(windows)), [len(window.options) for window in windows])
    edges = np.unique([edge for window in windows for edge in (window.release_s, window.due_s)])
    holder, slot = _slots(windows, edges)
    picks, pieces, slots = len(quality), len(slot), len(edges) - 1
    once = csr_array((np.ones(picks), (owner, np.arange(picks))), shape=(len(windows), picks + pieces))
    held = csr_array((np.ones(pieces), (slot, picks + np.arange(pieces))), shape=(slots, picks + pieces))
    done = _work_is_done(owner, cost_s, holder, len(windows))
    solved = linprog(
        -np.concatenate([quality, np.zeros(pieces)]),
        A_ub=csr_array(vstack([once, held, done])),
        b_ub=np.concatenate([np.ones(len(windows)), np.diff(edges), np.zeros(len(windows))]),
        method="highs-ipm",  # an order of magnitude quicker than the simplex with thousands of requests
    )
    if solved.status != 0:
        raise RuntimeError(f"the bound was not solved: {solved.message}")
    return float(-solved.fun)


def _slots(windows: Sequence[Window], edges: Floats) -> tuple[Indices, Indices]:
    """For every request and every slot of its window: (request, slot)."""
    first = np.searchsorted(edges, [window.release_s for window in windows])
    last = np.searchsorted(edges, [window.due_s for window in windows])
    count = np.maximum(last - first, 0)
    starts = np.repeat(first - np.concatenate([[0], np.cumsum(count)[:-1]]), count)
    return np.repeat(np.arange(len(windows)), count), starts + np.arange(count.sum())


def _work_is_done(owner: Indices, cost_s: Floats, holder: Indices, requests: int) -> csr_array:
    """Rows: the work that was picked for a request, less the time it gets, is at most 0."""
    values = np.concatenate([cost_s, -np.ones(len(holder))])
    columns = np.arange(len(values))
    return csr_array((values, (np.concatenate([owner, holder]), columns)), shape=(requests, len(values)))
