"""Whom each policy asks first, and that none of them looks at more workers when there are more."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from still_worker import Still

from headway.cost import Cost, Load, StepCurve
from headway.deadline import Budget
from headway.errors import NoSuchRung
from headway.prefix import CHUNK_BYTES
from headway.quality import Ladder, Rung
from headway.requests import images_request, service_level, text_request
from headway.v1 import common_pb2, text_pb2
from services.router.methods import GENERATE_TEXT
from services.router.placement import Ask
from services.router.policies import ATTEMPTS, SAMPLE, Placer, read_policy
from services.router.roster import Roster
from services.router.view import Asset, Description, Report, make_view

NOW_S = 1000.0
LADDER = Ladder((Rung("4", 1.0, nfe=4), Rung("1", 0.5, nfe=1)))
POLICIES = ["headway", "round-robin", "least-queue", "power-of-two", "prefix-hash", "prefix-hash:2"]


def worker(name: str, *, queued: int = 0, step_ms: float = 10.0, ladder: Ladder = LADDER, **fields: Any) -> Still:
    about = Description(name, common_pb2.KIND_IMAGE, f"device of {name}", "", (Asset("digits", "hash", ladder),))
    loads = tuple(Load(NOW_S + 1, 1, 4) for _ in range(queued))
    report = Report(NOW_S, loads, {("", ""): StepCurve(((1, Cost(step_ms)),))}, 1, 0.0, queued, 0.0, False)
    return Still(make_view(name, about, report, ()), **fields)


def ask(prefix: bytes = b"", **level: Any) -> Ask:
    return Ask(
        common_pb2.KIND_IMAGE, "model", "digits", service_level(**level), NOW_S, NOW_S + 60, items=1, prompt=prefix
    )


def placer(policy: str, seed: int = 0) -> Placer:
    return Placer(read_policy(policy), quantile=0.9, draw=random.Random(seed))


def asked(policy: Placer, roster: Roster, request: Ask | None = None) -> list[str]:
    return [placement.view.address for placement in policy.place(request or ask(), roster, NOW_S)]


def test_round_robin_takes_turns_whatever_there_is_to_do() -> None:
    roster, policy = Roster([worker("c"), worker("a", queued=9), worker("b")]), placer("round-robin")
    assert [asked(policy, roster)[0] for _ in range(4)] == ["a", "b", "c", "a"]
    assert asked(policy, roster) == ["b", "c", "a"]


def test_least_queue_weighs_the_queue_by_how_long_answers_take() -> None:
    quick, slow = worker("quick", queued=3, open_calls=1, latency_ms=10), worker("slow", open_calls=1, latency_ms=40)
    assert asked(placer("least-queue"), Roster([quick, slow])) == ["quick", "slow"]  # 5 * 10 < 2 * 40
    quick.open_calls = 5
    assert asked(placer("least-queue"), Roster([quick, slow])) == ["slow", "quick"]  # 9 * 10 > 2 * 40
    assert asked(placer("least-queue"), Roster([quick, slow, worker("new")]))[0] == "new"


def test_power_of_two_takes_the_shorter_of_two() -> None:
    roster = Roster([worker("full", queued=5), worker("sent", open_calls=4), worker("free")])
    firsts = Counter(asked(placer("power-of-two", seed), roster)[0] for seed in range(60))
    assert "full" not in firsts
    assert firsts["free"] > firsts["sent"] > 0


def test_equal_beginnings_go_to_one_worker_until_it_has_too_much() -> None:
    workers = [worker(f"w{number}") for number in range(40)]
    roster, policy = Roster(workers), placer("prefix-hash:3")
    first, second, *_ = asked(policy, roster, ask(b"once upon a time"))
    assert {asked(policy, roster, ask(b"once upon a time"))[0] for _ in range(5)} == {first}
    homes = Counter(asked(policy, roster, ask(str(number).encode()))[0] for number in range(400))
    assert len(homes) > 30
    busy = next(each for each in workers if each.address == first)
    busy.open_calls = 4
    assert asked(policy, roster, ask(b"once upon a time"))[0] == second
    without = Roster([each for each in workers if each is not busy])
    moved = sum(
        asked(policy, without, ask(str(number).encode()))[0] != asked(policy, roster, ask(str(number).encode()))[0]
        for number in range(100)
    )
    assert moved == 0  # the busy one had none, and the others keep theirs


@pytest.mark.parametrize("policy", POLICIES)
def test_a_thousand_workers_cost_no_more_than_a_few(policy: str) -> None:
    workers = [worker(f"w{number}", queued=number % 5) for number in range(1000)]
    roster, rule = Roster(workers), placer(policy)
    for number in range(20):
        before = sum(each.looks for each in workers)
        placements = rule.place(ask(str(number).encode()), roster, NOW_S)
        assert ATTEMPTS <= len(placements) <= SAMPLE
        assert sum(each.looks for each in workers) - before == len(placements)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_places_the_same(policy: str) -> None:
    roster = Roster([worker(f"w{number}", queued=number % 3, latency_ms=number) for number in range(50)])
    one, two = placer(policy, 7), placer(policy, 7)
    assert [asked(one, roster) for _ in range(10)] == [asked(two, roster) for _ in range(10)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.sampled_from(POLICIES), st.binary(max_size=4))
def test_every_policy_names_different_workers_of_the_roster(queues: list[int], policy: str, prefix: bytes) -> None:
    roster = Roster([worker(str(index), queued=queued) for index, queued in enumerate(queues)])
    names = asked(placer(policy), roster, ask(prefix))
    assert len(names) >= min(ATTEMPTS, len(queues))
    assert len(set(names)) == len(names)
    assert set(names) <= {str(index) for index in range(len(queues))}


def test_headway_still_finds_the_best_of_those_that_it_draws() -> None:
    workers = [worker(f"w{number}", queued=4) for number in range(200)]
    names = asked(placer("headway"), Roster([*workers, *(worker(f"idle{number}") for number in range(100))]))
    assert names[0].startswith("idle")
    assert names[-1].startswith("w")


def test_a_rung_that_only_one_of_many_has_is_found() -> None:
    rare = worker("rare", ladder=Ladder((Rung("8", 1.0, nfe=8),)))
    roster = Roster([*(worker(f"w{number}") for number in range(300)), rare])
    assert asked(placer("power-of-two"), roster, ask(exact="8")) == ["rare"]
    with pytest.raises(NoSuchRung):
        asked(placer("power-of-two"), roster, ask(exact="16"))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_worker_whose_calls_fail_is_left_out_and_tried_first_when_it_is_time(policy: str) -> None:
    broken, others = worker("broken", ejected=True), [worker("a"), worker("b")]
    roster = Roster([broken, *others])
    assert set(asked(placer(policy), roster)) == {"a", "b"}
    broken.wants_probe = True
    assert asked(placer(policy), roster)[0] == "broken"
    unseen = placer(policy).place(ask(), roster, NOW_S, probe=False)  # a client's own call would judge nothing
    assert {placement.view.address for placement in unseen} == {"a", "b"}
    assert asked(placer(policy), Roster([broken])) == ["broken"]


def test_a_probe_costs_no_caller_the_deadline() -> None:
    broken = worker("broken", queued=2000, ejected=True, wants_probe=True)
    assert asked(placer("headway"), Roster([broken, worker("a"), worker("b")]))[-1] == "broken"


@pytest.mark.parametrize("name", ["", "least", "headway:3", "prefix-hash:", "prefix-hash:99999", "round_robin"])
def test_names_of_no_policy_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="power-of-two"):
        read_policy(name)


def test_a_prompt_begins_as_its_first_chunk_does() -> None:
    def prefix(request: text_pb2.GenerateRequest) -> bytes:
        return GENERATE_TEXT.ask(request, Budget(0.0, 1.0, 0.0)).prompt[:CHUNK_BYTES]

    long = "a story " * 100
    assert prefix(text_request(long + "one")) == prefix(text_request(long + "two"))
    assert prefix(text_request("one")) != prefix(text_request("two"))
    turns = [text_pb2.ChatMessage(role="user", content=long + end) for end in ("one", "two")]
    chats = [text_pb2.GenerateRequest(chat=text_pb2.Chat(messages=[turn])) for turn in turns]
    assert prefix(chats[0]) == prefix(chats[1]) != b""
    tokens = [text_pb2.GenerateRequest(tokens=text_pb2.TokenIds(ids=[*range(64), end])) for end in (1, 2)]
    assert prefix(tokens[0]) == prefix(tokens[1]) != b""


async def test_a_router_asks_whom_its_policy_says(mesh: Any) -> None:
    workers = [await mesh.worker(name="slow", step_ms=50), await mesh.worker(name="quick")]
    client = await mesh.router(*workers, placement="round-robin")
    for _ in range(4):
        async for _ in client.images.Generate(images_request(3), timeout=10):
            pass
    assert [len(each.servicer.budgets) for each in workers] == [2, 2]
