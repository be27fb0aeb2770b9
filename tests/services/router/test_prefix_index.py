"""Who holds how much of a prompt: what the index says is what the reports said."""

import random
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still_worker import Still

from headway.cost import Cost, Load, StepCurve
from headway.prefix import CHUNK_BYTES, chunk_chain
from headway.quality import Ladder, Rung
from headway.requests import service_level
from headway.v1 import common_pb2, prefix_cache_pb2
from services.router import prefixes
from services.router.placement import Ask
from services.router.policies import SAMPLE, Placer, read_policy
from services.router.prefixes import MOST_HOLDERS, NOTHING_SHARED, PrefixIndex, Shared
from services.router.roster import Roster
from services.router.view import Asset, Description, Report, make_view

NOW_S = 1000.0


def prompt_of(parts: tuple[int, ...]) -> bytes:
    return b"".join(random.Random(part).randbytes(CHUNK_BYTES) for part in parts)


def links(parts: tuple[int, ...]) -> tuple[bytes, ...]:
    return chunk_chain(prompt_of(parts), salt="", fingerprint=b"m")


def block(parts: tuple[int, ...]) -> bytes:
    """The name of the block in which the last chunk of a prompt ends."""
    return links(parts)[-1][::-1]


def event(parts: tuple[int, ...], *, removed: bool = False) -> prefix_cache_pb2.PrefixEvent:
    chunks = [] if removed else [links(parts)[-1]]
    return prefix_cache_pb2.PrefixEvent(token_chain=block(parts), chunk_chain=chunks, removed=removed)


def report(worker: str, *events: prefix_cache_pb2.PrefixEvent, snapshot: bool = False) -> Any:
    return prefix_cache_pb2.PublishRequest(worker_id=worker, snapshot=snapshot, events=events)


def beginnings(parts: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [parts[: size + 1] for size in range(len(parts))]


prompts = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)
steps = st.lists(
    st.tuples(st.sampled_from("abc"), prompts, st.sampled_from(["store", "remove", "snapshot"])), max_size=20
)


@settings(max_examples=80, deadline=None)
@given(steps, prompts)
def test_what_was_reported_is_found(history: list[tuple[str, tuple[int, ...], str]], asked: tuple[int, ...]) -> None:
    """A worker stores a prompt with all its beginnings, and lets go of its end with all that goes on from it."""
    index, truth = PrefixIndex(), dict[str, set[tuple[int, ...]]]()
    for worker, parts, what in history:
        held = truth.setdefault(worker, set())
        if what == "remove":
            gone = [each for each in held if each[: len(parts)] == parts]
            held.difference_update(gone)
            index.take(report(worker, *(event(each, removed=True) for each in gone)))
            continue
        if what == "snapshot":
            held.clear()
        held.update(beginnings(parts))
        index.take(report(worker, *map(event, beginnings(parts)), snapshot=what == "snapshot"))
    shared = index.shared(links(asked))
    depths = {
        worker: len([*takewhile(held.__contains__, beginnings(asked))]) * CHUNK_BYTES for worker, held in truth.items()
    }
    assert {worker: shared.held_bytes(worker) for worker in "abc" if worker in depths} == depths
    deepest = max(depths.values(), default=0)
    assert set(shared.longest) == {worker for worker, depth in depths.items() if depth == deepest > 0}
    assert index.sizes == {worker: len(held) for worker, held in truth.items() if held}
    assert index.blocks == sum(map(len, truth.values()))
    for worker in truth:
        index.take(report(worker, snapshot=True))
    assert (index.sizes, index.blocks, index._holders) == ({}, 0, {})


def test_only_as_much_is_hashed_as_is_shared() -> None:
    index, parts = PrefixIndex(), tuple(range(50))
    made = 0

    def counted() -> Iterator[bytes]:
        nonlocal made
        for link in links(parts):
            made += 1
            yield link

    assert index.shared(counted()) is NOTHING_SHARED
    assert made == 0
    index.take(report("a", *map(event, beginnings(parts[:3]))))
    assert index.shared(counted()).held_bytes("a") == 3 * CHUNK_BYTES
    assert made == 4


