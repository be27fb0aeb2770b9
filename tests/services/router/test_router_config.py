"""The router's settings: what stops the start, and that it names the field."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.config import ConfigError, read
from headway.v1 import common_pb2
from services.router.config import RouterConfig, WorkerAddress, read_workers


def config(*flags: str) -> RouterConfig:
    return read(RouterConfig, flags, prog="headway-router", env={})


def test_workers_of_every_kind_and_several_of_one() -> None:
    read_in = config("--workers", "text=a.example:1, dit=10.0.0.1:2,image=unix:/run/x.sock,splat=[::1]:3")
    assert read_in.workers == (
        WorkerAddress(common_pb2.KIND_TEXT, "a.example:1"),
        WorkerAddress(common_pb2.KIND_IMAGE, "10.0.0.1:2"),
        WorkerAddress(common_pb2.KIND_IMAGE, "unix:/run/x.sock"),
        WorkerAddress(common_pb2.KIND_SPLAT, "[::1]:3"),
    )


def test_workers_may_be_a_list_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("workers: [text=a:1, splat=b:2]\n")
    assert [worker.address for worker in config("--config", str(path)).workers] == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("workers", "problem"),
    [
        ("texd=a:1", "kind of text"),
        ("text", "KIND=ADDRESS"),
        ("text=a", "HOST:PORT"),
        ("text=a:0", "port 0"),
        ("text=a:99999", "HOST:PORT"),
        ("text=a:1,splat=a:1", "twice"),
        ("", "at least one"),
        ("unix:/x", "KIND=ADDRESS"),
    ],
)
def test_a_typo_stops_the_start_and_names_the_field(workers: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"workers.*{problem}"):
        config(f"--workers={workers}")


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ((), "workers"),
        (("--workers", "text=a:1", "--prefix-cache", "a"), "prefix_cache"),
        (("--workers", "text=a:1", "--cache-ttl-s", "0"), "cache_ttl_s"),
        (("--workers", "text=a:1", "--upstream-cert", __file__), "upstream_cert"),
        (("--workers", "text=a:1", "--cache-secret", "/no/such/file"), "cache_secret"),
        (("--workers", "text=a:1", "--worker", "text=b:1"), "--worker"),
        (("--workers", "text=a:1", "--placement", "random"), "placement.*power-of-two"),
    ],
)
def test_what_is_wrong_is_named(flags: tuple[str, ...], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        config(*flags)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=3)))
def test_no_text_does_more_than_raise(value: object) -> None:
    try:
        workers = read_workers(value)
    except ValueError:
        return
    assert workers
