"""What all workers of a kind have, in one list."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from headway.channels import onward
from headway.deadline import Budget, Clock
from headway.errors import from_rpc_error
from headway.server import tenant_of_call
from services.router.forwarding import no_worker
from services.router.member import Member
from services.router.methods import Listing
from services.router.pool import Pool, kind_name
from services.router.view import View


class Lister:
    """Asks the workers that together have every asset."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool, self._clock = pool, clock

    async def merged(self, listing: Listing, budget: Budget) -> Any:
        """The merged response: each asset as the first healthy worker that has it describes it.

        A worker that fails is left out; raises its error when none answers, and `NoWorker` when there is none.
        """
        views = [view for view in self._pool.views() if view.description.kind == listing.kind]
        chosen = [member for view in _covering(views) if (member := self._pool.member(view)) is not None]
        if not chosen:
            raise no_worker(kind_name(listing.kind))
        asked = (self._ask(listing, member, budget) for member in chosen)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        merged: Any = listing.response()
        items, seen = getattr(merged, listing.field), set[str]()
        failure: BaseException | None = None
        for answer in answers:
            if isinstance(answer, BaseException):
                failure = answer
                continue
            new = [item for item in getattr(answer, listing.field) if item.name not in seen]
            seen.update(item.name for item in new)
            items.extend(new)
        if isinstance(failure, grpc.aio.AioRpcError) and not items:
            raise from_rpc_error(failure)
        if failure is not None and not isinstance(failure, grpc.aio.AioRpcError):
            raise failure
        return merged

    async def _ask(self, listing: Listing, member: Member, budget: Budget) -> Any:
        unary: Any = member.channel.unary_unary
        call = unary(listing.path, response_deserializer=listing.response.FromString)
        identity = member.identity.metadata(tenant_of_call.get())
        return await call(b"", **onward(budget, self._clock(), identity).kwargs())


def _covering(views: Sequence[View]) -> list[View]:
    """Few workers that together have every asset, in their order."""
    known: set[str] = set()
    chosen = list[View]()
    for view in views:
        names = {asset.name for asset in view.description.assets}
        if not chosen or names - known:
            chosen.append(view)
            known |= names
    return chosen
