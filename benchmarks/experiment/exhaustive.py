"""The best schedule of a few requests by trying all: what the bound is checked against."""

import heapq
import itertools
import random
from collections.abc import Sequence

from benchmarks.experiment.bound import Window, bound

TOLERANCE_S = 1e-9


def best_quality(windows: Sequence[Window]) -> float:
    """The highest sum of qualities with a whole rung or a refusal for each request; exponential in their number.

    Preemptive, at best batch efficiency as in the bound: what is left of the gap is that requests are whole.
    """
    best = 0.0
    for picks in itertools.product(*([None, *window.options] for window in windows)):
        quality = sum(pick[0] for pick in picks if pick is not None)
        if quality > best and fits(windows, [0.0 if pick is None else pick[1] for pick in picks]):
            best = quality
    return best


def fits(windows: Sequence[Window], work_s: Sequence[float]) -> bool:
    """Whether so much work of each request can be done in its window; earliest deadline first finds a way if any."""
    order = sorted(range(len(windows)), key=lambda index: windows[index].release_s)
    waiting, now_s, coming = list[tuple[float, float]](), 0.0, 0  # a heap of (due, work left)
    while waiting or coming < len(order):
        if not waiting:
            now_s = max(now_s, windows[order[coming]].release_s)
        while coming < len(order) and windows[order[coming]].release_s <= now_s:
            heapq.heappush(waiting, (windows[order[coming]].due_s, work_s[order[coming]]))
            coming += 1
        due_s, left_s = heapq.heappop(waiting)
        until_s = windows[order[coming]].release_s if coming < len(order) else float("inf")
        spent_s = min(left_s, until_s - now_s)
        now_s += spent_s
        if left_s > spent_s:
            heapq.heappush(waiting, (due_s, left_s - spent_s))
        elif left_s > 0 and now_s > due_s + TOLERANCE_S:
            return False
    return True


def gaps(instances: int, requests: int, options: Sequence[tuple[float, float]], seed: int = 0) -> list[float]:
    """Bound over best, less 1, on random overloaded instances in the experiments' shape."""
    draw, found = random.Random(seed), list[float]()
    top_s, least_s = options[0][1], options[-1][1]
    for _ in range(instances):
        windows, at_s = list[Window](), 0.0
        for _ in range(requests):
            at_s += draw.expovariate(1.5 / least_s)
            windows.append(Window(at_s, at_s + draw.choice((1.5, 3.0, 6.0)) * top_s, tuple(options)))
        found.append(bound(windows) / best_quality(windows) - 1)
    return found
