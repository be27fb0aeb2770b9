"""How the router tells workers who it is, and on whose behalf it calls."""

from headway.lease import HEADER, LeaseSigner
from headway.tracing import Metadata
from headway.upstream import UpstreamCredentials

ROUTER = "router"
"""Whose the router's own calls are, such as watching a worker."""


class Identity:
    """The router's key, where it has one, and a lease for every call, where the mesh has a secret."""

    def __init__(self, credentials: UpstreamCredentials, signer: LeaseSigner | None) -> None:
        self._credentials, self._signer = credentials, signer

    def metadata(self, tenant: str) -> Metadata:
        """For one call on behalf of `tenant`."""
        if self._signer is None:
            return self._credentials.metadata()
        return (*self._credentials.metadata(), (HEADER, self._signer.sign(tenant)))

    def picked(self, tenant: str, worker_ids: list[str]) -> Metadata:
        """For a call on behalf of `tenant` that a proxy makes to one of these workers, with what `metadata` shows."""
        lease = self.lease(tenant, worker_ids)
        own = self._credentials.metadata()
        return (*own, (HEADER, lease)) if lease else own

    def lease(self, tenant: str, worker_ids: list[str]) -> bytes:
        """For a client that calls one of these workers itself; empty where the mesh has no secret."""
        return b"" if self._signer is None else self._signer.sign(tenant, worker_ids)
