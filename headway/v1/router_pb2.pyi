import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from headway.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerHealth(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_HEALTH_UNSPECIFIED: _ClassVar[WorkerHealth]
    WORKER_HEALTH_HEALTHY: _ClassVar[WorkerHealth]
    WORKER_HEALTH_DRAINING: _ClassVar[WorkerHealth]
    WORKER_HEALTH_LOST: _ClassVar[WorkerHealth]
    WORKER_HEALTH_EJECTED: _ClassVar[WorkerHealth]
WORKER_HEALTH_UNSPECIFIED: WorkerHealth
WORKER_HEALTH_HEALTHY: WorkerHealth
WORKER_HEALTH_DRAINING: WorkerHealth
WORKER_HEALTH_LOST: WorkerHealth
WORKER_HEALTH_EJECTED: WorkerHealth

class PickRequest(_message.Message):
    __slots__ = ("kind", "asset", "service_level", "items", "steps", "prompt_tokens", "pixels", "prompt")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ASSET_FIELD_NUMBER: _ClassVar[int]
    SERVICE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    kind: _common_pb2.Kind
    asset: str
    service_level: _common_pb2.ServiceLevel
    items: int
    steps: int
    prompt_tokens: int
    pixels: int
    prompt: bytes
    def __init__(self, kind: _Optional[_Union[_common_pb2.Kind, str]] = ..., asset: _Optional[str] = ..., service_level: _Optional[_Union[_common_pb2.ServiceLevel, _Mapping]] = ..., items: _Optional[int] = ..., steps: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., pixels: _Optional[int] = ..., prompt: _Optional[bytes] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("address", "worker_id", "predicted_p50_ms", "predicted_p99_ms", "rung")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_P50_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_P99_MS_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    address: str
    worker_id: str
    predicted_p50_ms: float
    predicted_p99_ms: float
    rung: _common_pb2.Rung
    def __init__(self, address: _Optional[str] = ..., worker_id: _Optional[str] = ..., predicted_p50_ms: _Optional[float] = ..., predicted_p99_ms: _Optional[float] = ..., rung: _Optional[_Union[_common_pb2.Rung, _Mapping]] = ...) -> None: ...

class PickResponse(_message.Message):
    __slots__ = ("candidates", "lease", "lease_ttl")
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    lease: bytes
    lease_ttl: _duration_pb2.Duration
    def __init__(self, candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., lease: _Optional[bytes] = ..., lease_ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LeaseClaims(_message.Message):
    __slots__ = ("tenant", "worker_ids", "expires_unix_ms", "nonce")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    expires_unix_ms: int
    nonce: bytes
    def __init__(self, tenant: _Optional[str] = ..., worker_ids: _Optional[_Iterable[str]] = ..., expires_unix_ms: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerEntry(_message.Message):
    __slots__ = ("address", "worker_id", "kind", "health", "detail", "backlog_ms", "in_flight", "assets", "device_id", "engine", "report_age_ms")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_MS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    ASSETS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    REPORT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    address: str
    worker_id: str
    kind: _common_pb2.Kind
    health: WorkerHealth
    detail: str
    backlog_ms: float
    in_flight: int
    assets: _containers.RepeatedScalarFieldContainer[str]
    device_id: str
    engine: str
    report_age_ms: float
    def __init__(self, address: _Optional[str] = ..., worker_id: _Optional[str] = ..., kind: _Optional[_Union[_common_pb2.Kind, str]] = ..., health: _Optional[_Union[WorkerHealth, str]] = ..., detail: _Optional[str] = ..., backlog_ms: _Optional[float] = ..., in_flight: _Optional[int] = ..., assets: _Optional[_Iterable[str]] = ..., device_id: _Optional[str] = ..., engine: _Optional[str] = ..., report_age_ms: _Optional[float] = ...) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers", "prefix_cache_reachable")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_REACHABLE_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerEntry]
    prefix_cache_reachable: bool
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerEntry, _Mapping]]] = ..., prefix_cache_reachable: _Optional[bool] = ...) -> None: ...

class DrainRouterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRouterResponse(_message.Message):
    __slots__ = ("finished",)
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    finished: int
    def __init__(self, finished: _Optional[int] = ...) -> None: ...
