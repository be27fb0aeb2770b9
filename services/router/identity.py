"""How the router tells workers who it is, and on whose behalf it calls."""

from headway.channels import Credentials
from headway.lease import HEADER, LeaseSigner
from headway.telemetry import Metadata

ROUTER = "router"
"""Whose the router's own calls are, such as watching a worker."""


class Identity:
    """The router's key, where it has one, and a lease for every call, where the mesh has a secret."""

    def __init__(self, credentials: Credentials, signer: LeaseSigner | None) -> None:
        self._key, self._signer = credentials.metadata(), signer

    def metadata(self, tenant: str) -> Metadata:
        """For one call on behalf of `tenant`."""
        if self._signer is None:
            return self._key
        return (*self._key, (HEADER, self._signer.sign(tenant)))

    def picked(self, tenant: str, worker_ids: list[str]) -> Metadata:
        """For a call on behalf of `tenant` that a proxy makes to one of these workers, with what `metadata` shows."""
        lease = self.lease(tenant, worker_ids)
        return (*self._key, (HEADER, lease)) if lease else self._key

    def lease(self, tenant: str, worker_ids: list[str]) -> bytes:
        """For a client that calls one of these workers itself; empty where the mesh has no secret."""
        return b"" if self._signer is None else self._signer.sign(tenant, worker_ids)