def test_a_chunk_of_two_blocks_stays_until_both_are_gone() -> None:
    index, parts = PrefixIndex(), (1,)
    other = prefix_cache_pb2.PrefixEvent(token_chain=b"o" * 32, chunk_chain=links(parts))
    index.take(report("a", event(parts), other))
    index.take(report("a", event(parts, removed=True)))
    assert index.shared(links(parts)).longest == ["a"]
    index.take(report("a", prefix_cache_pb2.PrefixEvent(token_chain=b"o" * 32, removed=True)))
    assert index.shared(links(parts)).longest == []


def test_one_worker_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MOST_CHUNKS", 5)
    monkeypatch.setattr(prefixes, "MOST_WORKERS", 2)
    index = PrefixIndex()
    for number in range(20):
        index.take(report("a", event((number,))))
        index.take(report(f"w{number}", event((number,))))
    assert index.sizes == {"a": 5, "w0": 1}
    malformed = prefix_cache_pb2.PrefixEvent(token_chain=b"x", chunk_chain=[b"", b"short", b"x" * 33])
    index.take(report("a", malformed, snapshot=True))
    assert index.sizes == {"w0": 1}


def worker(name: str, *, queued_ms: float = 0.0) -> Still:
    ladder = Ladder((Rung("100%", 1.0, token_share=1.0),))
    about = Description(name, common_pb2.KIND_TEXT, name, "", (Asset("tiny", "hash", ladder),))
    loads = (Load(NOW_S + 1, 1, 1, Cost(queued_ms)),) if queued_ms else ()
    report = Report(NOW_S, loads, {("", ""): StepCurve(((1, Cost(1.0)),))}, 8, 1.0, len(loads), 0.0, False)
    return Still(make_view(name, about, report, ()))


def ask(parts: tuple[int, ...]) -> Ask:
    prompt = prompt_of(parts)
    return Ask(
        common_pb2.KIND_TEXT, "model", "", service_level(), NOW_S, NOW_S + 60,
        tokens=8, prompt_tokens=len(prompt) // 4, prompt=prompt, bytes_per_token=4,
    )  # fmt: skip


def placed(workers: list[Still], shared: Shared, policy: str = "headway") -> list[str]:
    placer = Placer(read_policy(policy), quantile=0.9, draw=random.Random(1))
    return [each.view.address for each in placer.place(ask((1, 2, 3)), Roster(workers), NOW_S, shared=shared)]


def test_who_holds_the_prompt_is_asked_first_until_waiting_costs_more_than_computing() -> None:
    index = PrefixIndex()
    index.take(report("b", *map(event, beginnings((1, 2)))))
    shared = index.shared(links((1, 2, 3)))
    assert placed([worker("a"), worker("b"), worker("c")], shared)[0] == "b"
    assert placed([worker("a"), worker("b", queued_ms=100)], shared)[0] == "b"  # 128 of 192 tokens are there
    assert placed([worker("a"), worker("b", queued_ms=150)], shared)[0] == "a"
    assert placed([worker("a"), worker("b")], NOTHING_SHARED)[0] == "a"


def test_holders_are_weighed_among_a_thousand_without_looking_at_all() -> None:
    index, workers = PrefixIndex(), [worker(f"w{number}") for number in range(1000)]
    index.take(report("w777", *map(event, beginnings((1, 2)))))
    for number in range(500, 600):
        index.take(report(f"w{number}", event((1,))))
    shared = index.shared(links((1, 2, 3)))
    assert placed(workers, shared)[0] == "w777"
    assert sum(each.looks for each in workers) <= SAMPLE + MOST_HOLDERS
    assert "w777" not in placed(workers, shared, "least-queue")


def test_a_holder_that_is_gone_or_was_never_known_is_no_candidate() -> None:
    index = PrefixIndex()
    index.take(report("gone", *map(event, beginnings((1, 2)))))
    assert placed([worker("a"), worker("b")], index.shared(links((1, 2, 3)))) == ["a", "b"]
