"""Starts the sharing of KV blocks as the settings say, and is what the servicer tells of prompts."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from contextlib import contextmanager
from dataclasses import dataclass

from headway.lease import Secrets, first_of
from headway.prefix import BLOCK_TOKENS, tenant_salt
from headway.server import Service
from headway.upstream import Connection, UpstreamCredentials
from services.text_worker.config import TextWorkerConfig
from services.text_worker.costs import TextCosts
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.pages import Pages
from services.text_worker.kv.store import KvStore
from services.text_worker.kv.transfer import Layout
from services.text_worker.sequence import Sequence
from services.text_worker.sharing.learned import RestoreCosts
from services.text_worker.sharing.mesh_store import MeshStore
from services.text_worker.sharing.redis_store import RedisStore
from services.text_worker.sharing.restoring import Restorer
from services.text_worker.sharing.stores import BlockStore, blocks_a_message
from services.text_worker.sharing.watching import StoreWatch
from services.text_worker.sharing.writing import BlockWriter, WritePolicy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upstream:
    """The way to the prefix cache, and what identifies this worker there."""

    connection: Connection
    credentials: UpstreamCredentials


class Sharing:
    """What the servicer tells of every prompt. Belongs to the event loop."""

    def __init__(self, restorer: Restorer, writer: BlockWriter, fingerprint: bytes, secrets: Secrets | None) -> None:
        self._restorer, self._writer = restorer, writer
        self._fingerprint, self._secrets = fingerprint, secrets

    def chain(self, tenant: str) -> Chain:
        """Names blocks as all workers do that have the mesh's secret: by its HMAC of the tenant.

        Without a secret a block's name can be guessed by who reads the store, and tenants are still apart.
        """
        label, secret = f"blocks of {tenant}", first_of(self._secrets)
        return Chain(label if secret is None else tenant_salt(secret, label), self._fingerprint)

    @contextmanager
    def prompt(self, sequences: Several[Sequence]) -> Iterator[None]:
        """Holds answers to one prompt, from before they are admitted to their end. Mutates them."""
        first = sequences[0]
        chain = tuple(first.kv.chain.over(first.tokens))
        coming = self._restorer.attach(chain[: (len(first.tokens) - 1) // BLOCK_TOKENS])
        for sequence in sequences:
            sequence.coming = coming
        try:
            yield
        finally:
            self._writer.saw(chain[: first.prompt_tokens // BLOCK_TOKENS])

    def admitted(self, sequence: Sequence) -> None:
        """Its blocks may be fetched."""
        if sequence.coming is not None:
            self._restorer.begin(sequence.coming)


async def start_sharing(
    config: TextWorkerConfig,
    service: Service,
    cache: KvStore,
    fingerprint: bytes,
    costs: TextCosts,
    *,
    upstream: Upstream | None,
    secrets: Secrets | None,
    wake: Callable[[], None],
) -> Sharing | None:
    """Shares from now on; None where the settings or the cache do not let it."""
    if config.kv_store is None or not _can_share(cache):
        return None
    assert isinstance(cache.pages, Pages)
    layout, metrics, clock = Layout.of(cache.pages, fingerprint), service.metrics, service.clock
    store = _store_of(config.kv_store, layout, upstream)
    service.closing.push_async_callback(store.close)
    learned = RestoreCosts(costs.taking_in, config.rung_quantile)
    gauge = metrics.store_reachable.labels("kv")
    watch = StoreWatch(store, layout, learned, config.kv_store_ttl_s, clock=clock, gauge=gauge)
    restorer = Restorer(
        store, watch, learned, costs, cache.pool, layout, clock=clock, wake=wake, metrics=metrics
    )  # fmt: skip
    policy = WritePolicy(config.kv_store_sightings, config.kv_store_write_mib_s * 2**20, config.kv_store_ttl_s)
    writer = BlockWriter(store, watch, learned, costs, cache, layout, policy, clock=clock, metrics=metrics)
    service.closing.push_async_callback(restorer.close)
    tasks = await service.closing.enter_async_context(asyncio.TaskGroup())
    for endless in (watch.run(), writer.run()):
        service.closing.callback(tasks.create_task(endless).cancel)
    return Sharing(restorer, writer, fingerprint, secrets)


def _can_share(cache: KvStore) -> bool:
    """Whether the cache's blocks can travel; says why not."""
    if not isinstance(cache.pages, Pages):
        log.warning("kv_store: blocks on a GPU are not shared yet")
        return False
    layout = Layout.of(cache.pages, b"")
    if blocks_a_message(layout.payload_bytes) is None:
        log.warning("kv_store: this model's blocks of %d bytes are too large to be shared", layout.payload_bytes)
        return False
    return True


def _store_of(kv_store: str, layout: Layout, upstream: Upstream | None) -> BlockStore:
    if kv_store != "grpc":
        return RedisStore(kv_store, layout.stored_bytes)
    assert upstream is not None
    return MeshStore(upstream.connection, upstream.credentials)
