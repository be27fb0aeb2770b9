"""Real servers over TLS whose certificates, and whose callers', are replaced while both run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from server_rig import serving

from headway.server import tenant_of_call
from headway.tls import CertificateError
from headway.upstream import Connection, UpstreamCredentials
from headway.v1 import router_pb2, router_pb2_grpc


class Folder:
    """Where one side's certificate, its key and the authority that it trusts lie."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key, self.ca = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
        folder.mkdir()

    def shows(self, pair: trustme.LeafCert) -> None:
        self.cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
        self.key.write_bytes(pair.private_key_pem.bytes())

    def trusts(self, *authorities: trustme.CA) -> None:
        self.ca.write_bytes(b"".join(authority.cert_pem.bytes() for authority in authorities))


async def tell_tenant(request: Any, context: Any) -> router_pb2.ListWorkersResponse:
    return router_pb2.ListWorkersResponse(workers=[router_pb2.WorkerEntry(detail=tenant_of_call.get())])


def caller(authority: trustme.CA, name: str) -> trustme.LeafCert:
    return authority.issue_cert("x@example.org", common_name=name)


@asynccontextmanager
async def followed(address: str, credentials: UpstreamCredentials) -> AsyncIterator[Connection]:
    connection = Connection(address, credentials)
    following = asyncio.create_task(connection.follow())
    try:
        yield connection
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await connection.close()


async def tenant(channel: grpc.aio.Channel) -> str:
    answer = await router_pb2_grpc.RouterStub(channel).ListWorkers(router_pb2.ListWorkersRequest(), timeout=20)
    return str(answer.workers[0].detail)


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Folder, Folder, trustme.CA]:
    authority = trustme.CA()
    server, client = Folder(tmp_path / "server"), Folder(tmp_path / "client")
    server.shows(authority.issue_cert("127.0.0.1"))
    client.shows(caller(authority, "before"))
    for side in (server, client):
        side.trusts(authority)
    return server, client, authority


def mutual(server: Folder) -> dict[str, Path]:
    return {"tls_cert": server.cert, "tls_key": server.key, "tls_client_ca": server.ca}


def shown_by(client: Folder) -> UpstreamCredentials:
    return UpstreamCredentials(ca=client.ca, cert=client.cert, key=client.key)


async def test_a_new_certificate_is_shown_and_calls_under_way_end_over_the_old_connection(sides: Any) -> None:
    server, client, authority = sides
    answer = asyncio.Event()

    async def slowly(request: Any, context: Any) -> Any:
        if request.SerializeToString():
            await answer.wait()
        return await tell_tenant(request, context)

    async with serving(slowly, **mutual(server)) as address, followed(address, shown_by(client)) as connection:
        old = connection.channel
        assert await tenant(old) == "before"
        unknown = b"\xfa\x3f\x03new"  # a field that this version does not know: here, to wait
        under_way = old.unary_unary("/headway.v1.Router/ListWorkers")(unknown, timeout=60)
        replaced = connection.replaced
        client.shows(caller(authority, "after"))
        await asyncio.wait_for(replaced.wait(), 60)
        assert connection.channel is not old
        assert await tenant(connection.channel) == "after"
        answer.set()
        assert b"before" in await under_way


async def test_both_sides_go_over_to_another_authority_one_after_the_other(sides: Any) -> None:
    server, client, old = sides
    new = trustme.CA()
    async with serving(tell_tenant, **mutual(server)) as address, followed(address, shown_by(client)) as connection:
        assert await tenant(connection.channel) == "before"
        for side in (server, client):
            side.trusts(old, new)
        server.shows(new.issue_cert("127.0.0.1"))
        client.shows(caller(new, "after"))
        async with asyncio.timeout(60):
            while await tenant(connection.channel) != "after":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for side in (server, client):
            side.trusts(new)
        await asyncio.wait_for(connection.replaced.wait(), 60)
        assert await tenant(connection.channel) == "after"


async def test_what_the_server_does_not_take_leaves_the_connection_that_stands(sides: Any, caplog: Any) -> None:
    server, client, authority = sides
    async with serving(tell_tenant, **mutual(server)) as address, followed(address, shown_by(client)) as connection:
        assert await tenant(connection.channel) == "before"
        client.shows(caller(trustme.CA(), "stranger"))
        async with asyncio.timeout(60):
            while "the one that stands goes on" not in caplog.text:
                assert await tenant(connection.channel) == "before"
        replaced = connection.replaced
        client.shows(caller(authority, "after"))
        await asyncio.wait_for(replaced.wait(), 60)
        assert await tenant(connection.channel) == "after"


async def test_half_a_rotation_is_not_taken_up(sides: Any, caplog: Any) -> None:
    server, client, authority = sides
    async with serving(tell_tenant, **mutual(server)) as address, followed(address, shown_by(client)) as connection:
        client.key.write_bytes(caller(authority, "after").private_key_pem.bytes())
        async with asyncio.timeout(60):
            while "are not a pair" not in caplog.text:
                assert await tenant(connection.channel) == "before"
    assert "what was read before stays" in caplog.text


def test_what_cannot_be_used_is_said_with_the_settings_name(sides: Any) -> None:
    _, client, authority = sides
    with pytest.raises(CertificateError, match=r"upstream_ca: .* holds no certificate"):
        UpstreamCredentials(ca=client.key)
    client.key.write_bytes(caller(authority, "other").private_key_pem.bytes())
    with pytest.raises(CertificateError, match=r"upstream_cert and upstream_key: .* are not a pair"):
        shown_by(client)


async def test_a_key_is_shown_as_its_file_is_and_needs_no_other_connection(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("one\n")
    credentials = UpstreamCredentials(api_key=key)
    assert credentials.metadata() == (("authorization", "Bearer one"),)
    key.write_text("another\n")
    async with asyncio.timeout(60):
        while credentials.metadata() != (("authorization", "Bearer another"),):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    connection = Connection("127.0.0.1:1", credentials)
    await connection.follow()  # nothing of it can change
    await connection.close()


async def test_old_connections_are_closed_when_no_call_can_be_under_way_any_more(sides: Any) -> None:
    server, client, authority = sides
    credentials = shown_by(client)
    async with serving(tell_tenant, **mutual(server)) as address:
        connection = Connection(address, credentials, longest_call_s=0.0)
        following = asyncio.create_task(connection.follow())
        old, replaced = connection.channel, connection.replaced
        client.shows(caller(authority, "after"))
        await asyncio.wait_for(replaced.wait(), 60)
        async with asyncio.timeout(60):
            while old.get_state() is not grpc.ChannelConnectivity.SHUTDOWN:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await connection.close()
