"""What each tenant may use: device time by the second, and calls in flight, as this router counts it.

A tenant's bucket fills by its rate up to its burst. A call may begin while there is anything in it and takes its whole
predicted cost, so that a large request is possible but leaves a debt. Costs are those of the work alone on the device
at the rung that was expected when it was placed: the same request costs the same whatever else runs. What no worker
took is given back. Routers may count device time together: see `shared_quotas`.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headway.auth import TENANT_NAME
from headway.cost import solo_ms
from headway.deadline import Clock
from headway.errors import HeadwayError, TooManyCalls
from headway.v1 import errors_pb2
from headway.yaml_file import read_mapping
from services.router.placement import Placement

OTHERS = "*"
"""In the file: every tenant that is not named, each for itself."""
_MOST_ACCOUNTS = 4096
_SOONEST_S = 0.05
_SHARED_S = 1.0
"""How long a common level is trusted without news."""
_NOT_DONE = {
    errors_pb2.ERROR_REASON_SHED,
    errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL,
    errors_pb2.ERROR_REASON_BAD_INPUT,
    errors_pb2.ERROR_REASON_NOT_FOUND,
    errors_pb2.ERROR_REASON_NO_SUCH_RUNG,
    errors_pb2.ERROR_REASON_NO_WORKER,
    errors_pb2.ERROR_REASON_DRAINING,
    errors_pb2.ERROR_REASON_UNIMPLEMENTED,
    errors_pb2.ERROR_REASON_TOO_MANY_CALLS,
}
"""Reasons that a request ends with before any work: not when its caller went away, or its worker was lost."""


class QuotaFileError(ValueError):
    """The file of quotas is not what it must be. Names the tenant and the field."""


class Quota(BaseModel):
    """What one tenant may use; what is left out is unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device_ms_per_s: float | None = Field(default=None, gt=0, le=1e9, allow_inf_nan=False)
    """Device time; milliseconds for each second."""
    burst_ms: float = Field(default=1000.0, gt=0, le=1e9, allow_inf_nan=False)
    """Most device time that can be saved up; milliseconds."""
    calls_in_flight: int | None = Field(default=None, ge=1, le=100_000)
    """Calls at once."""
    weight: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    """How much of the workers it is to get where requests wait, compared with other tenants."""


def load_quotas(path: Path) -> dict[str, Quota]:
    """Reads a YAML file of `tenant: {device_ms_per_s: ..., burst_ms: ..., calls_in_flight: ..., weight: ...}`.

    Raises `QuotaFileError`, or `YamlFileError` for the file. Blocks.
    """
    return {tenant: _quota(path, tenant, limits) for tenant, limits in read_mapping(path).items()}


def _quota(path: Path, tenant: str, limits: object) -> Quota:
    where = f"{path}: tenant {tenant[:64]!r}"
    if tenant != OTHERS and not TENANT_NAME.fullmatch(tenant):
        raise QuotaFileError(f"{where}: must be {OTHERS!r}, or 1 to 63 of a-z 0-9 . _ - after a letter or digit")
    try:
        return Quota.model_validate(limits)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise QuotaFileError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@dataclass(eq=False, slots=True)
class _Call:
    ends_s: float
    """When it is expected to be over."""


@dataclass(slots=True)
class _Account:
    """One tenant's use. Mutated by what it does."""

    quota: Quota
    level_ms: float
    """Device time that is left; negative: a debt."""
    filled_s: float
    open: set[_Call] = field(default_factory=set)
    picked: set[_Call] = field(default_factory=set)
    """Calls that clients make themselves: over when they were expected to be."""
    untold_ms: float = 0.0
    """What was used since other routers were told."""

    def settle(self, now_s: float, share: float) -> None:
        """Brings it up to date; `share`: what of the quota is this router's."""
        if self.quota.device_ms_per_s is not None:
            gained_ms = (now_s - self.filled_s) * self.quota.device_ms_per_s * share
            self.level_ms = min(self.quota.burst_ms * share, self.level_ms + gained_ms)
        self.filled_s = now_s
        self.picked = {call for call in self.picked if call.ends_s > now_s}

    def charge(self, device_ms: float) -> None:
        self.level_ms -= device_ms
        self.untold_ms += device_ms

    def idle(self, share: float) -> bool:
        return not self.open and not self.picked and self.level_ms >= self.quota.burst_ms * share


@dataclass(frozen=True, slots=True)
class Use:
    """What a tenant used here since other routers were told, and what it may use of all of them."""

    tenant: str
    device_ms_per_s: float
    burst_ms: float
    used_ms: float
    """Negative where more was given back."""


