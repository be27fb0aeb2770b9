import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from headway.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Asset(_message.Message):
    __slots__ = ("name", "hash", "ladder")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    LADDER_FIELD_NUMBER: _ClassVar[int]
    name: str
    hash: str
    ladder: _common_pb2.Ladder
    def __init__(self, name: _Optional[str] = ..., hash: _Optional[str] = ..., ladder: _Optional[_Union[_common_pb2.Ladder, _Mapping]] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("worker_id", "kind", "assets", "engine", "device", "device_id", "precision", "version", "threads", "policy", "assets_version")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ASSETS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ASSETS_VERSION_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    kind: _common_pb2.Kind
    assets: _containers.RepeatedCompositeFieldContainer[Asset]
    engine: str
    device: str
    device_id: str
    precision: str
    version: str
    threads: int
    policy: str
    assets_version: int
    def __init__(self, worker_id: _Optional[str] = ..., kind: _Optional[_Union[_common_pb2.Kind, str]] = ..., assets: _Optional[_Iterable[_Union[Asset, _Mapping]]] = ..., engine: _Optional[str] = ..., device: _Optional[str] = ..., device_id: _Optional[str] = ..., precision: _Optional[str] = ..., version: _Optional[str] = ..., threads: _Optional[int] = ..., policy: _Optional[str] = ..., assets_version: _Optional[int] = ...) -> None: ...

class WatchWorkerRequest(_message.Message):
    __slots__ = ("min_interval",)
    MIN_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    min_interval: _duration_pb2.Duration
    def __init__(self, min_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StepCost(_message.Message):
    __slots__ = ("asset_hash", "rung", "batch", "mean_ms", "var_ms2")
    ASSET_HASH_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    MEAN_MS_FIELD_NUMBER: _ClassVar[int]
    VAR_MS2_FIELD_NUMBER: _ClassVar[int]
    asset_hash: str
    rung: str
    batch: int
    mean_ms: float
    var_ms2: float
    def __init__(self, asset_hash: _Optional[str] = ..., rung: _Optional[str] = ..., batch: _Optional[int] = ..., mean_ms: _Optional[float] = ..., var_ms2: _Optional[float] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("due_in_ms", "items", "steps_left", "setup_mean_ms", "setup_var_ms2", "priority")
    DUE_IN_MS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    STEPS_LEFT_FIELD_NUMBER: _ClassVar[int]
    SETUP_MEAN_MS_FIELD_NUMBER: _ClassVar[int]
    SETUP_VAR_MS2_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    due_in_ms: float
    items: int
    steps_left: int
    setup_mean_ms: float
    setup_var_ms2: float
    priority: _common_pb2.Priority
    def __init__(self, due_in_ms: _Optional[float] = ..., items: _Optional[int] = ..., steps_left: _Optional[int] = ..., setup_mean_ms: _Optional[float] = ..., setup_var_ms2: _Optional[float] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ...) -> None: ...

class WorkerState(_message.Message):
    __slots__ = ("worker_id", "sequence", "step_costs", "loads", "in_flight", "queued_prefill_tokens", "free_kv_blocks", "total_kv_blocks", "device_id", "draining", "backlog_ms", "max_batch", "prefill_token_ms", "assets_version", "kept_kv_ms")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STEP_COSTS_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    ASSETS_VERSION_FIELD_NUMBER: _ClassVar[int]
    KEPT_KV_MS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    sequence: int
    step_costs: _containers.RepeatedCompositeFieldContainer[StepCost]
    loads: _containers.RepeatedCompositeFieldContainer[Load]
    in_flight: int
    queued_prefill_tokens: int
    free_kv_blocks: int
    total_kv_blocks: int
    device_id: str
    draining: bool
    backlog_ms: float
    max_batch: int
    prefill_token_ms: float
    assets_version: int
    kept_kv_ms: float
    def __init__(self, worker_id: _Optional[str] = ..., sequence: _Optional[int] = ..., step_costs: _Optional[_Iterable[_Union[StepCost, _Mapping]]] = ..., loads: _Optional[_Iterable[_Union[Load, _Mapping]]] = ..., in_flight: _Optional[int] = ..., queued_prefill_tokens: _Optional[int] = ..., free_kv_blocks: _Optional[int] = ..., total_kv_blocks: _Optional[int] = ..., device_id: _Optional[str] = ..., draining: _Optional[bool] = ..., backlog_ms: _Optional[float] = ..., max_batch: _Optional[int] = ..., prefill_token_ms: _Optional[float] = ..., assets_version: _Optional[int] = ..., kept_kv_ms: _Optional[float] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("finished",)
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    finished: int
    def __init__(self, finished: _Optional[int] = ...) -> None: ...
