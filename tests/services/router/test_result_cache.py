"""The result cache in front of real workers, over a real prefix cache and a real Redis."""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.deadline import Budget
from headway.local_redis import LocalRedis
from headway.requests import images_request, render_request, service_level, text_request
from headway.v1 import common_pb2, image_pb2, router_pb2, text_pb2
from services.router.methods import GENERATE_IMAGES, GENERATE_TEXT, RENDER
from services.router.replay import read_answer, replay, result_key

CACHED = common_pb2.RUNG_REASON_CACHED
PATIENT = {"cache_lookup_ms": 5000.0}  # the machine may be busy: what is tested here is not how long it takes


@pytest.fixture
def valkey() -> Iterator[LocalRedis]:
    with LocalRedis.start(max_memory_mib=64) as server:
        yield server


async def summary(client: Any, request: Any, **kwargs: Any) -> Any:
    call = client.images.Generate(request, **{"timeout": 20, **kwargs})
    messages = [message async for message in call]
    assert messages[0].HasField("plan")
    assert messages[0].plan.reason == CACHED or messages[-1].summary.served.reason != CACHED
    return messages[-1].summary.served


def count(mesh: Any, kind: str, result: str) -> float:
    return float(mesh.router_service.metrics.result_cache.labels(kind, result)._value.get())


async def kept(url: str, entries: int) -> None:
    """Returns when the store has that many entries: what is kept is kept in the background."""
    async with asyncio.timeout(10):
        with redis.Redis.from_url(url) as direct:
            while len(await asyncio.to_thread(direct.keys, "headway:result:*")) < entries:
                pass


async def test_the_same_request_is_answered_from_the_cache_with_figures_of_its_own(mesh: Any, valkey: Any) -> None:
    worker = await mesh.worker()
    address, _ = await mesh.cache(valkey.url)
    client = await mesh.router(worker, prefix_cache=address, **PATIENT)
    request = images_request(3, seed=7)
    first = await summary(client, request)
    await kept(valkey.url, 1)
    call = client.images.Generate(request, timeout=15)
    messages = [message async for message in call]
    served = messages[-1].summary.served
    assert [message.WhichOneof("part") for message in messages] == ["plan", *["batch"] * 4, "summary"]
    assert messages[-2].batch.images[0].data == b"12"
    assert (messages[0].plan.reason, served.reason, first.reason) == (CACHED, CACHED, common_pb2.RUNG_REASON_BEST_FIT)
    assert (served.rung.label, served.worker_id, served.steps_executed, served.attempts) == ("4", "image-one", 0, 0)
    assert 0 < served.slack_ms <= served.budget_ms <= 15_100 < first.budget_ms
    assert [stage.stage for stage in served.stages] == ["cache"]
    assert dict(await call.trailing_metadata())["headway-reason"] == "cached"
    assert len(worker.servicer.budgets) == 1
    assert (count(mesh, "image", "miss"), count(mesh, "image", "hit")) == (1, 1)


async def story(client: Any, request: Any) -> tuple[list[int], Any]:
    messages = [message async for message in client.text.Generate(request, timeout=20)]
    assert messages[0].HasField("plan")
    return [token for message in messages for token in message.chunk.token_ids], messages[-1].summary


async def test_texts_that_are_drawn_one_way_are_cached_when_they_ended_by_themselves(mesh: Any, valkey: Any) -> None:
    worker = await mesh.worker("text")
    address, _ = await mesh.cache(valkey.url)
    client = await mesh.router(worker, prefix_cache=address, **PATIENT)
    greedy, seeded = text_request("abc", temperature=0.0), text_request("abc", seed=7)
    cut = text_request("abc", seed=8, level=service_level(exact="2"))
    drawn, resumed = text_request("abc"), text_request("abc", seed=7)
    resumed.resume.CopyFrom(text_pb2.Resume(token_ids=[3], seed=7, sampler_position=1))
    for request in (greedy, seeded, cut, drawn, resumed):
        assert (await story(client, request))[1].served.reason != CACHED
    await kept(valkey.url, 2)
    for request in (greedy, seeded):
        tokens, summary = await story(client, request)
        assert (tokens, summary.served.reason) == ([3, 6, 9, 12], CACHED)
    for request in (cut, drawn, resumed):
        assert (await story(client, request))[1].served.reason != CACHED
    assert (count(mesh, "text", "hit"), count(mesh, "text", "miss")) == (2, 4)
    assert (await story(client, text_request("abc", seed=7, level=service_level(exact="2"))))[0] == [3, 6]