class Quotas:
    """Charges tenants. Belongs to one event loop."""

    def __init__(self, limits: Mapping[str, Quota], clock: Clock) -> None:
        """`limits`: by tenant, and `OTHERS`; tenants without any are not limited."""
        self._limits, self._clock = dict(limits), clock
        self._accounts: dict[str, _Account] = {}
        self._routers, self._shared_until_s = 1, -math.inf

    def weight(self, tenant: str) -> float:
        """See `Quota.weight`; 1 for who has no quota."""
        quota = self._limits.get(tenant, self._limits.get(OTHERS))
        return 1.0 if quota is None else quota.weight

    @contextmanager
    def call(self, tenant: str, device_ms: float, takes_s: float) -> Iterator[None]:
        """Around one call. Raises `TooManyCalls` with the time to come back.

        `takes_s`: how long it is expected to take. Gives the cost back where the call ends before any work was done.
        """
        account = self._admitted(tenant)
        if account is None:
            yield
            return
        call = _Call(self._clock() + takes_s)
        account.charge(device_ms)
        account.open.add(call)
        try:
            yield
        except HeadwayError as error:
            if error.reason in _NOT_DONE:
                account.charge(-device_ms)
            raise
        finally:
            account.open.discard(call)

    def pick(self, tenant: str, device_ms: float, takes_s: float) -> None:
        """Charges a call that its client makes itself: it counts as in flight for `takes_s`. Raises as `call` does."""
        account = self._admitted(tenant)
        if account is not None:
            account.charge(device_ms)
            account.picked.add(_Call(self._clock() + takes_s))

    def _admitted(self, tenant: str) -> _Account | None:
        """The tenant's account, which may take a call now; None where nothing is limited."""
        quota = self._limits.get(tenant, self._limits.get(OTHERS))
        if quota is None:
            return None
        now_s = self._clock()
        if tenant not in self._accounts:
            self._forget_idle(now_s)
            self._accounts[tenant] = _Account(quota, quota.burst_ms, now_s)
        account = self._accounts[tenant]
        share = self._share(now_s)
        account.settle(now_s, share)
        _check(tenant, account, now_s, share)
        return account

    # --- what routers count together

    def take_uses(self) -> list[Use]:
        """What the others have to know; it is told once, whatever comes of it. Mutates."""
        now_s, uses = self._clock(), list[Use]()
        for tenant, account in self._accounts.items():
            account.settle(now_s, self._share(now_s))
            quota = account.quota
            if quota.device_ms_per_s is not None and (account.untold_ms or account.level_ms < quota.burst_ms):
                uses.append(Use(tenant, quota.device_ms_per_s, quota.burst_ms, account.untold_ms))
                account.untold_ms = 0.0
        return uses

    def shared(self, levels_ms: Mapping[str, float], routers: int) -> None:
        """Takes over the levels that so many routers have in common, for the next second. Mutates."""
        now_s = self._clock()
        self._routers, self._shared_until_s = routers, now_s + _SHARED_S
        for tenant, level_ms in levels_ms.items():
            if (account := self._accounts.get(tenant)) is not None:
                account.level_ms, account.filled_s = level_ms - account.untold_ms, now_s

    def _share(self, now_s: float) -> float:
        return 1.0 if now_s < self._shared_until_s else 1.0 / self._routers

    def _forget_idle(self, now_s: float) -> None:
        """A tenant that used nothing for a while is as good as a new one."""
        if len(self._accounts) < _MOST_ACCOUNTS:
            return
        for tenant, account in list(self._accounts.items()):
            account.settle(now_s, self._share(now_s))
            if account.idle(self._share(now_s)):
                del self._accounts[tenant]


def _check(tenant: str, account: _Account, now_s: float, share: float) -> None:
    quota = account.quota
    if quota.calls_in_flight is not None and len(account.open) + len(account.picked) >= quota.calls_in_flight:
        next_s = min(call.ends_s for call in account.open | account.picked) - now_s
        raise _refusal(tenant, "calls_in_flight", quota.calls_in_flight, next_s)
    if quota.device_ms_per_s is not None and account.level_ms <= 0:
        rate = quota.device_ms_per_s
        raise _refusal(tenant, "device_ms_per_s", rate, -account.level_ms / (rate * share))


def _refusal(tenant: str, limit: str, value: float, wait_s: float) -> TooManyCalls:
    return TooManyCalls(
        f"the quota of tenant {tenant} is used up: {limit} {value:g}",
        metadata={"quota": limit, "limit": f"{value:g}"},
        retry_after_s=max(_SOONEST_S, wait_s),
    )


def device_ms(placement: Placement) -> float:
    """What a request costs alone on the device, at the rung that is expected."""
    report = placement.view.report
    curve = report.curve(placement.asset.hash, placement.rung.label)
    return solo_ms(placement.load, curve, report.max_batch)
