"""Open answers of a server, read in a thread of their own and handed to the engine's thread piece by piece."""

import asyncio
import queue
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from headway.errors import BadInput, Failed, HeadwayError, WorkerLost
from services.text_worker.remote.protocol import Call, Events, Piece, read_piece

CONNECT_S = 5.0
MAX_ANSWER_BYTES = 2**20
MAX_METRICS_BYTES = 16 * 2**20
LOAD_EVERY_S = 1.0
RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs")
WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")


@dataclass(frozen=True, slots=True)
class Arrived:
    """A piece of one answer, the error that ended it, or (None) its regular end."""

    key: int
    event: Piece | HeadwayError | None


class Streams:
    """One server. `start`, `cancel` and `wait` belong to the engine's thread; none but `wait` blocks."""

    def __init__(self, base_url: str, api_key: str | None) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        timeout = httpx.Timeout(CONNECT_S, read=None)  # the budget ends a stream, not the transport
        self._base = base_url.rstrip("/")
        self._limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=self._limits)
        self._arrived: queue.SimpleQueue[Arrived] = queue.SimpleQueue()
        self._open: dict[int, Future[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-streams", daemon=True)
        self._thread.start()
        self.waiting_elsewhere = 0
        """Requests that the server works on or holds back beside ours, as it told last."""
        self._watching: Future[None] | None = None

    def models(self) -> list[dict[str, Any]]:
        """What the server serves. Blocks. Raises Failed or WorkerLost."""
        listed = asyncio.run_coroutine_threadsafe(self._models(), self._loop).result()
        return [model for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)]

    def start(self, key: int, call: Call) -> None:
        """Asks; pieces come under `key` until its end."""
        self._open[key] = asyncio.run_coroutine_threadsafe(self._read(key, call), self._loop)

    def cancel(self, key: int) -> None:
        """Closes the answer, which tells the server to stop; nothing for one that has ended."""
        found = self._open.pop(key, None)
        if found is not None:
            found.cancel()

    def wait(self, keys: Collection[int], *, timeout_s: float, grace_s: float) -> list[Arrived]:
        """Blocks until something came, then on until something came for every key, or `grace_s` are over."""
        try:
            arrived = [self._arrived.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        missing, end_s = set(keys) - {arrived[0].key}, time.monotonic() + grace_s
        while True:
            try:
                arrived.append(self._arrived.get(timeout=max(0.0, end_s - time.monotonic()) if missing else 0.0))
            except queue.Empty:
                return [item for item in arrived if item.key in self._open]
            missing.discard(arrived[-1].key)

    def watch_load(self) -> None:
        """Reads the server's own metrics from now on, where it has any."""
        self._watching = asyncio.run_coroutine_threadsafe(self._watch_load(), self._loop)

    def close(self) -> None:
        """Ends every stream and the thread. Blocks."""
        for key in list(self._open):
            self.cancel(key)
        if self._watching is not None:
            self._watching.cancel()
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _models(self) -> list[Any]:
        try:
            response = await self._client.get(f"{self._base}/models", timeout=CONNECT_S)
            response.raise_for_status()
            listed = response.json()["data"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise WorkerLost(f"{self._base}/models cannot be read: {type(error).__name__}: {error}") from error
        return listed if isinstance(listed, list) else []

    async def _read(self, key: int, call: Call) -> None:
        """Puts every piece of one answer, and its end."""
        ending: HeadwayError | None = None
        try:
            async with self._client.stream("POST", f"{self._base}/{call.path}", json=call.body) as response:
                if response.status_code >= 400:
                    raise _refusal(response.status_code, await _beginning(response))
                events = Events()
                async for received in response.aiter_bytes():
                    for event in events.push(received):
                        self._arrived.put(Arrived(key, read_piece(event)))
        except HeadwayError as error:
            ending = error
        except (httpx.HTTPError, ValueError) as error:
            ending = WorkerLost(f"the server behind this worker was lost: {type(error).__name__}: {error}")
        self._arrived.put(Arrived(key, ending))

    async def _watch_load(self) -> None:
        url = self._base.removesuffix("/v1") + "/metrics"
        while True:
            try:
                response = await self._client.get(url, timeout=CONNECT_S)
                if response.status_code != 200 or len(response.content) > MAX_METRICS_BYTES:
                    return  # this server tells nothing
                self.waiting_elsewhere = max(0, requests_in(response.text) - len(self._open))
            except (httpx.HTTPError, ValueError):
                self.waiting_elsewhere = 0
            await asyncio.sleep(LOAD_EVERY_S)


def requests_in(metrics: str) -> int:
    """Requests running and waiting, from the metrics of vLLM or SGLang; 0 where neither is told. Raises ValueError."""
    total = 0.0
    for family in text_string_to_metric_families(metrics):
        total += sum(sample.value for sample in family.samples if sample.name in RUNNING + WAITING)
    return int(total)


async def _beginning(response: httpx.Response) -> str:
    """The first part of an error's text."""
    received = b""
    async for part in response.aiter_bytes():
        received += part
        if len(received) > MAX_ANSWER_BYTES:
            break
    return received[:300].decode(errors="replace")


def _refusal(status: int, said: str) -> HeadwayError:
    if status in (400, 404, 413, 422):
        return BadInput("request", f"the server behind this worker answers {status}: {said}")
    if status in (401, 403):
        return Failed(f"the server behind this worker answers {status}: its API key is missing or wrong")
    return WorkerLost(f"the server behind this worker answers {status}: {said}")
