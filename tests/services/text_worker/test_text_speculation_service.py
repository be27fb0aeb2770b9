"""Speculation through the whole worker: answers are those of a worker without it, and metrics tell how it went."""

import asyncio
import socket
import urllib.request
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from text_rig import Answer, ask, served

from headway.v1 import text_pb2

REPEATING = "import os\nimport os\nimport os\n"
REQUESTS: list[dict[str, Any]] = [
    {"max_tokens": 200},
    {"text": REPEATING, "max_tokens": 80},
    {"text": REPEATING, "max_tokens": 80, "stop": ["Return"], "sampling": text_pb2.Sampling(temperature=0.2, seed=4)},
    {"text": REPEATING, "max_tokens": 80, "sampling": text_pb2.Sampling(temperature=0, repetition_penalty=1.2)},
    {"text": REPEATING, "max_tokens": 40, "structure": text_pb2.Structure(regex="(import os\n){4,9}")},
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def draft_tokens(port: int) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.labels["result"]: sample.value for sample in samples if sample.name == "headway_draft_tokens_total"}


async def answers(cache_dir: Path, **options: Any) -> tuple[list[Answer], dict[str, float]]:
    """All requests together, and after the first of them is known one that goes on from its middle."""
    port = free_port()
    async with served(cache_dir, weights="int8", metrics_port=port, **options) as channel:
        found = await asyncio.gather(*(ask(channel, **request) for request in REQUESTS))
        half = found[0].token_ids[:100]
        resume = text_pb2.Resume(token_ids=half, sampler_position=len(half))
        found.append(await ask(channel, max_tokens=200, resume=resume))
        return found, await asyncio.to_thread(draft_tokens, port)


async def test_answers_are_those_of_a_worker_that_does_not_speculate(tmp_path: Path) -> None:
    expected, none = await answers(tmp_path, speculate="off")
    found, drafted = await answers(tmp_path, speculate="lookup")
    for one, other in zip(expected, found, strict=True):
        assert (one.token_ids, one.text, one.reason) == (other.token_ids, other.text, other.reason)
        assert one.summary.usage == other.summary.usage
        assert other.chunk_sizes[0] == 1
    assert none == {}
    assert drafted["accepted"] > 20
