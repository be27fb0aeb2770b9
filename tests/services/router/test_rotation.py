"""A router and a worker, each a process, whose secrets and certificates are replaced under load: no call fails."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import trustme

from headway.cli.up import with_free_port
from headway.requests import text_request
from headway.v1 import text_pb2_grpc

OLD, NEW = "the old secret of the mesh", "the new secret of the mesh"
BOUND_S = 60.0


class Part:
    """A process, and the files that it reads."""

    def __init__(self, folder: Path) -> None:
        self.log, self.secret = folder / "log", folder / "secret"
        self.cert, self.key, self.ca = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
        folder.mkdir()

    def shows(self, pair: trustme.LeafCert) -> None:
        self.cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
        self.key.write_bytes(pair.private_key_pem.bytes())

    def trusts(self, *authorities: trustme.CA) -> None:
        self.ca.write_bytes(b"".join(authority.cert_pem.bytes() for authority in authorities))

    @asynccontextmanager
    async def running(self, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
        with self.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=log,
                env={**os.environ, "PYTHONPATH": os.getcwd()},
            )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            await process.communicate()

    async def says(self, what: str, times: int = 1) -> None:
        """Waits until the log has it so often."""
        async with asyncio.timeout(BOUND_S):
            while (await asyncio.to_thread(self.log.read_text)).count(what) < times:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


class Load:
    """One call after another; stops at the first that fails."""

    def __init__(self, address: str) -> None:
        self._address, self.answers = address, 0

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = text_pb2_grpc.TextGenerationStub(channel)
            while True:
                messages = [message async for message in stub.Generate(text_request("abc"), timeout=20)]
                assert [token for message in messages for token in message.chunk.token_ids] == [3, 6, 9, 12]
                self.answers += 1


async def rotate_secret(parts: list[Part]) -> None:
    for times, lines in enumerate(([OLD, NEW], [NEW, OLD], [NEW]), 1):
        for part in parts:
            part.secret.write_text("\n".join(lines))
        for part in parts:
            await part.says("lease_secret: read anew", times)


async def rotate_authority(router: Part, worker: Part, old: trustme.CA) -> None:
    new = trustme.CA()
    for part in (router, worker):
        part.trusts(old, new)
    await router.says("is called with new certificates", 1)
    worker.shows(new.issue_cert("127.0.0.1"))
    router.shows(new.issue_cert("x@example.org", common_name="router"))
    await router.says("is called with new certificates", 2)
    for part in (router, worker):
        part.trusts(new)
    await router.says("is called with new certificates", 3)


async def test_secrets_and_certificates_are_replaced_under_load_and_no_call_fails(tmp_path: Path) -> None:
    router, worker, authority = Part(tmp_path / "router"), Part(tmp_path / "worker"), trustme.CA()
    worker.shows(authority.issue_cert("127.0.0.1"))
    router.shows(authority.issue_cert("x@example.org", common_name="router"))
    for part in (router, worker):
        part.trusts(authority)
        part.secret.write_text(OLD)
    settings: dict[str, Any] = {
        "tls_cert": worker.cert, "tls_key": worker.key, "tls_client_ca": worker.ca, "lease_secret": worker.secret,
    }  # fmt: skip
    script = str(Path(__file__).with_name("sum_worker.py"))
    async with worker.running(script, "text", "", json.dumps(settings, default=str)) as process:
        assert process.stdout is not None
        address, listen = f"127.0.0.1:{int(await process.stdout.readline())}", with_free_port("127.0.0.1:0")
        flags = {
            "listen": listen, "workers": f"text={address}", "metrics-port": "off", "lease-secret": router.secret,
            "upstream-ca": router.ca, "upstream-cert": router.cert, "upstream-key": router.key,
        }  # fmt: skip
        command = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        async with router.running("-m", "services.router.main", *command):
            await router.says("is healthy")
            load = Load(listen)
            calling = asyncio.create_task(load.run())
            for rotation in (rotate_secret([router, worker]), rotate_authority(router, worker, authority)):
                rotating, before = asyncio.create_task(rotation), load.answers
                await asyncio.wait({rotating, calling}, return_when=asyncio.FIRST_COMPLETED)
                if calling.done():
                    rotating.cancel()
                    calling.result()  # raises: it ends by failing alone
                rotating.result()
                assert load.answers > before
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
