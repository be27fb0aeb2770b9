"""Clients of Redis, all alike. What they raise, and for how long to wait, is for who uses them to say."""

from typing import Any

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def redis_client(url: str, *, connections: int) -> aioredis.Redis:
    """Over a pool of at most so many connections, for whose turn callers wait; reconnects by itself.

    It has no limit of time: bound every call from outside. With a socket's timeout redis-py goes through
    `asyncio.wait_for`, which loses cancellations in Python 3.11.
    """
    # One retry at once: a connection that Redis closed while it lay idle is no failure.
    retry = Retry(NoBackoff(), 1)
    pool: Any = aioredis.BlockingConnectionPool.from_url(
        url, max_connections=connections, timeout=None, protocol=2, retry=retry, socket_timeout=None
    )
    return aioredis.Redis.from_pool(pool)
