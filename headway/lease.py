"""A lease: a router's signed word that a tenant's call may be taken by a worker.

Routers and workers of a mesh share a secret. The router signs one for every call that it passes on, so that workers
know the tenant, and one for every `Pick`, so that a client can stream straight from a worker. The bytes are a
`LeaseClaims` message and its HMAC-SHA256. A lease is good once at each worker, and for seconds: hosts' clocks must
agree that far.
"""

import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from headway.errors import Unauthenticated
from headway.prefix import MIN_SECRET_BYTES
from headway.v1 import router_pb2

HEADER = "headway-lease-bin"
TTL_S = 10.0
_MAC_BYTES = 32
_MOST_BYTES = 2048
_MOST_REMEMBERED = 1 << 16

Wall = Callable[[], float]
"""Seconds since 1970; leases pass between hosts."""


def read_secret(path: Path) -> bytes:
    """The secret in a file. Raises OSError, and ValueError where it is short."""
    secret = path.read_bytes().strip()
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"{path} has {len(secret)} bytes; at least {MIN_SECRET_BYTES}")
    return secret


class LeaseSigner:
    """A router's side."""

    def __init__(self, secret: bytes, *, wall: Wall = time.time) -> None:
        self._secret, self._wall = secret, wall

    def sign(self, tenant: str, worker_ids: Sequence[str] = (), *, ttl_s: float = TTL_S) -> bytes:
        """A lease for a tenant's call; without `worker_ids` any worker takes it."""
        claims = router_pb2.LeaseClaims(
            tenant=tenant,
            worker_ids=worker_ids,
            expires_unix_ms=round((self._wall() + ttl_s) * 1000),
            nonce=secrets.token_bytes(16),
        ).SerializeToString()
        return claims + hmac.digest(self._secret, claims, "sha256")


class LeaseCheck:
    """A worker's side. Not safe to share between threads."""

    def __init__(self, secret: bytes, *, wall: Wall = time.time) -> None:
        self._secret, self._wall = secret, wall
        self._used: dict[bytes, int] = {}  # nonce to expiry, in the order in which they came

    def tenant(self, lease: bytes, worker_id: str) -> str:
        """Whose call it is. Remembers the lease. Raises `Unauthenticated`."""
        if not _MAC_BYTES < len(lease) <= _MOST_BYTES:
            raise Unauthenticated(f"{HEADER}: {len(lease)} bytes; {_MAC_BYTES + 1} to {_MOST_BYTES}")
        signed, mac = lease[:-_MAC_BYTES], lease[-_MAC_BYTES:]
        if not hmac.compare_digest(hmac.digest(self._secret, signed, "sha256"), mac):
            raise Unauthenticated(f"{HEADER}: not signed by a router of this mesh")
        try:
            claims = router_pb2.LeaseClaims.FromString(signed)
        except DecodeError as error:
            raise Unauthenticated(f"{HEADER}: not a lease") from error
        if claims.worker_ids and worker_id not in claims.worker_ids:
            raise Unauthenticated(f"{HEADER}: it is for another worker")
        self._use(claims)
        return claims.tenant

    def _use(self, claims: router_pb2.LeaseClaims) -> None:
        now_ms = self._wall() * 1000
        if claims.expires_unix_ms <= now_ms:
            raise Unauthenticated(f"{HEADER}: it ran out {now_ms - claims.expires_unix_ms:.0f} ms ago")
        self._forget(now_ms)
        if claims.nonce in self._used:
            raise Unauthenticated(f"{HEADER}: it was used before")
        if len(self._used) >= _MOST_REMEMBERED:
            raise Unauthenticated(f"{HEADER}: more than {_MOST_REMEMBERED} leases are in use")
        self._used[claims.nonce] = claims.expires_unix_ms

    def _forget(self, now_ms: float) -> None:
        """Leases live about equally long, so those that ran out come first."""
        while self._used:
            nonce, expires_ms = next(iter(self._used.items()))
            if expires_ms > now_ms:
                return
            del self._used[nonce]
