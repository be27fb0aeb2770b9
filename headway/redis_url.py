"""Addresses of Redis in settings."""

from typing import Annotated

from pydantic import AfterValidator
from redis.asyncio.connection import parse_url


def check_redis_url(value: str) -> str:
    """A URL that redis-py takes. Raises ValueError that says which schemes there are."""
    try:
        parse_url(value)
    except ValueError:
        raise ValueError("must be redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH") from None
    return value


RedisUrl = Annotated[str, AfterValidator(check_redis_url)]
