import ast
import asyncio
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.telemetry import Answer, Attribute, Metrics, MetricsEndpoint, Outcome, percentile, watch_loop_lag
from headway.v1 import common_pb2

ROOT = Path(__file__).parents[2]


def _metrics() -> Metrics:
    return Metrics("test", "0")


def _answer(rung: str, *, slack_s: float, target_slack_s: float) -> Answer:
    return Answer(rung, "BEST_FIT", 0.8, slack_s, target_slack_s, common_pb2.PRIORITY_HIGH, "acme")


def _sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_processes_in_one_test_do_not_share_metrics() -> None:
    first, second = _metrics(), _metrics()
    first.record_end("text", Outcome.SHED, 0.001, None, "acme")
    shed = {"kind": "text", "outcome": "shed", "tenant": "acme"}
    assert _sample(first, "headway_requests_total", **shed) == 1
    assert _sample(first, "headway_requests_total", **{**shed, "outcome": "failed"}) == 0
    assert _sample(second, "headway_requests_total", **shed) is None


def test_an_answer_counts_by_target_and_by_deadline() -> None:
    metrics = _metrics()
    metrics.record_answer("image", _answer("2 steps", slack_s=0.2, target_slack_s=-0.1))
    held_to = {"kind": "image", "priority": "high", "tenant": "acme"}
    assert _sample(metrics, "headway_attained_total", by="deadline", **held_to) == 1
    assert _sample(metrics, "headway_missed_total", by="target", **held_to) == 1
    assert _sample(metrics, "headway_missed_total", by="deadline", **held_to) == 0
    assert _sample(metrics, "headway_rungs_served_total", kind="image", rung="2 steps", reason="BEST_FIT") == 1


def test_negative_slack_falls_in_a_negative_bucket() -> None:
    metrics = _metrics()
    metrics.record_answer("text", _answer("full", slack_s=-0.05, target_slack_s=-0.05))
    assert _sample(metrics, "headway_slack_seconds_bucket", kind="text", le="-0.1") == 0
    assert _sample(metrics, "headway_slack_seconds_bucket", kind="text", le="-0.03") == 1


def test_names_follow_the_conventions_of_prometheus() -> None:
    units = ("_seconds", "_ratio", "_requests", "_info", "_reachable", "_replicas", "_blocks", "headway_workers")
    for family in _metrics().registry.collect():
        assert family.name.startswith("headway_")
        assert family.documentation.endswith(".")
        assert family.type == "counter" or family.name.endswith(units), family.name


def test_the_endpoint_serves_until_it_is_closed() -> None:
    endpoint = MetricsEndpoint(_metrics(), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{endpoint.port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert b'headway_build_info{service="test",version="0"} 1.0' in answer.read()
    with pytest.raises(OSError, match="in use"):
        MetricsEndpoint(_metrics(), "127.0.0.1", endpoint.port)
    endpoint.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


async def test_a_loop_that_wakes_late_shows_as_lag() -> None:
    metrics = _metrics()
    measured = asyncio.Event()
    readings_s = iter([0.0, 0.002, 1.0, 1.06])

    def clock() -> float:
        if (now_s := next(readings_s, None)) is None:
            measured.set()
            return 2.0
        return now_s

    watching = asyncio.create_task(watch_loop_lag(metrics, interval_s=0.001, clock=clock))
    await measured.wait()
    watching.cancel()
    assert _sample(metrics, "headway_event_loop_lag_p99_seconds") == pytest.approx(0.059)
    assert _sample(metrics, "headway_event_loop_lag_seconds_bucket", le="0.0005") == 0
    assert _sample(metrics, "headway_event_loop_lag_seconds_bucket", le="0.002") == 1
    with pytest.raises(asyncio.CancelledError):
        await watching


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_is_a_value_with_the_share_at_or_below_it(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def _python_files() -> list[Path]:
    return [path for top in ("headway", "services") for path in (ROOT / top).rglob("*.py")]


def test_metrics_and_spans_are_made_in_one_place_each() -> None:
    homes = {"prometheus_client": "telemetry.py", "opentelemetry": "tracing.py"}
    for path in _python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module != "prometheus_client.parser":  # reads others' metrics
                names = [node.module or ""]
            for name in names:
                home = homes.get(name.split(".")[0])
                assert home is None or path == ROOT / "headway" / home, (path, name)


def test_every_span_is_asked_for_by_its_declared_name() -> None:
    for path in _python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "span":
                assert not isinstance(node.args[0] if node.args else None, ast.Constant), path
                assert all(k.arg is None or k.arg.upper() in Attribute.__members__ for k in node.keywords), path
