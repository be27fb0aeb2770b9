"""Who calls: an API key or a client certificate names the tenant; nothing that a caller fills in does."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from headway.config import ServiceConfig, WorkerConfig
from headway.errors import Unauthenticated
from headway.lease import HEADER, LeaseCheck, read_secret
from headway.watched import Watched
from headway.yaml_file import read_mapping

OPEN_TENANT = "default"
"""The one tenant of a service without API keys and client certificates."""

TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""What a tenant may be called, all of it."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BEARER = re.compile(r"[Bb]earer ([\x21-\x7e]{1,512})")


class KeyFileError(ValueError):
    """The file of API keys is not what it must be. Names the tenant; never shows what stands where a hash should."""


class KeyRing:
    """Which key is which tenant's. Keys are held as keyed hashes, so how long a look-up takes tells nothing of them."""

    def __init__(self, tenants: Mapping[str, Iterable[str]]) -> None:
        """`tenants`: to each tenant the SHA-256 digests of its keys, in lower-case hex. Raises `KeyFileError`."""
        self._secret = secrets.token_bytes(32)
        self._tenants: dict[bytes, str] = {}
        for tenant, digests in tenants.items():
            for digest in digests:
                self._add(tenant, digest)

    def tenant(self, key: str) -> str | None:
        """Whose key this is; None when it is nobody's."""
        return self._tenants.get(self._blind(hashlib.sha256(key.encode()).digest()))

    def _add(self, tenant: str, digest: str) -> None:
        blind = self._blind(bytes.fromhex(digest))
        if self._tenants.setdefault(blind, tenant) != tenant:
            raise KeyFileError(f"tenants {self._tenants[blind]} and {tenant} have a key in common")

    def _blind(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")


def load_keys(path: Path) -> KeyRing:
    """Reads a YAML file of `tenant: [sha256 of key, ...]`. Raises `KeyFileError`, or `YamlFileError` for the file."""
    entries = read_mapping(path)
    if not entries:
        raise KeyFileError(f"{path}: names no tenant")
    try:
        return KeyRing({tenant: _digests(tenant, listed) for tenant, listed in entries.items()})
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from None


def _digests(tenant: str, listed: object) -> list[str]:
    if not TENANT_NAME.fullmatch(tenant):
        raise KeyFileError(f"tenant {tenant[:64]!r}: must be 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit")
    if not isinstance(listed, list) or not listed:
        raise KeyFileError(f"tenant {tenant}: must have a list of one or more SHA-256 digests")
    for number, digest in enumerate(listed, 1):
        if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            raise KeyFileError(
                f"tenant {tenant}, entry {number}: not a SHA-256 digest of 64 lower-case hex digits; plain keys are "
                "refused; make one with: printf %s KEY | sha256sum"
            )
    return listed


class Keys(Protocol):
    """Knows tenants by their keys."""

    def tenant(self, key: str) -> str | None:
        """Whose key this is; None when it is nobody's."""


class KeyFile:
    """The keys of a file as it is now: a key that is added or taken away counts within a second or so."""

    def __init__(self, path: Path) -> None:
        """Raises as `load_keys`. A file that is wrong later is logged, and the keys that it had stay."""
        self._ring = Watched("api_keys", [path], lambda: load_keys(path))

    def tenant(self, key: str) -> str | None:
        """Whose key this is; None when it is nobody's."""
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
        leases = LeaseCheck(read_secret(secret)) if secret is not None else None
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
