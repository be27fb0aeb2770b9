"""Starts the router: `headway-router --workers text=HOST:PORT,splat=...,dit=... --prefix-cache HOST:PORT`."""

import asyncio
import random
import secrets
import sys
from functools import partial

from headway.config import load
from headway.lease import LeaseSigner, read_secret
from headway.server import Served, Service, StartError, mesh_secrets, run, upstream_credentials
from headway.telemetry import Span
from headway.upstream import Connection, UpstreamCredentials
from headway.yaml_file import YamlFileError
from services.router import endpoint_picker
from services.router.asking import Asker
from services.router.calls import Calls
from services.router.config import RouterConfig
from services.router.everywhere import Everywhere
from services.router.fairness import Shares
from services.router.forwarding import Forwarder
from services.router.hedging import Hedger
from services.router.identity import Identity
from services.router.listing import Lister
from services.router.policies import Placer, read_policy
from services.router.pool import Pool, Upstream
from services.router.prefix_watch import follow_prefixes
from services.router.prefixes import KnownPrompts, PrefixIndex
from services.router.quotas import Quota, QuotaFileError, Quotas, load_quotas
from services.router.result_cache import CacheLimits, ResultCache
from services.router.scaling import ScaleSignal
from services.router.servicer import Parts, registrations
from services.router.shared_quotas import SharedQuotas
from services.router.single_flight import Flights
from services.router.waiting import WaitingRoom


async def build(config: RouterConfig, service: Service) -> Served:
    """Follows the workers from now on. Raises `StartError` for files that cannot be used."""
    credentials, shared = upstream_credentials(config), mesh_secrets(config.lease_secret)
    secret, limits = _secret(config), _quotas(config)
    tasks = await service.closing.enter_async_context(asyncio.TaskGroup())
    identity = Identity(credentials, None if shared is None else LeaseSigner(shared))
    upstream = Upstream(
        credentials, identity, config.max_message_mib << 20, config.resolve_interval_s, config.drain_s,
        longest_call_s=config.max_deadline_s + 1.0,
    )  # fmt: skip
    pool = Pool(config.workers, upstream, service.metrics, service.clock)
    service.closing.callback(tasks.create_task(pool.run()).cancel)
    signal = ScaleSignal(pool, service.metrics, {worker.kind for worker in config.workers})
    service.closing.callback(tasks.create_task(signal.run()).cancel)
    to_cache, prefixes = _connect_cache(config, service, credentials), PrefixIndex()
    if to_cache is not None:
        for following in (to_cache.follow(), follow_prefixes(to_cache, credentials, prefixes, service.metrics)):
            service.closing.callback(tasks.create_task(following).cancel)
    calls, quotas = Calls(), Quotas(limits, service.clock)
    if config.quota_store is not None:
        sharing = SharedQuotas(config.quota_store, quotas, service.metrics.store_reachable.labels("quotas"))
        service.closing.push_async_callback(sharing.close)
        service.closing.callback(tasks.create_task(sharing.run()).cancel)
    parts = Parts(
        config=config,
        pool=pool,
        placer=Placer(read_policy(config.placement), quantile=config.rung_quantile, draw=random.Random()),
        asker=_asker(config, service, pool, quotas),
        lister=Lister(pool, service.clock),
        everywhere=Everywhere(pool, service.clock),
        cache=_cache(config, service, to_cache, credentials, secret, tasks),
        flights=Flights(secret, config.cache_max_kib << 10, config.rung_quantile, service.clock),
        prompts=KnownPrompts(prefixes, shared),
        signal=signal,
        quotas=quotas,
        identity=identity,
        calls=calls,
        metrics=service.metrics,
        tracing=service.tracing,
        clock=service.clock,
    )
    served = registrations(parts)
    if config.endpoint_picker:
        served.append(endpoint_picker.registration(parts, service.authenticator))
    return Served(served, drain=calls.drain)


def _secret(config: RouterConfig) -> bytes:
    if config.cache_secret is None:
        return secrets.token_bytes(32)
    try:
        return read_secret(config.cache_secret)
    except (OSError, ValueError) as error:
        raise StartError(f"cache_secret: {error}") from error


def _quotas(config: RouterConfig) -> dict[str, Quota]:
    if config.quotas is None:
        return {}
    try:
        return load_quotas(config.quotas)
    except (QuotaFileError, YamlFileError) as error:
        raise StartError(f"quotas: {error}") from error


def _asker(config: RouterConfig, service: Service, pool: Pool, quotas: Quotas) -> Asker:
    forwarder = Forwarder(pool, service.tracing, service.clock, failover_wait_s=config.failover_wait_s)
    hedger = Hedger(forwarder, config.hedge_quantile, service.metrics, service.clock)
    shares = Shares(quotas.weight, service.clock)
    room = WaitingRoom(config.waiting, shares, service.clock)
    return Asker(hedger, room, shares, service.metrics, service.clock)


def _connect_cache(config: RouterConfig, service: Service, credentials: UpstreamCredentials) -> Connection | None:
    if config.prefix_cache is None:
        return None
    connection = Connection(config.prefix_cache, credentials, max_message_bytes=config.max_message_mib << 20)
    service.closing.push_async_callback(connection.close)
    return connection


def _cache(
    config: RouterConfig,
    service: Service,
    connection: Connection | None,
    credentials: UpstreamCredentials,
    secret: bytes,
    tasks: asyncio.TaskGroup,
) -> ResultCache | None:
    if connection is None:
        return None
    limits = CacheLimits(config.cache_ttl_s, config.cache_max_kib << 10, config.cache_lookup_ms / 1000)
    return ResultCache(
        connection, credentials, secret, limits, tasks,
        metrics=service.metrics, tracing=service.tracing, clock=service.clock,
    )  # fmt: skip


def main() -> None:
    """The console script."""
    config = load(RouterConfig, sys.argv[1:], prog="headway-router")
    run(config, "router", partial(build, config), span=Span.ROUTER_CALL)


if __name__ == "__main__":
    main()
