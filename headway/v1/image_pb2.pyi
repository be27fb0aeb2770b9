from headway.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateImagesRequest(_message.Message):
    __slots__ = ("model", "labels", "count", "seed", "guidance", "format", "encoding_quality", "previews", "service_level")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_QUALITY_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    labels: _containers.RepeatedScalarFieldContainer[int]
    count: int
    seed: int
    guidance: float
    format: _common_pb2.PixelFormat
    encoding_quality: int
    previews: bool
    service_level: _common_pb2.ServiceLevel
    def __init__(self, model: _Optional[str] = ..., labels: _Optional[_Iterable[int]] = ..., count: _Optional[int] = ..., seed: _Optional[int] = ..., guidance: _Optional[float] = ..., format: _Optional[_Union[_common_pb2.PixelFormat, str]] = ..., encoding_quality: _Optional[int] = ..., previews: _Optional[bool] = ..., service_level: _Optional[_Union[_common_pb2.ServiceLevel, _Mapping]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("index", "label", "data", "format", "width", "height", "channels", "nfe", "preview")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    NFE_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: int
    data: bytes
    format: _common_pb2.PixelFormat
    width: int
    height: int
    channels: int
    nfe: int
    preview: bool
    def __init__(self, index: _Optional[int] = ..., label: _Optional[int] = ..., data: _Optional[bytes] = ..., format: _Optional[_Union[_common_pb2.PixelFormat, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., channels: _Optional[int] = ..., nfe: _Optional[int] = ..., preview: _Optional[bool] = ...) -> None: ...

class ImagesSummary(_message.Message):
    __slots__ = ("served", "seed")
    SERVED_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    served: _common_pb2.Served
    seed: int
    def __init__(self, served: _Optional[_Union[_common_pb2.Served, _Mapping]] = ..., seed: _Optional[int] = ...) -> None: ...

class ImageBatch(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class GenerateImagesResponse(_message.Message):
    __slots__ = ("plan", "batch", "summary")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    plan: _common_pb2.Plan
    batch: ImageBatch
    summary: ImagesSummary
    def __init__(self, plan: _Optional[_Union[_common_pb2.Plan, _Mapping]] = ..., batch: _Optional[_Union[ImageBatch, _Mapping]] = ..., summary: _Optional[_Union[ImagesSummary, _Mapping]] = ...) -> None: ...

class ListImageModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ImageModel(_message.Message):
    __slots__ = ("name", "hash", "width", "height", "channels", "classes", "ladder")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LADDER_FIELD_NUMBER: _ClassVar[int]
    name: str
    hash: str
    width: int
    height: int
    channels: int
    classes: int
    ladder: _common_pb2.Ladder
    def __init__(self, name: _Optional[str] = ..., hash: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., channels: _Optional[int] = ..., classes: _Optional[int] = ..., ladder: _Optional[_Union[_common_pb2.Ladder, _Mapping]] = ...) -> None: ...

class ListImageModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ImageModel]
    def __init__(self, models: _Optional[_Iterable[_Union[ImageModel, _Mapping]]] = ...) -> None: ...