def ending(reason: int, quality: float) -> bytes:
    served = common_pb2.Served(asset_hash="a", quality=quality)
    part = text_pb2.GenerateSummary(finish_reason=reason, served=served)
    return text_pb2.GenerateResponse(summary=part).SerializeToString()


def test_a_text_that_was_cut_is_no_answer_for_others() -> None:
    whole = [(text_pb2.FINISH_REASON_STOP, 1.0), (text_pb2.FINISH_REASON_LENGTH, 1.0)]
    cut = [(text_pb2.FINISH_REASON_DEADLINE, 1.0), (text_pb2.FINISH_REASON_LENGTH, 0.5)]
    assert all(read_answer(GENERATE_TEXT, [ending(*each)]) is not None for each in whole)
    assert all(read_answer(GENERATE_TEXT, [ending(*each)]) is None for each in cut)


async def test_frames_are_cached_and_unseeded_images_and_texts_are_not(mesh: Any, valkey: Any) -> None:
    image, splat = await mesh.worker("image"), await mesh.worker("splat")
    address, _ = await mesh.cache(valkey.url)
    client = await mesh.router(image, splat, prefix_cache=address, **PATIENT)
    await summary(client, images_request(3))
    await client.splats.Render(render_request("", width=5), timeout=20)
    await kept(valkey.url, 1)
    again = await client.splats.Render(render_request("", width=5), timeout=20)
    assert (again.plan.reason, again.served.reason, again.frame.data) == (CACHED, CACHED, b"20")
    other = await client.splats.Render(render_request("", width=6), timeout=20)
    assert other.served.reason != CACHED
    assert (await summary(client, images_request(3))).reason != CACHED
    assert count(mesh, "image", "miss") == 0


async def test_a_worse_entry_is_not_used_and_a_better_one_replaces_it(mesh: Any, valkey: Any) -> None:
    worker = await mesh.worker()
    address, _ = await mesh.cache(valkey.url)
    client = await mesh.router(worker, prefix_cache=address, **PATIENT)

    def request(**level: Any) -> Any:
        return images_request(3, seed=7, level=service_level(**level))

    assert (await summary(client, request(exact="1"))).quality == 0.5
    await kept(valkey.url, 1)
    assert (await summary(client, request(exact="1"))).reason == CACHED
    better = await summary(client, request())
    assert (better.reason != CACHED, better.quality) == (True, 1.0)
    assert count(mesh, "image", "worse") == 1
    async with asyncio.timeout(10):
        while (await summary(client, request())).reason != CACHED:
            pass
    assert (await summary(client, request(at_least="nfe=2"))).rung.label == "4"
    exact = await summary(client, request(exact="1"))
    assert (exact.reason, exact.rung.label) == (common_pb2.RUNG_REASON_EXACT, "1")


async def test_damaged_entries_are_misses_and_never_answers(mesh: Any, valkey: Any) -> None:
    worker = await mesh.worker()
    address, _ = await mesh.cache(valkey.url)
    client = await mesh.router(worker, prefix_cache=address, **PATIENT)
    request = images_request(3, seed=7)
    await summary(client, request)
    await kept(valkey.url, 1)
    with redis.Redis.from_url(valkey.url) as direct:
        (name,) = direct.keys("headway:result:*")
        stored = bytearray(direct.hget(name, "v"))
        stored[-10] ^= 1
        direct.hset(name, "v", bytes(stored))
    assert (await summary(client, request)).reason == common_pb2.RUNG_REASON_BEST_FIT
    assert len(worker.servicer.budgets) == 2


