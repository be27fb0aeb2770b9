"""What is compared. Every study gives rows: what was set, and what came of it; all its runs get the same arrivals."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.simulation.cluster import Cluster, Outcome, simulate
from benchmarks.simulation.documents import Mesh, documents
from benchmarks.simulation.host import EXACT, Noise
from benchmarks.simulation.models import Model, default_models
from benchmarks.simulation.stream import Demand, steady_demand
from benchmarks.simulation.tally import jain
from services.router.quotas import OTHERS, Quota

CONTENDERS = {
    "headway": ("headway", "headway"),
    "round-robin": ("round-robin", "headway"),
    "least-queue": ("least-queue", "headway"),
    "power-of-two": ("power-of-two", "headway"),
    "prefix-hash": ("prefix-hash", "headway"),
    "top rung": ("headway", "fixed:0"),
    "lowest rung": ("headway", "lowest"),
    "round-robin, top rung": ("round-robin", "fixed:0"),
}
"""(the router's policy, the workers'), by name."""
MACHINES = (1.0, 2.0)
SHARED_LOADS = (0.3, 0.6, 1.2)
INTERVALS_S = (0.0, 0.05, 0.25, 0.5, 1.0)
ROUTERS = (1, 4, 16)
AT_ONCE = (1, 32)
DOCUMENTS_ASKED = 480
"""At most: a question costs several milliseconds here, as its text is played token by token."""
FLOOD = (("flood", 0.6), ("a", 0.2), ("b", 0.1), ("c", 0.1))

MESSAGE_S, PICK_S = 1.23e-4, 0.4e-3
"""CPU of a router process, measured elsewhere on an EPYC: for a message that a bare uvloop hop passes on, one every
25 ms in each of 64 streams; for one `Pick`, its placement left out."""
MESSAGES = {"image": 3.0, "splat": 2.0, "text": 2.0}
"""Of an answer, tokens left out."""
USED = 0.7
"""Share of a core that a router may use."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is simulated."""

    requests: int = 2500
    """Of a run."""
    bounded_requests: int = 900
    """Of a run beside the clairvoyant bound."""
    each: int = 4
    """Workers of each kind."""
    sizes: tuple[int, ...] = (1, 10, 100, 1000)
    """Workers in all, where clusters of many sizes are compared."""
    a_worker: int = 10
    """Requests for each worker there, if that is more than `requests`."""
    seed: int = 1
    noise: Noise = EXACT


Row = dict[str, Any]


def policies(effort: Effort, loads: tuple[float, ...]) -> Iterator[Row]:
    """Who places and who plans, side by side, where every other machine is half as fast."""
    for load in loads:
        for name, (placement, policy) in CONTENDERS.items():
            cluster = replace(_cluster(effort), slower=MACHINES, placement=placement, policy=policy)
            yield {"load": load, "contender": name, **_run(cluster, steady_demand(load), effort)}


def bounds(effort: Effort, loads: tuple[float, ...]) -> Iterator[Row]:
    """Goodput over what a clairvoyant could have had, on two workers of each kind."""
    for load in loads:
        cluster = replace(_cluster(effort), workers=dict.fromkeys(_models(effort), 2))
        outcome = simulate(cluster, steady_demand(load), effort.bounded_requests, seed=effort.seed, bounded=True)
        yield {"load": load, **outcome.as_dict()}


def staleness(effort: Effort, loads: tuple[float, ...]) -> Iterator[Row]:
    """What it costs that routers hear of workers now and then: the goodput that is lost beside hearing at once."""
    for placement in ("headway", "least-queue"):
        at_once: float | None = None
        for interval_s in INTERVALS_S:
            cluster = replace(_cluster(effort), placement=placement, interval_s=interval_s)
            row = _run(cluster, steady_demand(loads[-1]), effort)
            at_once = row["goodput"] if at_once is None else at_once
            lost = 1 - row["goodput"] / at_once if at_once else None
            yield {"load": loads[-1], "placement": placement, "interval_s": interval_s, "lost": lost, **row}


def fairness(effort: Effort, loads: tuple[float, ...]) -> Iterator[Row]:
    """One tenant who sends most of what comes, without quotas and with: each a quarter of all device time."""
    demand = replace(steady_demand(1.5), tenants=FLOOD)
    share = Quota(device_ms_per_s=1000 * 3 * effort.each / len(FLOOD), burst_ms=1000.0)
    for name, quotas in {"none": {}, "a quarter each": {OTHERS: share}}.items():
        row = _run(replace(_cluster(effort), quotas=quotas), demand, effort)
        got = [tenant["goodput"] for tenant in row["by_tenant"].values()]
        yield {"load": 1.5, "quotas": name, "jain": jain(got), **row}


