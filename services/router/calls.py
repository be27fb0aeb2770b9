"""The calls in flight, and the end of taking new ones."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from headway.errors import Draining


class Calls:
    """Counts calls. After `drain` began, new ones are refused."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around one call. Raises `Draining`."""
        if self._draining:
            raise Draining("the router drains and takes nothing new", retry_after_s=1.0)
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def drain(self) -> int:
        """Takes nothing new and waits for what is in flight. Returns how many calls that were."""
        self._draining = True
        pending = self._in_flight
        await self._idle.wait()
        return pending
