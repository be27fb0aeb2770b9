"""KEDA's external scaler over the router's own signal."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from headway.v1 import common_pb2, keda_pb2, keda_pb2_grpc
from services.router.config import KINDS
from services.router.scaling import ScaleSignal

SERVICE = "externalscaler.ExternalScaler"
METRIC = "headway_desired_replicas"


class KedaServicer(keda_pb2_grpc.ExternalScalerServicer):
    """Answers for one kind, which the trigger's metadata names."""

    def __init__(self, signal: ScaleSignal) -> None:
        self._signal = signal

    async def IsActive(self, request: keda_pb2.ScaledObjectRef, context: Any) -> keda_pb2.IsActiveResponse:
        kind = await self._kind(request, context)
        return keda_pb2.IsActiveResponse(result=self._signal.desired[kind] > 0)

    async def StreamIsActive(
        self, request: keda_pb2.ScaledObjectRef, context: Any
    ) -> AsyncIterator[keda_pb2.IsActiveResponse]:
        kind, told = await self._kind(request, context), None
        while True:
            changed = self._signal.changed
            if (active := self._signal.desired[kind] > 0) != told:
                told = active
                yield keda_pb2.IsActiveResponse(result=active)
            await changed.wait()

    async def GetMetricSpec(self, request: keda_pb2.ScaledObjectRef, context: Any) -> keda_pb2.GetMetricSpecResponse:
        await self._kind(request, context)
        spec = keda_pb2.MetricSpec(metricName=METRIC, targetSize=1, targetSizeFloat=1.0)
        return keda_pb2.GetMetricSpecResponse(metricSpecs=[spec])

    async def GetMetrics(self, request: keda_pb2.GetMetricsRequest, context: Any) -> keda_pb2.GetMetricsResponse:
        desired = self._signal.desired[await self._kind(request.scaledObjectRef, context)]
        value = keda_pb2.MetricValue(metricName=METRIC, metricValue=desired, metricValueFloat=desired)
        return keda_pb2.GetMetricsResponse(metricValues=[value])

    async def _kind(self, ref: keda_pb2.ScaledObjectRef, context: Any) -> common_pb2.Kind:
        """Aborts with INVALID_ARGUMENT where the kind is not one that this router has workers for."""
        kind = KINDS.get(ref.scalerMetadata.get("kind", ""))
        if kind is None or kind not in self._signal.desired:
            known = ", ".join(name for name, each in KINDS.items() if each in self._signal.desired)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"metadata: kind must be one of {known}")
            raise AssertionError("abort returns to nobody")
        return kind
