import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_TEXT: _ClassVar[Kind]
    KIND_IMAGE: _ClassVar[Kind]
    KIND_SPLAT: _ClassVar[Kind]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]

class RungReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUNG_REASON_UNSPECIFIED: _ClassVar[RungReason]
    RUNG_REASON_BEST_FIT: _ClassVar[RungReason]
    RUNG_REASON_QUEUE_PRESSURE: _ClassVar[RungReason]
    RUNG_REASON_REPLANNED_LATE: _ClassVar[RungReason]
    RUNG_REASON_FLOOR: _ClassVar[RungReason]
    RUNG_REASON_EXACT: _ClassVar[RungReason]
    RUNG_REASON_CACHED: _ClassVar[RungReason]
    RUNG_REASON_POLICY: _ClassVar[RungReason]

class PixelFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PIXEL_FORMAT_UNSPECIFIED: _ClassVar[PixelFormat]
    PIXEL_FORMAT_PNG: _ClassVar[PixelFormat]
    PIXEL_FORMAT_JPEG: _ClassVar[PixelFormat]
    PIXEL_FORMAT_WEBP: _ClassVar[PixelFormat]
    PIXEL_FORMAT_RAW: _ClassVar[PixelFormat]
    PIXEL_FORMAT_FLOAT32: _ClassVar[PixelFormat]
KIND_UNSPECIFIED: Kind
KIND_TEXT: Kind
KIND_IMAGE: Kind
KIND_SPLAT: Kind
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LOW: Priority
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority
RUNG_REASON_UNSPECIFIED: RungReason
RUNG_REASON_BEST_FIT: RungReason
RUNG_REASON_QUEUE_PRESSURE: RungReason
RUNG_REASON_REPLANNED_LATE: RungReason
RUNG_REASON_FLOOR: RungReason
RUNG_REASON_EXACT: RungReason
RUNG_REASON_CACHED: RungReason
RUNG_REASON_POLICY: RungReason
PIXEL_FORMAT_UNSPECIFIED: PixelFormat
PIXEL_FORMAT_PNG: PixelFormat
PIXEL_FORMAT_JPEG: PixelFormat
PIXEL_FORMAT_WEBP: PixelFormat
PIXEL_FORMAT_RAW: PixelFormat
PIXEL_FORMAT_FLOAT32: PixelFormat

class BestEffort(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class QualityFloor(_message.Message):
    __slots__ = ("nfe", "psnr_db", "tokens", "normalised")
    NFE_FIELD_NUMBER: _ClassVar[int]
    PSNR_DB_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NORMALISED_FIELD_NUMBER: _ClassVar[int]
    nfe: int
    psnr_db: float
    tokens: int
    normalised: float
    def __init__(self, nfe: _Optional[int] = ..., psnr_db: _Optional[float] = ..., tokens: _Optional[int] = ..., normalised: _Optional[float] = ...) -> None: ...

class ServiceLevel(_message.Message):
    __slots__ = ("priority", "best_effort", "at_least", "exact", "target", "first_token_target", "per_token_target")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    BEST_EFFORT_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_TARGET_FIELD_NUMBER: _ClassVar[int]
    PER_TOKEN_TARGET_FIELD_NUMBER: _ClassVar[int]
    priority: Priority
    best_effort: BestEffort
    at_least: QualityFloor
    exact: str
    target: _duration_pb2.Duration
    first_token_target: _duration_pb2.Duration
    per_token_target: _duration_pb2.Duration
    def __init__(self, priority: _Optional[_Union[Priority, str]] = ..., best_effort: _Optional[_Union[BestEffort, _Mapping]] = ..., at_least: _Optional[_Union[QualityFloor, _Mapping]] = ..., exact: _Optional[str] = ..., target: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., first_token_target: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., per_token_target: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Rung(_message.Message):
    __slots__ = ("label", "quality", "nfe", "psnr_db", "token_share", "gaussian_share", "resolution_scale", "dfd", "ssim")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    NFE_FIELD_NUMBER: _ClassVar[int]
    PSNR_DB_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SHARE_FIELD_NUMBER: _ClassVar[int]
    GAUSSIAN_SHARE_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_SCALE_FIELD_NUMBER: _ClassVar[int]
    DFD_FIELD_NUMBER: _ClassVar[int]
    SSIM_FIELD_NUMBER: _ClassVar[int]
    label: str
    quality: float
    nfe: int
    psnr_db: float
    token_share: float
    gaussian_share: float
    resolution_scale: float
    dfd: float
    ssim: float
    def __init__(self, label: _Optional[str] = ..., quality: _Optional[float] = ..., nfe: _Optional[int] = ..., psnr_db: _Optional[float] = ..., token_share: _Optional[float] = ..., gaussian_share: _Optional[float] = ..., resolution_scale: _Optional[float] = ..., dfd: _Optional[float] = ..., ssim: _Optional[float] = ...) -> None: ...

class Ladder(_message.Message):
    __slots__ = ("rungs",)
    RUNGS_FIELD_NUMBER: _ClassVar[int]
    rungs: _containers.RepeatedCompositeFieldContainer[Rung]
    def __init__(self, rungs: _Optional[_Iterable[_Union[Rung, _Mapping]]] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("rung", "reason", "steps", "budget_ms", "predicted_p50_ms", "predicted_p99_ms", "worker_id")
    RUNG_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_P50_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_P99_MS_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    rung: Rung
    reason: RungReason
    steps: int
    budget_ms: float
    predicted_p50_ms: float
    predicted_p99_ms: float
    worker_id: str
    def __init__(self, rung: _Optional[_Union[Rung, _Mapping]] = ..., reason: _Optional[_Union[RungReason, str]] = ..., steps: _Optional[int] = ..., budget_ms: _Optional[float] = ..., predicted_p50_ms: _Optional[float] = ..., predicted_p99_ms: _Optional[float] = ..., worker_id: _Optional[str] = ...) -> None: ...

class StageTime(_message.Message):
    __slots__ = ("stage", "predicted_ms", "actual_ms")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_MS_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_MS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    predicted_ms: float
    actual_ms: float
    def __init__(self, stage: _Optional[str] = ..., predicted_ms: _Optional[float] = ..., actual_ms: _Optional[float] = ...) -> None: ...

class Served(_message.Message):
    __slots__ = ("rung", "quality", "reason", "steps_planned", "steps_executed", "stages", "budget_ms", "slack_ms", "worker_id", "cached_tokens", "attempts", "asset_hash")
    RUNG_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STEPS_PLANNED_FIELD_NUMBER: _ClassVar[int]
    STEPS_EXECUTED_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    SLACK_MS_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ASSET_HASH_FIELD_NUMBER: _ClassVar[int]
    rung: Rung
    quality: float
    reason: RungReason
    steps_planned: int
    steps_executed: int
    stages: _containers.RepeatedCompositeFieldContainer[StageTime]
    budget_ms: float
    slack_ms: float
    worker_id: str
    cached_tokens: int
    attempts: int
    asset_hash: str
    def __init__(self, rung: _Optional[_Union[Rung, _Mapping]] = ..., quality: _Optional[float] = ..., reason: _Optional[_Union[RungReason, str]] = ..., steps_planned: _Optional[int] = ..., steps_executed: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ..., budget_ms: _Optional[float] = ..., slack_ms: _Optional[float] = ..., worker_id: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., attempts: _Optional[int] = ..., asset_hash: _Optional[str] = ...) -> None: ...
