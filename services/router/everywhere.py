"""What the router does on every splat worker: a scene is loaded wherever its file is, and unloaded wherever it is.

Any worker may be asked for a frame of any scene that it has, so a scene that only one had loaded would make that one
the bottleneck. Workers whose folder has no such file do not count. The router describes a worker anew before it
answers, so that the next call finds what was loaded.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from headway.channels import onward
from headway.deadline import Budget, Clock
from headway.errors import BadInput, HeadwayError, from_rpc_error
from headway.tracing import Metadata
from headway.v1 import common_pb2, errors_pb2, splat_pb2
from services.router.forwarding import no_worker
from services.router.identity import ROUTER
from services.router.member import Member
from services.router.pool import Pool, kind_name
from services.router.view import BadReport

M = TypeVar("M", bound=Message)
_LOAD, _UNLOAD = (f"/headway.v1.SplatRendering/{name}" for name in ("LoadScene", "UnloadScene"))
_News = tuple[int, splat_pb2.LoadSceneResponse | HeadwayError | None]
"""Which worker; how far it is, what went wrong there, or None when it is done."""


class Everywhere:
    """Loads and unloads scenes on all healthy splat workers."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool, self._clock = pool, clock

    async def load(self, raw: bytes, budget: Budget) -> AsyncGenerator[splat_pb2.LoadSceneResponse, None]:
        """How far the slowest worker is; last the scene, when all are done.

        Raises `NotFound` when no worker has the file, and any other error of a worker when all have ended.
        """
        _read(splat_pb2.LoadSceneRequest, raw)
        members, news = self._members(), asyncio.Queue[_News]()
        tasks = [
            asyncio.create_task(self._follow(index, member, raw, budget, news)) for index, member in enumerate(members)
        ]
        try:
            latest = dict[int, splat_pb2.LoadSceneResponse]()
            failures, running = list[HeadwayError](), set(range(len(members)))
            while running:
                index, item = await news.get()
                if isinstance(item, splat_pb2.LoadSceneResponse):
                    latest[index] = item
                else:
                    running.discard(index)
                if isinstance(item, HeadwayError):
                    failures.append(item)
                    latest.pop(index, None)
                behind = [latest[key] for key in running if key in latest and not latest[key].HasField("scene")]
                if behind:
                    yield min(behind, key=_progress)
            _raise_what_counts(failures, len(members))
            yield max(latest.values(), key=_elapsed_ms)
        finally:
            await _end(tasks)

    async def unload(self, raw: bytes, budget: Budget) -> splat_pb2.UnloadSceneResponse:
        """Raises `NotFound` when no worker has the scene, and any other error of a worker when all have answered."""
        _read(splat_pb2.UnloadSceneRequest, raw)
        members = self._members()
        outcomes = await asyncio.gather(*(_outcome(self._unload_at(member, raw, budget)) for member in members))
        _raise_what_counts([outcome for outcome in outcomes if outcome is not None], len(members))
        return splat_pb2.UnloadSceneResponse()

    def _members(self) -> list[Member]:
        views = [view for view in self._pool.views() if view.description.kind == common_pb2.KIND_SPLAT]
        members = [member for view in views if (member := self._pool.member(view)) is not None]
        if not members:
            raise no_worker(kind_name(common_pb2.KIND_SPLAT))
        return members

    async def _follow(
        self, index: int, member: Member, raw: bytes, budget: Budget, news: "asyncio.Queue[_News]"
    ) -> None:
        async def load() -> None:
            stream: Any = member.channel.unary_stream
            call = stream(_LOAD, response_deserializer=splat_pb2.LoadSceneResponse.FromString)
            async for message in call(raw, **onward(budget, self._clock(), _identity(member)).kwargs()):
                news.put_nowait((index, message))
            await _describe(member)

        news.put_nowait((index, await _outcome(load())))

    async def _unload_at(self, member: Member, raw: bytes, budget: Budget) -> None:
        unary: Any = member.channel.unary_unary
        await unary(_UNLOAD)(raw, **onward(budget, self._clock(), _identity(member)).kwargs())
        await _describe(member)


def _identity(member: Member) -> Metadata:
    return member.identity.metadata(ROUTER)  # whether the caller may was asked here; workers trust routers


async def _describe(member: Member) -> None:
    # A worker that fails just now is lost by its own reports; what was asked for was done.
    with suppress(grpc.aio.AioRpcError, BadReport):
        await member.describe()


async def _outcome(work: Awaitable[None]) -> HeadwayError | None:
    """What went wrong, if anything did."""
    try:
        await work
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    except HeadwayError as error:
        return error
    return None


def _raise_what_counts(failures: Sequence[HeadwayError], asked: int) -> None:
    """That a worker does not know the scene counts only when none does."""
    grave = [failure for failure in failures if failure.reason != errors_pb2.ERROR_REASON_NOT_FOUND]
    if grave or len(failures) == asked:
        raise (grave or list(failures))[0]


def _read(kind: type[M], raw: bytes) -> M:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise BadInput("request", f"is not a {kind.DESCRIPTOR.full_name}") from error


async def _end(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _progress(message: splat_pb2.LoadSceneResponse) -> float:
    return message.progress


def _elapsed_ms(message: splat_pb2.LoadSceneResponse) -> int:
    return message.elapsed.ToMilliseconds()
