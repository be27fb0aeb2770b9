"""What is expected of a worker, and which expectation is best. Pure: no clock, no I/O, no randomness.

The router predicts as the workers do, with `headway.cost.play`: what they reported, what was sent to them since, and
what others on the same device are to do. It ranks, it never refuses: the worker's yes or no is the promise. Which
workers are looked at at all, `policies` says.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from headway.cost import ZERO, Cost, Foreign, Load, ahead_ms, play
from headway.errors import NoSuchRung
from headway.quality import Rung, Wish, read_wish
from headway.v1 import common_pb2
from services.router.view import Asset, View

FRAME_PIXELS = 512 * 512
"""Splat workers report the costs of frames of this size."""

FLOOR_TOKENS = 16
"""The least that a text worker aims at where the caller names no floor."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, as placement sees it. Sizes are the caller's claims: the worker checks them."""

    kind: common_pb2.Kind
    field: str
    """The field that names the asset, for errors: "model" or "scene"."""
    asset: str
    """Name or hash; empty means the worker's default."""
    level: common_pb2.ServiceLevel
    arrival_s: float
    due_s: float
    """When the worker's answer must be complete; monotonic."""
    items: int = 1
    """Images; 1 for a text or a frame."""
    tokens: int = 1
    """Text: new tokens asked for."""
    prompt_tokens: int = 0
    """Text: an estimate; the router has no tokenizer."""
    pixels: int = FRAME_PIXELS
    """Splats: size of the frame."""
    prompt: bytes = b""
    """Text: the canonical prompt, or how a long one begins; empty where it is not known."""
    bytes_per_token: int = 1
    """Text: of `prompt`, as `prompt_tokens` was estimated."""


class InTime(IntEnum):
    """How well a worker is expected to do."""

    FOR_TARGET = 0
    FOR_DEADLINE = 1
    LATE = 2


@dataclass(frozen=True, slots=True)
class Placement:
    """What is expected of one worker."""

    view: View
    asset: Asset
    allowed: tuple[Rung, ...]
    """The rungs that the caller accepts there, best first."""
    rung: Rung
    """The best that is in time."""
    load: Load
    """The request at this rung."""
    finish: Cost
    """From now."""
    in_time: InTime
    others_ms: float = 0.0
    """What it costs others, summed: see `_delay_ms` and `_lost_ms`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that has the asset, and what else is to do on its device."""

    view: View
    asset: Asset
    foreign: Foreign
    held_bytes: int = 0
    """Leading bytes of the prompt that are in its cache."""


def expect(ask: Ask, candidates: Sequence[Candidate], now_s: float, quantile: float) -> list[Placement]:
    """What is expected of each, in the order given; those that cannot meet the service level at all are left out.

    Raises `BadInput` for a bad service level, and `NoSuchRung` when that is why none is left.
    """
    placements, refusal = [], None
    most_held = max((candidate.held_bytes for candidate in candidates), default=0)
    kept_ms = (candidate.view.report.kept_kv_ms for candidate in candidates)
    least_kept_ms = min((each_ms for each_ms in kept_ms if each_ms is not None), default=0.0)
    for candidate in candidates:
        try:
            wish = read_wish(ask.level, candidate.asset.ladder, ask.kind)
        except NoSuchRung as error:
            refusal = error
            continue
        placement = _place(ask, candidate, wish, now_s, quantile)
        others_ms = _lost_ms(placement, least_kept_ms)
        if candidate.held_bytes < most_held:
            others_ms += _delay_ms(placement, _uncached_tokens(ask, most_held))
        placements.append(replace(placement, others_ms=others_ms))
    if refusal is not None and not placements:
        raise refusal
    return placements


def best_first(placements: Sequence[Placement], quantile: float) -> list[Placement]:
    """In time, then highest quality, then the earliest finish and least cost to others, then fewest in flight."""
    return sorted(placements, key=lambda placement: _order(placement, quantile))


def _order(placement: Placement, quantile: float) -> tuple[float | str, ...]:
    paid_ms = round(placement.finish.quantile_ms(quantile) + placement.others_ms, 3)
    view = placement.view
    return placement.in_time, -placement.rung.quality, paid_ms, view.in_flight, view.address


