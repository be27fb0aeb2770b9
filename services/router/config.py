"""Settings of the router."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, FilePath, model_validator

from headway.config import Address, OrOff, Target, UpstreamConfig, check_target, setting
from headway.prefix import MIN_SECRET_BYTES
from headway.redis_url import RedisUrl
from headway.v1 import common_pb2
from services.router.policies import DEFAULT, NAMES, read_policy

KINDS: dict[str, common_pb2.Kind] = {
    "text": common_pb2.KIND_TEXT,
    "image": common_pb2.KIND_IMAGE,
    "dit": common_pb2.KIND_IMAGE,
    "splat": common_pb2.KIND_SPLAT,
}


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where workers of one kind listen: one address, or a name that may resolve to many."""

    kind: common_pb2.Kind
    address: str
    server_name: str | None = None
    """The name that the address was resolved from: certificates are for it."""


def read_workers(value: object) -> tuple[WorkerAddress, ...]:
    """Reads "text=HOST:PORT,dit=unix:PATH,..." or a list of such parts. Raises ValueError that names the part."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise ValueError("must be KIND=ADDRESS, comma-separated or as a list")
    workers = tuple(_worker(part.strip()) for part in parts if part.strip())
    if not workers:
        raise ValueError(f"must name at least one worker, as KIND=ADDRESS; kinds: {', '.join(KINDS)}")
    if len({worker.address for worker in workers}) != len(workers):
        raise ValueError("names an address twice")
    return workers


def _worker(part: str) -> WorkerAddress:
    kind, equals, address = part.partition("=")
    if not equals or kind not in KINDS:
        raise ValueError(f"{part!r} must be KIND=ADDRESS with a kind of {', '.join(KINDS)}")
    return WorkerAddress(KINDS[kind], check_target(address))


def check_placement(name: str) -> str:
    """A placement policy's name. Raises ValueError."""
    read_policy(name)
    return name


Workers = Annotated[tuple[Any, ...], BeforeValidator(read_workers)]
PlacementName = Annotated[str, AfterValidator(check_placement)]


class RouterConfig(UpstreamConfig):
    """Takes every kind of work and passes each request to the worker that will serve it best in time."""

    listen: Address = setting(
        "127.0.0.1:50050", "address to serve gRPC on; port 0 picks a free one", group="Serving", unit="HOST:PORT"
    )
    workers: Workers = setting(
        ..., "the workers: KIND=HOST:PORT or KIND=unix:PATH, comma-separated, several of a kind allowed; kinds: text, "
        "image (or dit), splat. A name that resolves to many addresses is looked up again and again, and each address "
        "is a worker", group="Mesh", unit="KIND=ADDRESS,...",
    )  # fmt: skip
    prefix_cache: Annotated[Target | None, OrOff] = setting(
        None,
        "the prefix cache, for results and for who has which prompts cached",
        group="Mesh",
        unit="HOST:PORT",
    )
    resolve_interval_s: float = setting(
        3.0, "how often names of workers are resolved again",
        group="Mesh", unit="SECONDS", gt=0, le=3600, allow_inf_nan=False,
    )  # fmt: skip
    rung_quantile: float = setting(
        0.9, "placement expects the rung that comes in time in this share of cases",
        group="Mesh", unit="SHARE", gt=0, lt=1,
    )  # fmt: skip
    placement: PlacementName = setting(
        DEFAULT, f"which worker is asked first: {DEFAULT}, or to compare: {', '.join(NAMES[1:])}",
        group="Mesh", unit="NAME",
    )  # fmt: skip
    single_flight: bool = setting(
        True, "identical deterministic requests in flight share one worker's answer", group="Mesh"
    )
    waiting: int = setting(
        64, "requests of each kind that may wait here, when no worker can promise them now but one could still do them "
        "in time; 0: none", group="Mesh", unit="N", ge=0, le=4096,
    )  # fmt: skip
    hedge_quantile: Annotated[float | None, OrOff] = setting(
        None, "a frame that is not there when it should be in this share of cases is asked of a second worker too, and "
        "the first answer taken; off: never", group="Mesh", unit="SHARE", gt=0.5, lt=1,
    )  # fmt: skip
    endpoint_picker: bool = setting(
        False, "serve Envoy's external processing, so that a gateway asks here for the worker to send a request to; "
        "workers then need addresses that are HOST:PORT", group="Mesh",
    )  # fmt: skip
    endpoint_picker_spares: int = setting(
        0, "further workers that the endpoint picker names, for gateways that try them in order; a cluster of the type "
        "ORIGINAL_DST takes none", group="Mesh", unit="N", ge=0, le=3,
    )  # fmt: skip
    failover_wait_s: float = setting(
        10.0, "how long an answer that was cut off waits for a worker that can go on, inside its budget; 0: not at all",
        group="Mesh", unit="SECONDS", ge=0, le=3600, allow_inf_nan=False,
    )  # fmt: skip

    cache_ttl_s: float = setting(
        3600.0, "how long results are kept", group="Result cache", unit="SECONDS", ge=1, le=2_592_000,
        allow_inf_nan=False,
    )  # fmt: skip
    cache_max_kib: int = setting(
        2048, "largest result that is kept: it must come back within the lookup's time", group="Result cache",
        unit="KIB", ge=1, le=262_144,
    )  # fmt: skip
    cache_lookup_ms: float = setting(
        20.0, "longest wait for a kept result, and never more than a tenth of the budget", group="Result cache",
        unit="MS", gt=0, le=10_000, allow_inf_nan=False,
    )  # fmt: skip
    cache_secret: Annotated[FilePath | None, OrOff] = setting(
        None, f"file with a secret of at least {MIN_SECRET_BYTES} bytes that keeps tenants' entries apart, the same "
        "for all routers of a mesh; off: a random one at each start, so that earlier entries are not found again",
        group="Result cache", unit="FILE",
    )  # fmt: skip

    quotas: Annotated[FilePath | None, OrOff] = setting(
        None, "YAML of tenant: {device_ms_per_s, burst_ms, calls_in_flight, weight}, '*' for all others; without it "
        "nobody is limited, and all weigh the same where requests wait", group="Security", unit="FILE",
    )  # fmt: skip
    quota_store: Annotated[RedisUrl | None, OrOff] = setting(
        None, "Redis over which the routers of a mesh count device time together, also unix:///PATH; off: each router "
        "counts for itself", group="Security", unit="URL",
    )  # fmt: skip
    lease_secret: Annotated[FilePath | None, OrOff] = setting(
        None, "file with the secret that the mesh's routers share with its workers, or several, a line each, of which "
        "the first signs; read anew when it changes: calls are passed on, and Pick answers, with a signed lease that "
        "names the tenant", group="Security", unit="FILE",
    )  # fmt: skip

    @model_validator(mode="after")
    def _endpoints_can_be_named(self) -> Self:
        if self.endpoint_picker and any(worker.address.startswith("unix:") for worker in self.workers):
            raise ValueError("endpoint_picker needs workers at HOST:PORT: a gateway cannot send to a Unix socket")
        return self
