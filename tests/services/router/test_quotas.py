"""What each tenant may use: over any time no more device time than its rate, and never more calls than its limit."""

import hashlib
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import Failed, Shed, TooManyCalls, from_rpc_error
from headway.requests import images_request
from headway.server import StartError
from headway.v1 import common_pb2, router_pb2
from services.router.quotas import OTHERS, Quota, QuotaFileError, Quotas, load_quotas


class Now:
    s = 100.0

    def __call__(self) -> float:
        return self.s


def use(quotas: Quotas, tenant: str, device_ms: float) -> None:
    with quotas.call(tenant, device_ms, 0.1):
        pass


def refused(quotas: Quotas, tenant: str, device_ms: float = 1.0) -> TooManyCalls:
    with pytest.raises(TooManyCalls, match=f"quota of tenant {tenant}") as refusal, quotas.call(tenant, device_ms, 0.1):
        pass
    return refusal.value


def test_a_bucket_empties_and_fills_by_its_rate() -> None:
    now = Now()
    quotas = Quotas({"acme": Quota(device_ms_per_s=100, burst_ms=300)}, now)
    use(quotas, "acme", 500)
    refusal = refused(quotas, "acme")
    assert refusal.retry_after_s == pytest.approx(2.0)
    assert refusal.metadata == {"quota": "device_ms_per_s", "limit": "100"}
    now.s += refusal.retry_after_s + 0.001
    use(quotas, "acme", 1)
    for _ in range(10_000):
        use(quotas, "other", 1e6)


def test_calls_in_flight_are_counted_and_refusals_say_when_one_ends() -> None:
    now = Now()
    quotas = Quotas({"acme": Quota(calls_in_flight=2)}, now)
    with quotas.call("acme", 1, 5.0), ExitStack() as second:
        second.enter_context(quotas.call("acme", 1, 3.0))
        assert refused(quotas, "acme").retry_after_s == pytest.approx(3.0)
        second.close()
        use(quotas, "acme", 1)
    quotas.pick("acme", 1, 4.0)
    quotas.pick("acme", 1, 6.0)
    assert refused(quotas, "acme").retry_after_s == pytest.approx(4.0)
    now.s += 4.0
    use(quotas, "acme", 1)


def test_others_are_limited_each_for_itself() -> None:
    quotas = Quotas({OTHERS: Quota(device_ms_per_s=1, burst_ms=10), "rich": Quota()}, Now())
    for tenant in ("one", "two"):
        use(quotas, tenant, 10)
        refused(quotas, tenant)
    for _ in range(5):
        use(quotas, "rich", 1e6)


@pytest.mark.parametrize(("error", "back"), [(Shed("full"), True), (Failed("broken"), False), (GeneratorExit(), False)])
def test_only_what_was_not_begun_is_given_back(error: BaseException, back: bool) -> None:
    quotas = Quotas({"acme": Quota(device_ms_per_s=1, burst_ms=10)}, Now())
    with pytest.raises(type(error)), quotas.call("acme", 10, 0.1):
        raise error
    if back:
        use(quotas, "acme", 10)
    refused(quotas, "acme")


def test_tenants_that_used_nothing_for_a_while_are_forgotten() -> None:
    now = Now()
    quotas = Quotas({OTHERS: Quota(device_ms_per_s=1000, burst_ms=10)}, now)
    for number in range(10_000):
        use(quotas, f"t{number}", 1)
        now.s += 0.01
    assert len(quotas._accounts) <= 4096


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.5), st.floats(0.1, 80), st.booleans()), min_size=1, max_size=60),
    st.floats(1, 500),
    st.floats(1, 200),
)
def test_no_order_of_calls_gets_more_than_the_rate(
    arrivals: list[tuple[float, float, bool]], rate: float, burst: float
) -> None:
    now = Now()
    quotas = Quotas({"acme": Quota(device_ms_per_s=rate, burst_ms=burst)}, now)
    used, last, waits = 0.0, 0.0, list[float | None]()
    for gap_s, cost_ms, picked in arrivals:
        now.s += gap_s
        try:
            if picked:
                quotas.pick("acme", cost_ms, 0.1)
            else:
                use(quotas, "acme", cost_ms)
        except TooManyCalls as refusal:
            waits.append(refusal.retry_after_s)
            continue
        used, last = used + cost_ms, cost_ms
    assert all(wait_s is not None and 0 < wait_s < math.inf for wait_s in waits)
    assert used <= burst + rate * (now.s - Now.s) + last + 1e-6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acme: {device_ms_per_s: 0}", "acme.*device_ms_per_s"),
        ("acme: {device_ms_per_s: .inf}", "acme.*device_ms_per_s"),
        ("acme: {calls: 3}", "acme.*calls"),
        ("acme: {calls_in_flight: -1}", "acme.*calls_in_flight"),
        ("acme: 5", "acme"),
        ("'../x': {}", "a letter or digit"),
        ("[acme]", "mapping"),
    ],
)
async def test_a_bad_file_stops_the_start_and_says_where(mesh: Any, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "quotas.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        load_quotas(path)
    with pytest.raises(StartError, match=f"quotas: .*{said}"):
        await mesh.router("text=127.0.0.1:1", healthy=0, quotas=path)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "quotas.yaml"
    path.write_text("acme: {device_ms_per_s: 400, burst_ms: 2000, calls_in_flight: 16}\n'*': {calls_in_flight: 2}\n")
    assert load_quotas(path) == {
        "acme": Quota(device_ms_per_s=400, burst_ms=2000, calls_in_flight=16),
        "*": Quota(calls_in_flight=2),
    }
    assert issubclass(QuotaFileError, ValueError)


async def test_routers_charge_calls_and_picks_to_the_tenant_of_the_key(mesh: Any, tmp_path: Path) -> None:
    names = ("caller", "picker", "other")
    keys, limits = tmp_path / "keys.yaml", tmp_path / "quotas.yaml"
    keys.write_text("".join(f"{name}: [{hashlib.sha256(name.encode()).hexdigest()}]\n" for name in names))
    limits.write_text("".join(f"{name}: {{device_ms_per_s: 0.001, burst_ms: 0.001}}\n" for name in names[:2]))
    caller, picker, other = ((("authorization", f"Bearer {name}"),) for name in names)
    worker = await mesh.worker(step_ms=5)
    client = await mesh.router(worker, metadata=other, api_keys=keys, quotas=limits)

    async def pick(metadata: Any) -> None:
        await client.router.Pick(
            router_pb2.PickRequest(kind=common_pb2.KIND_IMAGE, items=1), timeout=10, metadata=metadata
        )

    async def generate(metadata: Any) -> None:
        async for _ in client.images.Generate(images_request(3), timeout=10, metadata=metadata):
            pass

    await pick(picker)
    await generate(caller)
    for refused_ in (pick(picker), generate(picker), pick(caller), generate(caller)):
        with pytest.raises(grpc.aio.AioRpcError, match="quota of tenant") as refusal:
            await refused_
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = from_rpc_error(refusal.value)
        assert error.reason_name == "TOO_MANY_CALLS"
        assert error.metadata["quota"] == "device_ms_per_s"
        assert error.retry_after_s is not None
        assert error.retry_after_s > 1
        assert int(dict(error.trailers)["grpc-retry-pushback-ms"]) > 1000
    await generate(other)
    assert len(worker.servicer.budgets) == 2
