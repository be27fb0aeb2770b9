"""A server that is not ours, on the same arrivals: vLLM's OpenAI interface, as a user would run it on CPUs.

It knows no deadlines and refuses nobody, so its client does what users do: it takes the tokens as they come and leaves
when the time is up, a little before the deadline. What has come by then is the answer, if it is the least that was
asked for.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.experiment.arrivals import Arrival
from benchmarks.experiment.generator import Answer, Send
from benchmarks.experiment.worker import Cores, free_port
from headway.client import AsyncHeadway
from headway.v1 import common_pb2

START_S, STOP_S = 180.0, 20.0
LEAVE_MS = 5.0
"""How long before the deadline the client leaves."""


@asynccontextmanager
async def vllm(
    python: str, model: Path, body: Callable[[Arrival], dict[str, Any]], least: float, cores: Cores
) -> AsyncIterator[Send]:
    """Starts the server on the worker's cores; what is yielded sends it a request of `body`'s making."""
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "bfloat16"]
    command += ["--enforce-eager", "--host", "127.0.0.1", "--port", str(port), "--max-num-seqs", "32"]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **variables, "OMP_NUM_THREADS": str(cores.threads)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    if cores.worker is not None:
        os.sched_setaffinity(process.pid, cores.worker)
    try:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60.0) as http:
            await _until_it_serves(http, process)
            yield _sender(http, str(model), body, least)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await asyncio.wait_for(process.wait(), STOP_S)


def _sender(http: httpx.AsyncClient, model: str, body: Callable[[Arrival], dict[str, Any]], least: float) -> Send:
    async def send(_: AsyncHeadway, arrival: Arrival, __: common_pb2.ServiceLevel) -> AsyncIterator[Answer]:
        until_s = time.perf_counter() + (arrival.deadline_ms - LEAVE_MS) / 1000
        yield common_pb2.Plan(rung=common_pb2.Rung(label="as it comes"))
        tokens, usage = 0, {"include_usage": True, "continuous_usage_stats": True}
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + until_s - time.perf_counter()):
                asked = {"model": model, "stream": True, "stream_options": usage, **body(arrival)}
                async with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
                    answer.raise_for_status()
                    async for line in answer.aiter_lines():
                        tokens = max(tokens, _tokens(line))
        except TimeoutError:  # the client leaves with what has come
            pass
        share = min(1.0, tokens / arrival.items)
        if share >= least:
            rung = common_pb2.Rung(label="as it comes")
            yield common_pb2.Served(rung=rung, quality=share, steps_executed=tokens)

    return send


def _tokens(line: str) -> int:
    """Tokens that have come with an event and those before it."""
    if not line.startswith("data: {"):
        return 0
    return int((json.loads(line[6:]).get("usage") or {}).get("completion_tokens", 0))


async def _until_it_serves(http: httpx.AsyncClient, process: asyncio.subprocess.Process) -> None:
    until_s = time.monotonic() + START_S
    while process.returncode is None and time.monotonic() < until_s:
        try:
            if (await http.get("/health")).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.5)
    raise SystemExit("the peer's server did not start")
