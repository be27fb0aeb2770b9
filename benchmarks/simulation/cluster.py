"""A whole cluster: what it is made of, and one run of it."""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from benchmarks.experiment.bound import Window, bound
from benchmarks.simulation.clock import Clock
from benchmarks.simulation.device import Device, OwnDevice, SharedDevice
from benchmarks.simulation.host import EXACT, Host, Noise
from benchmarks.simulation.models import Model, mean_least_ms, options
from benchmarks.simulation.router import Over, Request, VirtualRouter
from benchmarks.simulation.stream import Demand, as_arrival, requests
from benchmarks.simulation.tally import Tally
from benchmarks.simulation.worker import VirtualWorker
from headway.errors import HeadwayError
from headway.policy import policy_of
from headway.quality import Rung
from services.router.ledger import REPORT_INTERVAL_S
from services.router.quotas import Quota, Quotas


@dataclass(frozen=True)
class Cluster:
    """What is simulated."""

    workers: Mapping[Model, int]
    """Of each kind."""
    slower: tuple[float, ...] = (1.0,)
    """How many times longer than its model says steps take on the n-th machine of each kind, round and round: known to
    its worker, which was calibrated there."""
    placement: str = "headway"
    """As the router's `--placement`."""
    policy: str = "headway"
    """As the workers' `--policy`."""
    noise: Noise = EXACT
    shared: bool = False
    """The n-th workers of all kinds share a device; else each has its own."""
    tell_s: float = 0.0005
    """Until the workers on a device know what another one has to do there."""
    routers: int = 1
    """Requests go to each in turn; none sees what the others sent."""
    hop_s: float = 0.0005
    """A message from one process to the next, one way."""
    interval_s: float = REPORT_INTERVAL_S
    """Between two reports of a worker whose state changes; 0: every change is known everywhere at once."""
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    """By tenant, at each router."""

    def rates(self) -> dict[Model, float]:
        """Requests a second at load 1.0, by kind: the devices are just busy with the lowest rungs of what comes."""
        kinds = len(self.workers) if self.shared else 1
        return {
            model: self.machines(count) * 1000 / mean_least_ms(model) / kinds for model, count in self.workers.items()
        }

    def machines(self, count: int) -> float:
        """As how many machines of the models' speed so many count."""
        return sum(1 / self.slower[number % len(self.slower)] for number in range(count))


@dataclass(frozen=True)
class Outcome:
    """One run."""

    tally: Tally
    virtual_s: float
    """From the first arrival to the last answer."""
    cpu_s: float
    """CPU time of this host that simulating took."""
    placing_us: float
    """CPU time of one placement, in the mean, on this host."""
    busy: float
    """Share of the workers' time in which they stepped."""
    bound: float | None = None
    """The most goodput that any schedule could give, where it was asked for."""

    def as_dict(self) -> dict[str, Any]:
        """As the results file has it."""
        over = self.tally.all.goodput / self.bound if self.bound else None
        return {
            **self.tally.as_dict(), "busy": self.busy, "bound": self.bound, "goodput_over_bound": over,
            "virtual_s": self.virtual_s, "cpu_s": self.cpu_s, "placing_us": self.placing_us,
        }  # fmt: skip


def _nothing(request: Request, what: Rung | HeadwayError, admitted: bool) -> None: ...


