"""A lease: a router's signed word that a tenant's call may be taken by a worker.

Routers and workers of a mesh share a secret. The router signs one for every call that it passes on, so that workers
know the tenant, and one for every `Pick`, so that a client can stream straight from a worker. The bytes are a
`LeaseClaims` message and its HMAC-SHA256. A lease is good once at each worker, and for seconds: hosts' clocks must
agree that far. Of several secrets the first signs and all are good, so that one can take another's place.
"""

import hmac
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from secrets import token_bytes

from google.protobuf.message import DecodeError

from headway.errors import Unauthenticated
from headway.prefix import MIN_SECRET_BYTES
from headway.v1 import router_pb2
from headway.watched import Watched

HEADER = "headway-lease-bin"
TTL_S = 10.0
_MAC_BYTES = 32
_MOST_BYTES = 2048
_MOST_REMEMBERED = 1 << 16

_MOST_SECRETS = 4

Wall = Callable[[], float]
"""Seconds since 1970; leases pass between hosts."""
Secrets = Callable[[], Sequence[bytes]]
"""The mesh's secrets as they are now, at least one: the first signs."""


def read_secret(path: Path) -> bytes:
    """The secret in a file. Raises OSError, and ValueError where it is short."""
    return _checked(path.read_bytes().strip(), str(path))


def read_secrets(path: Path) -> tuple[bytes, ...]:
    """The secrets in a file: a line of text each, or all of a file that is not text. Raises as `read_secret`."""
    whole = path.read_bytes().strip()
    if not _is_text(whole):
        return (_checked(whole, str(path)),)
    lines = [line.strip() for line in whole.splitlines() if line.strip()]
    if len(lines) > _MOST_SECRETS:
        raise ValueError(f"{path} has {len(lines)} lines; at most {_MOST_SECRETS}")
    numbered = [_checked(line, f"{path}, line {number},") for number, line in enumerate(lines, 1)]
    return tuple(numbered) or (_checked(whole, str(path)),)


def follow_secrets(path: Path) -> Secrets:
    """The secrets in a file as it is now. Raises as `read_secret`; what is wrong later is logged and not taken up."""
    return Watched("lease_secret", [path], lambda: read_secrets(path)).value


def first_of(secrets: Secrets | None) -> bytes | None:
    """The secret that signs now, and that names tenants' prompts; None for a mesh without."""
    return None if secrets is None else secrets()[0]


def _is_text(content: bytes) -> bool:
    return all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in content)


def _checked(secret: bytes, where: str) -> bytes:
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"{where} has {len(secret)} bytes; at least {MIN_SECRET_BYTES}")
    return secret


class LeaseSigner:
    """A router's side."""

    def __init__(self, secrets: Secrets, *, wall: Wall = time.time) -> None:
        self._secrets, self._wall = secrets, wall

    def sign(self, tenant: str, worker_ids: Sequence[str] = (), *, ttl_s: float = TTL_S) -> bytes:
        """A lease for a tenant's call; without `worker_ids` any worker takes it."""
        claims = router_pb2.LeaseClaims(
            tenant=tenant,
            worker_ids=worker_ids,
            expires_unix_ms=round((self._wall() + ttl_s) * 1000),
            nonce=token_bytes(16),
        ).SerializeToString()
        return claims + hmac.digest(self._secrets()[0], claims, "sha256")


class LeaseCheck:
    """A worker's side. Not safe to share between threads."""

    def __init__(self, secrets: Secrets, *, wall: Wall = time.time) -> None:
        self._secrets, self._wall = secrets, wall
        self._used: dict[bytes, int] = {}  # nonce to expiry, in the order in which they came

    def tenant(self, lease: bytes, worker_id: str) -> str:
        """Whose call it is. Remembers the lease. Raises `Unauthenticated`."""
        if not _MAC_BYTES < len(lease) <= _MOST_BYTES:
            raise Unauthenticated(f"{HEADER}: {len(lease)} bytes; {_MAC_BYTES + 1} to {_MOST_BYTES}")
        signed, mac = lease[:-_MAC_BYTES], lease[-_MAC_BYTES:]
        if not any(hmac.compare_digest(hmac.digest(secret, signed, "sha256"), mac) for secret in self._secrets()):
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