async def test_redis_or_cache_gone_means_slower_never_wrong_and_it_comes_back(mesh: Any, valkey: Any) -> None:
    worker = await mesh.worker()
    address, stop_cache = await mesh.cache(valkey.url)
    client = await mesh.router(worker, prefix_cache=address, **PATIENT)
    request = images_request(3, seed=7)
    await summary(client, request)
    await kept(valkey.url, 1)
    valkey.process.kill()
    valkey.process.wait()
    for _ in range(5):
        assert (await summary(client, request)).reason != CACHED
    assert count(mesh, "image", "error") >= 3
    stop_cache.set()
    for _ in range(5):
        assert (await summary(client, request)).reason != CACHED
    with LocalRedis.start(max_memory_mib=64) as fresh:
        await mesh.cache(fresh.url, listen=address)
        async with asyncio.timeout(20):
            while (await summary(client, request)).reason != CACHED:
                pass
        listed = await client.router.ListWorkers(router_pb2.ListWorkersRequest(), timeout=5)
        assert listed.prefix_cache_reachable


async def test_answers_that_are_too_large_are_passed_on_and_not_kept(mesh: Any, valkey: Any) -> None:
    worker = await mesh.worker()
    address, _ = await mesh.cache(valkey.url)
    client = await mesh.router(worker, prefix_cache=address, cache_max_kib=1, **PATIENT)
    large = image_pb2.GenerateImagesRequest(labels=[1], seed=1, previews=False)
    raw = large.SerializeToString() + b"\xfa\x3f\x80\x10" + bytes(2048)  # field 1023, unknown: part of the key
    call = client.channel.unary_stream("/headway.v1.ImageGeneration/Generate")(raw, timeout=20)
    assert len([message async for message in call]) == 6
    await summary(client, images_request(2, seed=1))
    await kept(valkey.url, 1)


async def test_tenants_do_not_share_entries(mesh: Any, valkey: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "".join(f"{tenant}: [{hashlib.sha256(f'key-{tenant}'.encode()).hexdigest()}]\n" for tenant in ("ann", "bob"))
    )
    worker = await mesh.worker()
    address, _ = await mesh.cache(valkey.url)
    as_ann, as_bob = ((("authorization", f"Bearer key-{tenant}"),) for tenant in ("ann", "bob"))
    client = await mesh.router(worker, prefix_cache=address, api_keys=keys, metadata=as_ann, **PATIENT)
    request = images_request(3, seed=7)
    await summary(client, request, metadata=as_ann)
    await kept(valkey.url, 1)
    assert (await summary(client, request, metadata=as_bob)).reason != CACHED
    await kept(valkey.url, 2)
    assert (await summary(client, request, metadata=as_ann)).reason == CACHED
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await summary(client, request)
    assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert all("authorization" not in metadata for metadata in worker.servicer.metadata)


requests = st.builds(
    image_pb2.GenerateImagesRequest,
    model=st.sampled_from(["", "sums"]),
    labels=st.lists(st.integers(0, 9), max_size=3),
    seed=st.integers(0, 3),
    guidance=st.one_of(st.none(), st.floats(0, 2)),
)


@settings(max_examples=100, deadline=None)
@given(requests, requests)
def test_keys_are_equal_for_equal_work_alone(
    first: image_pb2.GenerateImagesRequest, second: image_pb2.GenerateImagesRequest
) -> None:
    same = result_key(GENERATE_IMAGES, first, "hash", "salt") == result_key(GENERATE_IMAGES, second, "hash", "salt")
    for request in (first, second):
        request.model = ""
    assert same == (first == second)


def test_keys_differ_by_tenant_asset_and_method_but_not_by_service_level() -> None:
    request, asked = images_request(3, seed=7), images_request(3, seed=7, level=service_level(exact="1"))
    key = result_key(GENERATE_IMAGES, request, "hash", "salt")
    assert key == result_key(GENERATE_IMAGES, asked, "hash", "salt")
    others = {
        result_key(GENERATE_IMAGES, request, "hash", "other"),
        result_key(GENERATE_IMAGES, request, "other", "salt"),
        result_key(RENDER, request, "hash", "salt"),
    }
    assert len(others | {key}) == 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=4))
def test_stored_garbage_is_no_answer_or_can_be_replayed(messages: list[bytes]) -> None:
    answer = read_answer(GENERATE_IMAGES, messages)
    if answer is not None:
        replayed = replay(GENERATE_IMAGES, answer, Budget(0.0, 1.0, 0.0), 0.5)
        assert len(replayed) == len(messages)
