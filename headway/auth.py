"""Who calls: an API key or a client certificate names the tenant; nothing that a caller fills in does."""

import datetime
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headway.config import ServiceConfig, WorkerConfig
from headway.errors import Unauthenticated
from headway.lease import HEADER, LeaseCheck, Wall, follow_secrets
from headway.watched import Watched
from headway.yaml_file import read_mapping

log = logging.getLogger(__name__)

OPEN_TENANT = "default"
"""The one tenant of a service without API keys and client certificates."""

TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""What a tenant may be called, all of it."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BEARER = re.compile(r"[Bb]earer ([\x21-\x7e]{1,512})")


class KeyFileError(ValueError):
    """The file of API keys is not what it must be. Names the tenant; never shows what stands where a hash should."""


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key as a file lists it."""

    digest: str
    """SHA-256 of the key, in lower-case hex."""
    expires_s: float | None = None
    """From when on it is refused; seconds since 1970. None: never."""


class KeyRing:
    """Which key is which tenant's. Keys are held as keyed hashes, so how long a look-up takes tells nothing of them."""

    def __init__(self, tenants: Mapping[str, Iterable[ListedKey]], *, wall: Wall = time.time) -> None:
        """Raises `KeyFileError`."""
        self._secret, self._wall = secrets.token_bytes(32), wall
        self._owners: dict[bytes, tuple[str, float | None]] = {}
        for tenant, keys in tenants.items():
            for key in keys:
                self._add(tenant, key)

    def tenant(self, key: str) -> str | None:
        """Whose key this is; None when it is nobody's. Raises `Unauthenticated` for one that has expired."""
        tenant, expires_s = self._owners.get(self._blind(hashlib.sha256(key.encode()).digest()), (None, None))
        if expires_s is not None and self._wall() >= expires_s:
            raise Unauthenticated(
                f"the API key expired at {_shown(expires_s)}; ask the operators of this service for a new one",
                metadata={"expired": _shown(expires_s)},
            )
        return tenant

    def expired(self) -> dict[str, int]:
        """How many of each tenant's keys are refused by now; tenants without any are left out."""
        now_s, counts = self._wall(), dict[str, int]()
        for tenant, expires_s in self._owners.values():
            if expires_s is not None and now_s >= expires_s:
                counts[tenant] = counts.get(tenant, 0) + 1
        return counts

    def _add(self, tenant: str, key: ListedKey) -> None:
        blind = self._blind(bytes.fromhex(key.digest))
        owner, expires_s = self._owners.setdefault(blind, (tenant, key.expires_s))
        if owner != tenant:
            raise KeyFileError(f"tenants {owner} and {tenant} have a key in common")
        if expires_s != key.expires_s:
            raise KeyFileError(f"tenant {tenant}: a key is listed twice, and does not expire at the same time")

    def _blind(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")


def load_keys(path: Path, *, wall: Wall = time.time) -> KeyRing:
    """Reads a YAML file of `tenant: [key, ...]`; a key is its SHA-256, or `{sha256: ..., expires: 2027-01-31}`.

    Raises `KeyFileError`, or `YamlFileError` for the file. Blocks; logs which tenants have keys that expired.
    """
    entries = read_mapping(path)
    if not entries:
        raise KeyFileError(f"{path}: names no tenant")
    try:
        ring = KeyRing({tenant: _listed(tenant, listed) for tenant, listed in entries.items()}, wall=wall)
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from None
    for tenant, count in ring.expired().items():
        log.warning("api_keys: tenant %s has %d expired keys in %s", tenant, count, path)
    return ring


def _listed(tenant: str, listed: object) -> list[ListedKey]:
    if not TENANT_NAME.fullmatch(tenant):
        raise KeyFileError(f"tenant {tenant[:64]!r}: must be 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit")
    if not isinstance(listed, list) or not listed:
        raise KeyFileError(f"tenant {tenant}: must have a list of one or more SHA-256 digests")
    return [_key(f"tenant {tenant}, entry {number}", entry) for number, entry in enumerate(listed, 1)]


def _key(where: str, entry: object) -> ListedKey:
    if isinstance(entry, dict):
        if not entry.keys() <= {"sha256", "expires"} or "sha256" not in entry:
            raise KeyFileError(f"{where}: must have sha256, may have expires, and nothing else")
        expires = entry.get("expires")
        return ListedKey(_digest(where, entry["sha256"]), None if expires is None else _expiry(where, expires))
    return ListedKey(_digest(where, entry))


def _digest(where: str, digest: object) -> str:
    if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise KeyFileError(
            f"{where}: not a SHA-256 digest of 64 lower-case hex digits; plain keys are refused; make one with: "
            "printf %s KEY | sha256sum"
        )
    return digest


def _expiry(where: str, value: object) -> float:
    """Seconds since 1970. A day begins in UTC; a time must name its zone, or it would mean another one elsewhere."""
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            raise KeyFileError(f"{where}: expires needs a zone: 2027-01-31T12:00:00Z")
        return value.timestamp()
    if isinstance(value, datetime.date):
        return datetime.datetime.combine(value, datetime.time(), datetime.UTC).timestamp()
    raise KeyFileError(f"{where}: expires must be a day or a time: 2027-01-31 or 2027-01-31T12:00:00Z")


def _shown(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Keys(Protocol):
    """Knows tenants by their keys."""

    def tenant(self, key: str) -> str | None:
        """Whose key this is; None when it is nobody's. Raises `Unauthenticated` for one that has expired."""


class KeyFile:
    """The keys of a file as it is now: a key that is added or taken away counts within a second or so."""

    def __init__(self, path: Path) -> None:
        """Raises as `load_keys`. A file that is wrong later is logged, and the keys that it had stay."""
        self._ring = Watched("api_keys", [path], lambda: load_keys(path))

    def tenant(self, key: str) -> str | None:
        """Whose key this is; None when it is nobody's. Raises `Unauthenticated` for one that has expired."""
        return self._ring.value().tenant(key)


class Authenticator:
    """Names the tenant of a call from its metadata and its connection."""

    worker_id = ""
    """Who takes leases here; set before calls are taken."""

    def __init__(
        self,
        keys: Keys | None = None,
        *,
        mutual_tls: bool = False,
        leases: LeaseCheck | None = None,
        operators: Collection[str] = (),
    ) -> None:
        """`mutual_tls`: connections carry a certificate that TLS has verified; `operators`: see `may_operate`."""
        self._keys, self._mutual_tls, self._leases = keys, mutual_tls, leases
        self._operators = frozenset(operators)

    @classmethod
    def from_config(cls, config: ServiceConfig) -> "Authenticator":
        """Reads the files of keys and secret, if there are such. Raises OSError, `KeyFileError` or `YamlFileError`."""
        keys = KeyFile(config.api_keys) if config.api_keys is not None else None
        secret = config.lease_secret if isinstance(config, WorkerConfig) else None
        leases = LeaseCheck(follow_secrets(secret)) if secret is not None else None
        return cls(keys, mutual_tls=config.tls_client_ca is not None, leases=leases, operators=config.operators)

    def may_operate(self, tenant: str) -> bool:
        """Whether a tenant may do what concerns others, such as a drain. Where nobody is identified everybody may."""
        return self._open or tenant in self._operators

    @property
    def _open(self) -> bool:
        return self._keys is None and not self._mutual_tls and self._leases is None

    def tenant(self, metadata: Iterable[tuple[str, str | bytes]], auth_context: Mapping[str, Iterable[bytes]]) -> str:
        """The caller's tenant. A lease decides before a key, a key before a certificate. Raises `Unauthenticated`.

        `auth_context` is gRPC's of the connection. Without keys, mutual TLS and leases every caller is `OPEN_TENANT`.
        """
        if self._open:
            return OPEN_TENANT
        if self._leases is not None:
            leases = [value for name, value in metadata if name == HEADER]
            if leases:
                return _by_lease(self._leases, leases, self.worker_id)
        given = [value for name, value in metadata if name == "authorization"]
        if self._keys is not None and given:
            return _by_key(self._keys, given)
        if self._mutual_tls:
            return _by_certificate(tuple(auth_context.get("x509_common_name", ())))
        if self._keys is None:
            raise Unauthenticated("no lease; call a router of this mesh, or ask it with Pick")
        raise Unauthenticated("no API key; send metadata authorization: Bearer KEY")


def _by_key(keys: Keys, given: list[str | bytes]) -> str:
    match = _BEARER.fullmatch(given[0]) if len(given) == 1 and isinstance(given[0], str) else None
    if match is None:
        raise Unauthenticated("authorization must be given once, as: Bearer KEY")
    tenant = keys.tenant(match[1])
    if tenant is None:
        raise Unauthenticated("the API key is not known")
    return tenant


def _by_lease(leases: LeaseCheck, given: list[str | bytes], worker_id: str) -> str:
    if len(given) != 1 or not isinstance(given[0], bytes):
        raise Unauthenticated(f"{HEADER} must be given once")
    return leases.tenant(given[0], worker_id)


def _by_certificate(names: tuple[bytes, ...]) -> str:
    name = names[0].decode("utf-8", "replace") if len(names) == 1 else ""
    if not TENANT_NAME.fullmatch(name):
        raise Unauthenticated("the client certificate's common name is not a tenant's name")
    return name
