"""Quotas that routers count together over a real Redis, and what is left of them when it is gone."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis

from headway.errors import TooManyCalls, from_rpc_error
from headway.local_redis import LocalRedis
from headway.requests import images_request
from services.router.quotas import Quota, Quotas
from services.router.shared_quotas import SharedQuotas, _key

STILL = Quota(device_ms_per_s=0.001, burst_ms=300)
"""As good as never filled again while a test runs."""


class Now:
    s = 100.0

    def __call__(self) -> float:
        return self.s


class Gauge:
    value = 0.0

    def set(self, value: float) -> None:
        self.value = value


@pytest.fixture(scope="module")
def server() -> Iterator[LocalRedis]:
    with LocalRedis.start(max_memory_mib=16) as started:
        yield started


@pytest.fixture
def url(server: LocalRedis) -> str:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


class Router:
    def __init__(self, url: str, quota: Quota = STILL) -> None:
        self.now, self.gauge = Now(), Gauge()
        self.quotas = Quotas({"acme": quota}, self.now)
        self.shared = SharedQuotas(url, self.quotas, self.gauge)

    def use(self, device_ms: float) -> None:
        with self.quotas.call("acme", device_ms, 0.1):
            pass

    def wait_s(self) -> float:
        """For how long it is refused now."""
        with pytest.raises(TooManyCalls) as refusal, self.quotas.call("acme", 1.0, 0.1):
            pass
        assert refusal.value.retry_after_s is not None
        return refusal.value.retry_after_s

    @property
    def level_ms(self) -> float:
        return self.quotas._accounts["acme"].level_ms


@asynccontextmanager
async def routers(url: str, count: int, quota: Quota = STILL) -> AsyncIterator[list[Router]]:
    made = [Router(url, quota) for _ in range(count)]
    yield made
    for router in made:
        await router.shared.close()


async def test_what_one_router_served_the_other_does_not_serve_again(url: str) -> None:
    async with routers(url, 2) as (one, other):
        one.use(200)
        other.use(1)
        for router in (one, other, one):
            assert await router.shared.sync()
        assert one.level_ms == pytest.approx(99, abs=0.1)
        assert other.level_ms == pytest.approx(99, abs=0.1)
        other.use(150)
        assert other.wait_s() > 1
        assert await other.shared.sync()
        assert await one.shared.sync()
        assert one.wait_s() == pytest.approx(51 / 0.001, rel=0.01)
        assert one.gauge.value == 1.0


async def test_what_comes_while_the_store_is_asked_counts_too(url: str) -> None:
    async with routers(url, 1) as (one,):
        one.use(100)
        syncing = asyncio.create_task(one.shared.sync())
        await asyncio.sleep(0)
        one.use(50)
        assert await syncing
        assert one.level_ms == pytest.approx(150, abs=0.1)
        assert await one.shared.sync()
        assert one.level_ms == pytest.approx(150, abs=0.1)


async def test_without_the_store_each_router_goes_on_with_its_share() -> None:
    with LocalRedis.start(max_memory_mib=16) as server:
        async with routers(server.url, 2, Quota(device_ms_per_s=100, burst_ms=300)) as (one, other):
            for router in (one, other, one):
                router.use(1)
                assert await router.shared.sync()
            server.stop()
            assert not await one.shared.sync()
            assert one.gauge.value == 0.0
            one.now.s += 60
            one.use(400)
            assert one.wait_s() == pytest.approx((400 - 150) / 50), "half of the burst, half of the rate"
            one.now.s += 6
            one.use(1)


async def test_a_router_alone_has_all_of_it_and_a_dead_store_never_raises(tmp_path: Path) -> None:
    async with routers(f"unix://{tmp_path}/nobody", 1, Quota(device_ms_per_s=100, burst_ms=300)) as (one,):
        one.use(1)
        assert not await one.shared.sync()
        one.now.s += 60
        one.use(400)
        assert one.wait_s() == pytest.approx(1.0)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-1\r\n" * 50, b":1\r\n" * 50])
async def test_something_else_that_listens_there_is_no_store(tmp_path: Path, says: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(says)
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "s")
    async with server, routers(f"unix://{tmp_path}/s", 1) as (one,):
        one.use(100)
        assert not await one.shared.sync()
        one.use(1)


@pytest.mark.parametrize(
    "kept",
    [
        {"level": "nan", "at": "1"},
        {"level": "inf", "at": "1"},
        {"level": "-1e300", "at": "1"},
        {"level": "1e300", "at": "1"},
        {"level": "-1000", "at": "9e18"},
        {"level": "x", "at": "y"},
        {"other": "1"},
        "a string",
    ],
)
async def test_what_others_wrote_there_is_a_bucket_that_nobody_used(url: str, kept: Any) -> None:
    with redis.Redis.from_url(url) as client:
        for key in (_key("acme"), "headway:quota:routers"):
            if isinstance(kept, str):
                client.set(key, kept)
            else:
                client.hset(key, mapping=kept)
        async with routers(url, 1) as (one,):
            one.use(100)
            assert await one.shared.sync()
            assert one.level_ms == pytest.approx(200, abs=0.1)
            assert one.quotas._routers == 1
        assert 0 < client.pttl(_key("acme")) <= 86_400_000


async def test_more_tenants_than_fit_in_one_message_are_told(url: str) -> None:
    names = [f"t{number}" for number in range(600)]
    quotas = Quotas(dict.fromkeys(names, STILL), Now())
    shared = SharedQuotas(url, quotas, Gauge())
    for name in names:
        with quotas.call(name, 10.0, 0.1):
            pass
    assert await shared.sync()
    await shared.close()
    with redis.Redis.from_url(url) as client:
        assert sum(1 for _ in client.scan_iter("headway:quota:*")) == 601


async def test_two_routers_of_a_mesh_count_together(mesh: Any, url: str, tmp_path: Path) -> None:
    """Requests of 600 ms and a bucket of 1000: two on the first router and one on the second, and no more."""
    keys, limits = tmp_path / "keys.yaml", tmp_path / "quotas.yaml"
    keys.write_text(f"acme: [{hashlib.sha256(b'acme').hexdigest()}]\n")
    limits.write_text("acme: {device_ms_per_s: 0.001, burst_ms: 1000}\n")
    metadata = (("authorization", "Bearer acme"),)
    worker = await mesh.worker(step_ms=150)
    settings = {"metadata": metadata, "api_keys": keys, "quotas": limits, "quota_store": url}
    one, other = [await mesh.router(worker, **settings) for _ in range(2)]

    async def generate(client: Any) -> float | None:
        """None when it was served; else the time to come back."""
        try:
            async for _ in client.images.Generate(images_request(3), timeout=20, metadata=metadata):
                pass
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).retry_after_s
        return None

    assert [await generate(client) for client in (one, one, other)] == [None] * 3
    async with asyncio.timeout(30):
        while (await generate(one) or 0.0) < 500 / 0.001:
            """Until it knows of the third."""
    assert await generate(other) is not None
    assert len(worker.servicer.budgets) == 3
