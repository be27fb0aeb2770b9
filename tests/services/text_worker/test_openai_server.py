"""Our contract in front of `transformers serve`, a real OpenAI-compatible server, with the model that ships."""

import asyncio
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from text_rig import ENDLESS, GREEDY, LONG_S, MODEL, Answer, ask, refusal, served

from headway.v1 import text_pb2, text_pb2_grpc, worker_pb2, worker_pb2_grpc

TRANSFORMERS = Path(sys.executable).with_name("transformers")
LACKING = [name for name in ("fastapi", "uvicorn", "openai", "accelerate") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(LACKING) or shutil.which(TRANSFORMERS) is None,
        reason=f"`transformers serve` needs {LACKING or 'its command'}: pip install 'transformers[serving]' accelerate",
    ),
    pytest.mark.asyncio(loop_scope="module"),
]
STARTING_S = 80.0
PROMPTS: dict[str, dict[str, Any]] = {"text": {"text": "The with statement"}, "chat": {"chat": ENDLESS}}


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a free port, ended with the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(TRANSFORMERS), "serve", str(MODEL), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output
        )
    try:
        _await_server(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


def _await_server(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end_s = time.monotonic() + STARTING_S
    while time.monotonic() < end_s:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)  # another process's start has no event to wait for
    raise AssertionError(log.read_text())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What our own engine answers. Its worker ends before the other starts: a process has one handler for SIGTERM."""
    async with served(tmp_path_factory.mktemp("own")) as channel:
        return {name: await ask(channel, max_tokens=24, **request) for name, request in PROMPTS.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(
    base_url: str, own: dict[str, Answer], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[grpc.aio.Channel]:
    folder = tmp_path_factory.mktemp("calibration")
    options = {"engine": "openai", "base_url": base_url, "remote_model": str(MODEL), "context_tokens": 512}
    async with served(folder, **options) as open_channel:
        yield open_channel


@pytest.mark.parametrize("name", PROMPTS)
async def test_an_answer_is_that_of_our_own_engine(
    channel: grpc.aio.Channel, own: dict[str, Answer], name: str
) -> None:
    there = await ask(channel, max_tokens=24, **PROMPTS[name])
    assert there.text == own[name].text
    assert (there.reason, there.summary.served.quality) == (own[name].reason, 1.0)


async def test_usage_and_what_was_served_are_told(channel: grpc.aio.Channel) -> None:
    answer = await ask(channel, max_tokens=20)
    assert answer.summary.usage.completion_tokens == 20
    assert answer.summary.usage.prompt_tokens > 0
    assert answer.plan.worker_id == answer.summary.served.worker_id


async def test_a_deadline_ends_the_answer_cleanly(channel: grpc.aio.Channel) -> None:
    state = worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=LONG_S)
    now = await anext(aiter(state))
    step_ms = next(cost.mean_ms for cost in now.step_costs if cost.batch == 1)
    least_ms = float((await refusal(channel, 0.02, max_tokens=400)).metadata["least_budget_ms"])
    answer = await ask(channel, (2 * least_ms + 60 * step_ms) / 1000, max_tokens=400)
    assert answer.reason == "DEADLINE"
    assert 0 < answer.summary.usage.completion_tokens < 400
    assert 0.0 < answer.summary.served.quality < 1.0


async def test_leaving_ends_the_work_behind(channel: grpc.aio.Channel) -> None:
    stub = text_pb2_grpc.TextGenerationStub(channel)
    call = stub.Generate(text_pb2.GenerateRequest(chat=ENDLESS, sampling=GREEDY, max_tokens=400), timeout=LONG_S)
    async for message in call:
        if message.WhichOneof("part") == "chunk":
            break
    call.cancel()
    async for state in worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=LONG_S):
        if state.in_flight == 0:
            return
    raise AssertionError("the state ended")


async def test_answers_run_together(channel: grpc.aio.Channel) -> None:
    answers = await asyncio.gather(*(ask(channel, max_tokens=12) for _ in range(3)))
    assert len({answer.text for answer in answers}) == 1


async def test_bad_input_names_its_field(channel: grpc.aio.Channel) -> None:
    assert list((await refusal(channel, max_tokens=0)).violations) == ["max_tokens"]
    assert list((await refusal(channel, text="")).violations) == ["text"]
    assert (await refusal(channel, resume=text_pb2.Resume())).reason_name == "UNIMPLEMENTED"
