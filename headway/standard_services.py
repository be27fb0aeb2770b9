"""What every server has beside its own services: health, load reports; reflection and channelz where they may be."""

from collections.abc import Sequence
from typing import Any, cast

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from headway import load_report
from headway.config import ServiceConfig
from headway.load_report import LoadMeter, OpenRca
from headway.v1 import orca_service_pb2_grpc


class StandardServices:
    """The standard services of one server; they answer without a key."""

    def __init__(self, server: grpc.aio.Server, names: Sequence[str], load: LoadMeter, *, debug: bool) -> None:
        """Adds them. `names`: the server's own services; `debug`: with reflection and channelz."""
        self._names = ("", *names)
        self._health: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._reports = OpenRca(load)
        orca_service_pb2_grpc.add_OpenRcaServiceServicer_to_server(self._reports, server)
        if debug:
            channelz.add_channelz_servicer(server)  # type: ignore[arg-type]
            shown = [*names, health.SERVICE_NAME, load_report.SERVICE, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(shown, server)

    async def serving(self) -> None:
        """Says that all services serve."""
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Says that none serves any more, and ends the streams of reports."""
        await self._health.enter_graceful_shutdown()
        self._reports.close()


def serves_debug(config: ServiceConfig) -> bool:
    """Whether reflection and channelz are served: they tell everybody who connects what is here, and who else does."""
    if config.debug_services != "local":
        return config.debug_services == "always"
    host = config.listen.rpartition(":")[0].strip("[]")
    return config.listen.startswith("unix:") or host == "localhost" or host == "::1" or host.startswith("127.")


class _ByName:
    """See `by_name`."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """They were added by name."""


def by_name(server: grpc.aio.Server) -> grpc.aio.Server:
    """For adding services, whose methods it then finds by their names.

    Generated code registers each method as well. Each of those has a task that waits for its next call, and with every
    call that comes gRPC's server begins anew to wait for all of them: twenty in a router.
    """
    return cast(grpc.aio.Server, _ByName(server))