def _place(ask: Ask, candidate: Candidate, wish: Wish, now_s: float, quantile: float) -> Placement:
    """The best rung in time for the target; else the best for the deadline; else the cheapest."""
    view, asset = candidate.view, candidate.asset
    prefill_tokens = _uncached_tokens(ask, candidate.held_bytes)
    target_s = min(ask.due_s, math.inf if wish.target_s is None else ask.arrival_s + wish.target_s)
    expected = []
    for rung in wish.allowed:
        load = _load(ask, candidate, rung, wish, prefill_tokens)
        expected.append((rung, load, _finish(load, view, asset, rung, candidate.foreign)))
        if expected[-1][2].quantile_ms(quantile) <= (target_s - now_s) * 1000:
            return Placement(view, asset, wish.allowed, *expected[-1], InTime.FOR_TARGET)
    for rung, load, finish in expected:
        if finish.quantile_ms(quantile) <= (ask.due_s - now_s) * 1000:
            return Placement(view, asset, wish.allowed, rung, load, finish, InTime.FOR_DEADLINE)
    return Placement(view, asset, wish.allowed, *expected[-1], InTime.LATE)


def _uncached_tokens(ask: Ask, held_bytes: int) -> int:
    """Tokens of the prompt that are to be computed; the last one always is."""
    return max(min(1, ask.prompt_tokens), ask.prompt_tokens - held_bytes // ask.bytes_per_token)


def _load(ask: Ask, candidate: Candidate, rung: Rung, wish: Wish, prefill_tokens: int) -> Load:
    view, asset = candidate.view, candidate.asset
    if ask.kind == common_pb2.KIND_SPLAT:
        share = ask.pixels / FRAME_PIXELS
        frame = view.report.curve(asset.hash, rung.label).at(1)
        return Load(ask.due_s, 1, 0, Cost(frame.mean_ms * share, frame.var_ms2 * share * share))
    if ask.kind == common_pb2.KIND_TEXT:
        prefill = Cost(prefill_tokens * view.report.prefill_token_ms)
        return Load(ask.due_s, 1, _new_tokens(ask, rung, wish), prefill)
    return Load(ask.due_s, max(1, ask.items), rung.nfe or 1, ZERO)


def _new_tokens(ask: Ask, rung: Rung, wish: Wish) -> int:
    """The tokens that a rung means: its share of those asked for, no less than the floor (DESIGN, decision 8)."""
    share = 1.0 if rung.token_share is None else rung.token_share
    least = 1 if wish.exact and share else wish.min_tokens or FLOOR_TOKENS
    return max(1, min(ask.tokens, max(least, math.ceil(ask.tokens * share))))


def _finish(load: Load, view: View, asset: Asset, rung: Rung, foreign: Foreign) -> Cost:
    """When the load would finish among the worker's own, in the order of their deadlines."""
    loads, place = _among(load, view)
    means_ms, vars_ms2 = play(loads, view.report.curve(asset.hash, rung.label), view.report.max_batch)
    return Cost(means_ms[place] + ahead_ms(load.due_s, foreign), vars_ms2[place])


def _delay_ms(placement: Placement, least_tokens: int) -> float:
    """What the worker's other texts wait, summed, because more of the prompt is computed there than `least_tokens`.

    A prefill holds up every text that is written beside it, and all that are due later.
    """
    load, view = placement.load, placement.view
    least = replace(load, setup=Cost(least_tokens * view.report.prefill_token_ms))
    return max(0.0, _others_finish_ms(load, placement) - _others_finish_ms(least, placement))


def _lost_ms(placement: Placement, least_kept_ms: float) -> float:
    """What a text computes takes the room of what nobody has used for longest, which may have to be computed again.

    That is the less likely the longer it lay: where it lay shortest, for `least_kept_ms`, it counts in full. So misses
    go to the cache that loses least, and all are used even where one worker is a hair quicker than the others.
    """
    kept_ms = placement.view.report.kept_kv_ms
    if kept_ms is None:
        return 0.0
    share = 1.0 if kept_ms <= least_kept_ms else least_kept_ms / kept_ms
    return placement.load.setup.mean_ms * share


def _others_finish_ms(load: Load, placement: Placement) -> float:
    """When the worker's others would be finished beside the load, summed."""
    view = placement.view
    loads, place = _among(load, view)
    curve = view.report.curve(placement.asset.hash, placement.rung.label)
    means_ms, _ = play(loads, curve, view.report.max_batch)
    return sum(means_ms) - means_ms[place]


def _among(load: Load, view: View) -> tuple[list[Load], int]:
    """The worker's loads with this one, by deadline, and its place."""
    place = bisect_right(view.loads, load.due_s, key=_due_s)
    return [*view.loads[:place], load, *view.loads[place:]], place


def _due_s(load: Load) -> float:
    return load.due_s
