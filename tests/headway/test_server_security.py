"""A real server over loopback with TLS, mutual TLS and API keys: who is served, who is refused, and as which tenant."""

import asyncio
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
from headway.cli.show import error_lines
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


async def test_who_cannot_connect_for_tls_is_told_what_to_change(files: Files, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    pair = {"tls_cert": files.cert, "tls_key": files.key}

    async def hint(settings: dict[str, Any], credentials: Credentials) -> str:
        async with serving(tell_tenant, **settings) as address:
            return error_lines(await refused(address, credentials), address)[-1]

    assert "wants its authority in --ca" in await hint(pair, Credentials())
    assert "is not from the authority in --ca" in await hint(pair, read_credentials(ca=stranger))
    assert "does not speak TLS" in await hint({}, read_credentials(ca=files.ca))


async def test_a_key_names_the_tenant_and_a_wrong_or_missing_one_is_refused(tmp_path: Path) -> None:
    async with serving(tell_tenant, api_keys=keys(tmp_path)) as address:
        assert await tenant(address, Credentials(api_key=KEY)) == "painters"
        for credentials in (Credentials(api_key="wrong"), Credentials()):
            error = await refused(address, credentials)
            assert (error.status, error.reason_name) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
            assert KEY not in error.message


async def test_an_expired_key_is_refused_on_the_wire_with_when_it_expired(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    current, old, new = (hashlib.sha256(key.encode()).hexdigest() for key in (KEY, "old", "new"))
    expiring = [f"{{sha256: {current}, expires: 2999-12-31}}", f"{{sha256: {old}, expires: 2020-01-31}}"]
    path.write_text(f"painters: [{', '.join([*expiring, new])}]\n")
    async with serving(tell_tenant, api_keys=path) as address:
        assert await tenant(address, Credentials(api_key=KEY)) == "painters"
        assert await tenant(address, Credentials(api_key="new")) == "painters"
        error = await refused(address, Credentials(api_key="old"))
    assert (error.status, error.reason_name) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert error.metadata == {"expired": "2020-01-31T00:00:00Z"}
    assert "expired at 2020-01-31T00:00:00Z" in error.message


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


async def until_served(address: str, credentials: Credentials) -> str:
    """The tenant, once the server lets the caller in: it looks at its files now and then."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await tenant(address, credentials)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)


def write_pair(pair: trustme.LeafCert, cert: Path, key: Path) -> None:
    cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    key.write_bytes(pair.private_key_pem.bytes())


async def test_certificate_and_authority_are_replaced_without_a_restart(files: Files, tmp_path: Path) -> None:
    cert, key, authority = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    for path, source in ((cert, files.cert), (key, files.key), (authority, files.ca)):
        path.write_bytes(source.read_bytes())
    other = trustme.CA()
    stranger = other.issue_cert("x@example.org", common_name="sculptors")
    theirs = Credentials(
        ca=other.cert_pem.bytes(), cert=stranger.cert_chain_pems[0].bytes(), key=stranger.private_key_pem.bytes()
    )
    ours = read_credentials(ca=files.ca, cert=files.client_cert, key=files.client_key)
    async with serving(tell_tenant, tls_cert=cert, tls_key=key, tls_client_ca=authority) as address:
        assert await tenant(address, ours) == "painters"
        assert (await refused(address, theirs)).status is grpc.StatusCode.UNAVAILABLE
        async with open_channel(address, ours) as standing:
            stub = router_pb2_grpc.RouterStub(standing)
            await stub.ListWorkers(router_pb2.ListWorkersRequest(), timeout=5)
            write_pair(other.issue_cert("127.0.0.1"), cert, key)
            authority.write_bytes(other.cert_pem.bytes())
            assert await until_served(address, theirs) == "sculptors"
            assert (await refused(address, ours)).status is grpc.StatusCode.UNAVAILABLE
            await stub.ListWorkers(router_pb2.ListWorkersRequest(), timeout=5)  # what stood before stands


async def test_a_pair_that_does_not_match_is_not_taken_up(files: Files, tmp_path: Path, caplog: Any) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(files.cert.read_bytes())
    key.write_bytes(files.key.read_bytes())
    ours = read_credentials(ca=files.ca)
    async with serving(tell_tenant, tls_cert=cert, tls_key=key) as address:
        key.write_bytes(files.client_key.read_bytes())
        async with asyncio.timeout(60):
            while "are not a pair" not in caplog.text:
                assert await tenant(address, ours) == "default"
    assert "what was read before stays" in caplog.text


async def test_a_pair_that_does_not_match_stops_the_start(files: Files) -> None:
    with pytest.raises(StartError, match=r"tls_cert and tls_key: .* are not a pair"):
        async with serving(tell_tenant, tls_cert=files.cert, tls_key=files.client_key):
            pass


async def test_an_authority_that_is_none_stops_the_start(files: Files) -> None:
    with pytest.raises(StartError, match=r"tls_client_ca: .* holds no certificate"):
        async with serving(tell_tenant, tls_cert=files.cert, tls_key=files.key, tls_client_ca=files.key):
            pass


async def test_keys_are_added_and_taken_away_without_a_restart(tmp_path: Path, caplog: Any) -> None:
    path, other = keys(tmp_path), Credentials(api_key="another-key")
    async with serving(tell_tenant, api_keys=path) as address:
        assert (await refused(address, other)).status is grpc.StatusCode.UNAUTHENTICATED
        path.write_text("painters: [what is this]\n")
        async with asyncio.timeout(60):
            while "what was read before stays" not in caplog.text:
                assert await tenant(address, Credentials(api_key=KEY)) == "painters"
        path.write_text(f"sculptors: [{hashlib.sha256(b'another-key').hexdigest()}]\n")
        assert await until_served(address, other) == "sculptors"
        assert (await refused(address, Credentials(api_key=KEY))).status is grpc.StatusCode.UNAUTHENTICATED


async def debug_services(address: str) -> set[str]:
    """Which of reflection and channelz answer."""
    found = set()
    async with open_channel(address) as channel:
        for method in (
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "grpc.channelz.v1.Channelz/GetServers",
        ):
            try:
                await channel.unary_unary(f"/{method}")(b"", timeout=5)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    continue
            found.add(method.partition("/")[0].rpartition(".")[2])
    return found


@pytest.mark.parametrize(
    ("settings", "served"),
    [
        ({"listen": "127.0.0.1:0"}, True),
        ({"listen": "localhost:0"}, True),
        ({"listen": "0.0.0.0:0"}, False),
        ({"listen": "[::]:0"}, False),
        ({"listen": "0.0.0.0:0", "debug_services": "always"}, True),
        ({"listen": "127.0.0.1:0", "debug_services": "never"}, False),
    ],
)
async def test_reflection_and_channelz_are_for_the_local_run(settings: dict[str, str], served: bool) -> None:
    async with serving(tell_tenant, **settings) as address:
        assert await debug_services(address) == ({"ServerReflection", "Channelz"} if served else set())
        assert await is_ready(GrpcReady(address))


async def test_messages_and_metadata_beyond_the_limits_are_refused() -> None:
    async with serving(tell_tenant, max_message_mib=1, max_metadata_kib=4) as address, open_channel(address) as channel:
        call = channel.unary_unary("/headway.v1.Router/ListWorkers")
        assert await call(b"", timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call(b"\x0a\xff\xff\x7f" + bytes(2 << 20), timeout=5)
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call(b"", timeout=5, metadata=(("x-much", "x" * 32_768),))
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
