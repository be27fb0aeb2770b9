"""Settings of the prefix cache."""

from typing import Self

from pydantic import model_validator

from headway.config import Address, ServiceConfig, setting
from headway.redis_url import RedisUrl


class PrefixCacheConfig(ServiceConfig):
    """Keeps results of the mesh in Redis."""

    listen: Address = setting(
        "127.0.0.1:50054", "address to serve gRPC on; port 0 picks a free one", group="Serving", unit="HOST:PORT"
    )
    return_reserve_ms: float = setting(
        1.0, "part of every budget kept back to return the answer",
        group="Serving", unit="MS", ge=0, le=1000, allow_inf_nan=False,
    )  # fmt: skip

    redis: RedisUrl = setting(
        "redis://127.0.0.1:6379/0", "store to keep entries in, also unix:///PATH", group="Store", unit="URL"
    )
    redis_timeout_ms: float = setting(
        500.0, "longest wait for Redis in one call; a call with less budget waits less",
        group="Store", unit="MS", gt=0, le=60_000, allow_inf_nan=False,
    )  # fmt: skip
    redis_connections: int = setting(32, "most connections to Redis", group="Store", unit="N", ge=1, le=1024)

    result_ttl_s: float = setting(
        3600.0, "how long a result is kept whose writer does not say",
        group="Results", unit="SECONDS", ge=1, le=2_592_000, allow_inf_nan=False,
    )  # fmt: skip
    max_result_ttl_s: float = setting(
        86_400.0, "longest that a writer may ask for",
        group="Results", unit="SECONDS", ge=1, le=2_592_000, allow_inf_nan=False,
    )  # fmt: skip
    max_result_kib: int = setting(
        8192, "largest result, all its messages together", group="Results", unit="KIB", ge=1, le=262_144
    )

    max_block_ttl_s: float = setting(
        86_400.0, "longest that a worker may keep a prefix block",
        group="Prefix blocks", unit="SECONDS", ge=1, le=2_592_000, allow_inf_nan=False,
    )  # fmt: skip

    @model_validator(mode="after")
    def _ttls_agree(self) -> Self:
        if self.result_ttl_s > self.max_result_ttl_s:
            raise ValueError(f"result_ttl_s is at most max_result_ttl_s ({self.max_result_ttl_s:g} s)")
        return self