class _Run:
    def __init__(self, cluster: Cluster, seed: int, told: Over) -> None:
        self.cluster, self.clock, self.tally, self._told = cluster, Clock(), Tally(), told
        self._told_s: dict[str, float] = {}
        self.workers = {worker.name: worker for worker in self._workers(random.Random(f"hosts {seed}"))}
        self.routers = [
            VirtualRouter(
                cluster.placement,
                self.workers,
                Quotas(cluster.quotas, self.clock),
                clock=self.clock,
                hop_s=cluster.hop_s,
                interval_s=cluster.interval_s,
                seed=seed * 1000 + number,
                over=self._over,
            )
            for number in range(cluster.routers)
        ]

    def _workers(self, draw: random.Random) -> list[VirtualWorker]:
        """A shared device is one machine: it has one host, whatever runs there."""
        cluster, most = self.cluster, max(self.cluster.workers.values())
        hosts = [Host(cluster.noise, random.Random(draw.getrandbits(64))) for _ in range(most)]
        shared: list[Device] = [SharedDevice(f"device {number}", self.clock, cluster.tell_s) for number in range(most)]
        found = []
        for model, count in cluster.workers.items():
            for number in range(count):
                device = shared[number] if cluster.shared else OwnDevice()
                host = hosts[number] if cluster.shared else Host(cluster.noise, random.Random(draw.getrandbits(64)))
                found.append(self._worker(model, number, device, host))
        return found

    def _worker(self, model: Model, number: int, device: Device, host: Host) -> VirtualWorker:
        factor = self.cluster.slower[number % len(self.cluster.slower)]
        return VirtualWorker(
            f"{model.name}-{number:04}",
            model if factor == 1.0 else model.slower(factor),
            policy_of(self.cluster.policy, [model.ladder]),
            clock=self.clock,
            device=device,
            host=host,
            changed=self._changed,
        )

    def _over(self, request: Request, what: Rung | HeadwayError, admitted: bool) -> None:
        self.tally.take(request, what, admitted, self.clock.now_s)
        self._told(request, what, admitted)

    def take(self, request: Request) -> None:
        self.routers[request.key % len(self.routers)].take(request)

    # --- reports: at once, or after a change, at most every interval

    def _changed(self, worker: VirtualWorker) -> None:
        interval_s, now_s = self.cluster.interval_s, self.clock.now_s
        if not interval_s:
            self._deliver(worker.name, worker.report())
        elif (last_s := self._told_s.get(worker.name, -interval_s)) <= now_s:
            next_s = max(now_s, last_s + interval_s)
            self._told_s[worker.name] = next_s
            self.clock.at(next_s, self._tell, worker)

    def _tell(self, worker: VirtualWorker) -> None:
        self.clock.at(self.clock.now_s + self.cluster.hop_s, self._deliver, worker.name, worker.report())

    def _deliver(self, name: str, report: Any) -> None:
        for router in self.routers:
            router.reported(name, report)


def simulate(
    cluster: Cluster, demand: Demand, count: int, *, seed: int = 1, bounded: bool = False, told: Over = _nothing
) -> Outcome:
    """Sends a cluster `count` requests and plays until all are over. Deterministic but for what it took itself.

    `bounded`: with the clairvoyant bound, which takes seconds for a thousand requests. `told` hears of every end.
    """
    arrivals = islice(requests(demand, cluster.rates(), seed), count)
    if not bounded:
        return play(cluster, arrivals, seed=seed, told=told)
    sent = list(arrivals)
    return replace(play(cluster, sent, seed=seed, told=told), bound=most_goodput(cluster, sent))


def play(cluster: Cluster, sent: Iterable[Request], *, seed: int = 1, told: Over = _nothing) -> Outcome:
    """The same for given requests, whose times rise; they are taken as they are needed."""
    start_s, run = time.process_time(), _Run(cluster, seed, told)
    run.clock.follow(((request.at_s, request) for request in sent), run.take)
    virtual_s = run.clock.now_s
    devices = max(cluster.workers.values()) if cluster.shared else len(run.workers)
    busy_s = sum(worker.busy_ms for worker in run.workers.values()) / 1000
    return Outcome(
        run.tally,
        virtual_s,
        time.process_time() - start_s,
        1e6 * sum(router.placing_s for router in run.routers) / max(1, run.tally.all.asked),
        busy_s / (virtual_s * devices) if virtual_s else 0.0,
    )


def most_goodput(cluster: Cluster, sent: Sequence[Request]) -> float:
    """The bound of `benchmarks.experiment.bound`, with all machines of a kind as one as fast as they are together."""
    if cluster.shared:
        machines = cluster.machines(max(cluster.workers.values()))
        return bound([_window(request, machines) for request in sent])
    return sum(
        bound([_window(request, cluster.machines(count)) for request in sent if request.model is model])
        for model, count in cluster.workers.items()
    )


def _window(request: Request, machines: float) -> Window:
    rungs = tuple((quality, cost_s / machines) for quality, cost_s in options(request.model, as_arrival(request)))
    return Window(request.at_s, request.deadline_s, rungs)
