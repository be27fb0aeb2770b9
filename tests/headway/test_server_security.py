"""A real server over loopback with TLS, mutual TLS and API keys: who is served, who is refused, and as which tenant."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from server_rig import serving

from headway.channels import Credentials, open_channel, read_credentials
from headway.cli.readiness import is_ready
from headway.cli.topology import GrpcReady
from headway.errors import RemoteError, from_rpc_error
from headway.server import StartError, tenant_of_call
from headway.v1 import router_pb2, router_pb2_grpc

KEY = "correct-horse-battery-staple"


@dataclass(frozen=True)
class Files:
    """A certificate authority, the server's pair and a client's, as PEM files."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    client = authority.issue_cert("painters@example.org", common_name="painters")
    made = Files(*(folder / name for name in ("ca.pem", "cert.pem", "key.pem", "client.pem", "client.key")))
    authority.cert_pem.write_to_path(str(made.ca))
    for pair, cert, key in ((server, made.cert, made.key), (client, made.client_cert, made.client_key)):
        cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
        pair.private_key_pem.write_to_path(str(key))
    return made


async def tell_tenant(request: Any, context: Any) -> router_pb2.ListWorkersResponse:
    entry = router_pb2.WorkerEntry(detail=tenant_of_call.get())
    return router_pb2.ListWorkersResponse(workers=[entry])


async def tenant(address: str, credentials: Credentials) -> str:
    async with open_channel(address, credentials) as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        answer = await stub.ListWorkers(
            router_pb2.ListWorkersRequest(), timeout=5, metadata=credentials.metadata(), wait_for_ready=False
        )
    return str(answer.workers[0].detail)


async def refused(address: str, credentials: Credentials) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await tenant(address, credentials)
    return from_rpc_error(failure.value)


def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(f"painters: [{hashlib.sha256(KEY.encode()).hexdigest()}]\n")
    return path


async def test_tls_serves_who_trusts_the_authority_and_nobody_in_the_clear(files: Files) -> None:
    async with serving(tell_tenant, tls_cert=files.cert, tls_key=files.key) as address:
        assert await tenant(address, read_credentials(ca=files.ca)) == "default"
        assert (await refused(address, Credentials())).status is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_names_the_tenant_by_the_clients_certificate(files: Files) -> None:
    async with serving(tell_tenant, tls_cert=files.cert, tls_key=files.key, tls_client_ca=files.ca) as address:
        with_pair = read_credentials(ca=files.ca, cert=files.client_cert, key=files.client_key)
        assert await tenant(address, with_pair) == "painters"
        assert (await refused(address, read_credentials(ca=files.ca))).status is grpc.StatusCode.UNAVAILABLE


async def test_a_key_names_the_tenant_and_a_wrong_or_missing_one_is_refused(tmp_path: Path) -> None:
    async with serving(tell_tenant, api_keys=keys(tmp_path)) as address:
        assert await tenant(address, Credentials(api_key=KEY)) == "painters"
        for credentials in (Credentials(api_key="wrong"), Credentials()):
            error = await refused(address, credentials)
            assert (error.status, error.reason_name) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
            assert KEY not in error.message


async def test_a_key_file_that_is_none_stops_the_start_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("painters: [not-a-digest]\n")
    with pytest.raises(StartError, match=r"api_keys.*painters"):
        async with serving(tell_tenant, api_keys=path):
            pass


async def test_a_probe_shows_a_certificate_and_may_name_the_one_it_expects(files: Files) -> None:
    settings = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.ca}
    ours = read_credentials(ca=files.ca, cert=files.client_cert, key=files.client_key)
    async with serving(tell_tenant, **settings) as address:
        assert await is_ready(GrpcReady(address, ours))
        assert await is_ready(GrpcReady(address, ours, server_name="localhost"))
        assert not await is_ready(GrpcReady(address, ours, server_name="elsewhere"))
        assert not await is_ready(GrpcReady(address, read_credentials(ca=files.ca)))
        assert not await is_ready(GrpcReady(address))