def spike(effort: Effort, loads: tuple[float, ...]) -> Iterator[Row]:
    """From calm to more than can be done, and back: who gives way."""
    count = 2 * effort.requests
    stretch_s = count / (0.3 + 1.5 + 0.3) / sum(_cluster(effort).rates().values())
    demand = Demand(((stretch_s, 0.3), (stretch_s, 1.5), (stretch_s, 0.3)))
    for name in ("headway", "round-robin, top rung"):
        placement, policy = CONTENDERS[name]
        cluster = replace(_cluster(effort), placement=placement, policy=policy)
        yield {"contender": name, **simulate(cluster, demand, count, seed=effort.seed).as_dict()}


def devices(effort: Effort, loads: tuple[float, ...]) -> Iterator[Row]:
    """Three kinds on each device, a step at a time by the arbiter's order, beside a device for each worker.

    Texts are simulated token by token here: on a shared device others wait for the end of a step.
    """
    images, frames, texts = default_models(effort.noise.spread)
    models = (images, frames, replace(texts, stride=1))
    for load in SHARED_LOADS:
        for shared in (False, True):
            cluster = replace(_cluster(effort), workers=dict.fromkeys(models, 2), shared=shared)
            yield {"load": load, "shared": shared, **_run(cluster, steady_demand(load), effort)}


def several_routers(effort: Effort, loads: tuple[float, ...]) -> Iterator[Row]:
    """Each sees the others' requests in reports only."""
    for placement in ("headway", "least-queue"):
        for count in ROUTERS:
            row = _run(replace(_cluster(effort), placement=placement, routers=count), steady_demand(loads[-1]), effort)
            yield {"load": loads[-1], "placement": placement, "routers": count, **row}


def scale(effort: Effort, loads: tuple[float, ...]) -> Iterator[Row]:
    """From one worker to a thousand: what a placement costs, and how many routers that makes."""
    for size in effort.sizes:
        models = _models(effort)
        counts = {model: size // 3 + (place < size % 3) for place, model in enumerate(models)}
        cluster = replace(_cluster(effort), workers={model: count for model, count in counts.items() if count})
        count = max(effort.requests, effort.a_worker * size)
        outcome = simulate(cluster, steady_demand(loads[0]), count, seed=effort.seed)
        yield {"load": loads[0], "workers": size, **routers_needed(cluster, outcome, loads[0]), **outcome.as_dict()}


def shared_documents(effort: Effort, loads: tuple[float, ...]) -> Iterator[Row]:
    """Prompts that begin alike, before two workers whose caches hold two thirds of the beginnings each."""
    count = min(effort.requests, DOCUMENTS_ASKED)
    for at_once in AT_ONCE:
        for placement in ("headway", "round-robin", "least-queue", "prefix-hash"):
            figures = documents(Mesh(placement), at_once=at_once, count=count, seed=effort.seed)
            yield {"at_once": at_once, "placement": placement, "n": count, **asdict(figures)}


def routers_needed(cluster: Cluster, outcome: Outcome, load: float) -> Row:
    """Router processes for a cluster: from placing as measured here, and passing on as measured elsewhere."""
    rates = {model: rate * load for model, rate in cluster.rates().items()}
    total, placing_s = sum(rates.values()), outcome.placing_us / 1e6
    messages = sum(rate * _messages(model) for model, rate in rates.items())
    proxied, picked = total * placing_s + messages * MESSAGE_S, total * (placing_s + PICK_S)
    return {
        "requests_per_s": total,
        "messages_per_s": messages,
        "cores_passing_on": proxied,
        "cores_picking": picked,
        "routers_passing_on": math.ceil(proxied / USED),
        "routers_picking": math.ceil(picked / USED),
    }


STUDIES: dict[str, Callable[[Effort, tuple[float, ...]], Iterator[Row]]] = {
    "policies": policies,
    "bounds": bounds,
    "staleness": staleness,
    "fairness": fairness,
    "spike": spike,
    "devices": devices,
    "several_routers": several_routers,
    "scale": scale,
    "shared_documents": shared_documents,
}


def _models(effort: Effort) -> tuple[Model, ...]:
    return default_models(effort.noise.spread)


def _cluster(effort: Effort) -> Cluster:
    return Cluster(dict.fromkeys(_models(effort), effort.each), noise=effort.noise)


def _run(cluster: Cluster, demand: Demand, effort: Effort) -> Row:
    return simulate(cluster, demand, effort.requests, seed=effort.seed).as_dict()


def _messages(model: Model) -> float:
    tokens = sum(model.sizes) / len(model.sizes) if model.name == "text" else 0.0
    return MESSAGES[model.name] + tokens
