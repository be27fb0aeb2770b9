"""Several streams as one, each item with the number of its stream."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def interleaved(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """The first item of every stream in order, once all have one, then the others as they come.

    Raises the first error of any. Closes every stream, however it is left; a slow reader slows them all.
    """
    try:
        firsts = [await anext(stream) for stream in streams]
        for numbered in enumerate(firsts):
            yield numbered
        async with aclosing(_alone(streams[0]) if len(streams) == 1 else _as_they_come(streams)) as rest:
            async for numbered in rest:
                yield numbered
    finally:
        for stream in streams:
            await stream.aclose()


async def _alone(stream: AsyncGenerator[T, None]) -> AsyncGenerator[tuple[int, T], None]:
    """Without a task for every item."""
    async for item in stream:
        yield 0, item


async def _as_they_come(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    waiting = {asyncio.create_task(_next(stream)): number for number, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                for item in task.result():
                    yield number, item
                    waiting[asyncio.create_task(_next(streams[number]))] = number
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _next(stream: AsyncGenerator[T, None]) -> tuple[T, ...]:
    """The next item, or none at the end."""
    async for item in stream:
        return (item,)
    return ()
