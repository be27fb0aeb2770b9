import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from headway.v1 import common_pb2 as _common_pb2
from headway.v1 import errors_pb2 as _errors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameChannel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_CHANNEL_UNSPECIFIED: _ClassVar[FrameChannel]
    FRAME_CHANNEL_COLOR: _ClassVar[FrameChannel]
    FRAME_CHANNEL_ALPHA: _ClassVar[FrameChannel]
    FRAME_CHANNEL_DEPTH: _ClassVar[FrameChannel]
    FRAME_CHANNEL_EXPECTED_DEPTH: _ClassVar[FrameChannel]

class VideoFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VIDEO_FORMAT_UNSPECIFIED: _ClassVar[VideoFormat]
    VIDEO_FORMAT_H264_MP4: _ClassVar[VideoFormat]
FRAME_CHANNEL_UNSPECIFIED: FrameChannel
FRAME_CHANNEL_COLOR: FrameChannel
FRAME_CHANNEL_ALPHA: FrameChannel
FRAME_CHANNEL_DEPTH: FrameChannel
FRAME_CHANNEL_EXPECTED_DEPTH: FrameChannel
VIDEO_FORMAT_UNSPECIFIED: VideoFormat
VIDEO_FORMAT_H264_MP4: VideoFormat

class Vector3(_message.Message):
    __slots__ = ("x", "y", "z")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    z: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ..., z: _Optional[float] = ...) -> None: ...

class MatrixCamera(_message.Message):
    __slots__ = ("viewmat", "k")
    VIEWMAT_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    viewmat: _containers.RepeatedScalarFieldContainer[float]
    k: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, viewmat: _Optional[_Iterable[float]] = ..., k: _Optional[_Iterable[float]] = ...) -> None: ...

class LookAtCamera(_message.Message):
    __slots__ = ("position", "target", "up", "field_of_view_deg")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    FIELD_OF_VIEW_DEG_FIELD_NUMBER: _ClassVar[int]
    position: Vector3
    target: Vector3
    up: Vector3
    field_of_view_deg: float
    def __init__(self, position: _Optional[_Union[Vector3, _Mapping]] = ..., target: _Optional[_Union[Vector3, _Mapping]] = ..., up: _Optional[_Union[Vector3, _Mapping]] = ..., field_of_view_deg: _Optional[float] = ...) -> None: ...

class Camera(_message.Message):
    __slots__ = ("matrices", "look_at")
    MATRICES_FIELD_NUMBER: _ClassVar[int]
    LOOK_AT_FIELD_NUMBER: _ClassVar[int]
    matrices: MatrixCamera
    look_at: LookAtCamera
    def __init__(self, matrices: _Optional[_Union[MatrixCamera, _Mapping]] = ..., look_at: _Optional[_Union[LookAtCamera, _Mapping]] = ...) -> None: ...

class Color(_message.Message):
    __slots__ = ("red", "green", "blue")
    RED_FIELD_NUMBER: _ClassVar[int]
    GREEN_FIELD_NUMBER: _ClassVar[int]
    BLUE_FIELD_NUMBER: _ClassVar[int]
    red: float
    green: float
    blue: float
    def __init__(self, red: _Optional[float] = ..., green: _Optional[float] = ..., blue: _Optional[float] = ...) -> None: ...

class FrameOptions(_message.Message):
    __slots__ = ("width", "height", "format", "encoding_quality", "background", "sh_degree", "channels", "antialiased", "crop")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_QUALITY_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    SH_DEGREE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    ANTIALIASED_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    format: _common_pb2.PixelFormat
    encoding_quality: int
    background: Color
    sh_degree: int
    channels: _containers.RepeatedScalarFieldContainer[FrameChannel]
    antialiased: bool
    crop: Crop
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., format: _Optional[_Union[_common_pb2.PixelFormat, str]] = ..., encoding_quality: _Optional[int] = ..., background: _Optional[_Union[Color, _Mapping]] = ..., sh_degree: _Optional[int] = ..., channels: _Optional[_Iterable[_Union[FrameChannel, str]]] = ..., antialiased: _Optional[bool] = ..., crop: _Optional[_Union[Crop, _Mapping]] = ...) -> None: ...

class Crop(_message.Message):
    __slots__ = ("left", "top", "width", "height")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    left: int
    top: int
    width: int
    height: int
    def __init__(self, left: _Optional[int] = ..., top: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class RenderRequest(_message.Message):
    __slots__ = ("scene", "camera", "options", "service_level")
    SCENE_FIELD_NUMBER: _ClassVar[int]
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    scene: str
    camera: Camera
    options: FrameOptions
    service_level: _common_pb2.ServiceLevel
    def __init__(self, scene: _Optional[str] = ..., camera: _Optional[_Union[Camera, _Mapping]] = ..., options: _Optional[_Union[FrameOptions, _Mapping]] = ..., service_level: _Optional[_Union[_common_pb2.ServiceLevel, _Mapping]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("data", "format", "width", "height", "rendered_width", "rendered_height", "gaussians")
    DATA_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RENDERED_WIDTH_FIELD_NUMBER: _ClassVar[int]
    RENDERED_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    GAUSSIANS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    format: _common_pb2.PixelFormat
    width: int
    height: int
    rendered_width: int
    rendered_height: int
    gaussians: int
    def __init__(self, data: _Optional[bytes] = ..., format: _Optional[_Union[_common_pb2.PixelFormat, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., rendered_width: _Optional[int] = ..., rendered_height: _Optional[int] = ..., gaussians: _Optional[int] = ...) -> None: ...

class RenderResponse(_message.Message):
    __slots__ = ("plan", "frame", "served")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    plan: _common_pb2.Plan
    frame: Frame
    served: _common_pb2.Served
    def __init__(self, plan: _Optional[_Union[_common_pb2.Plan, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., served: _Optional[_Union[_common_pb2.Served, _Mapping]] = ...) -> None: ...

class RenderPathRequest(_message.Message):
    __slots__ = ("scene", "cameras", "frames_between", "frames_per_second", "options", "service_level", "start_delay", "video", "first_frame", "video_frames_per_second")
    SCENE_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_BETWEEN_FIELD_NUMBER: _ClassVar[int]
    FRAMES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    START_DELAY_FIELD_NUMBER: _ClassVar[int]
    VIDEO_FIELD_NUMBER: _ClassVar[int]
    FIRST_FRAME_FIELD_NUMBER: _ClassVar[int]
    VIDEO_FRAMES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    scene: str
    cameras: _containers.RepeatedCompositeFieldContainer[Camera]
    frames_between: int
    frames_per_second: float
    options: FrameOptions
    service_level: _common_pb2.ServiceLevel
    start_delay: _duration_pb2.Duration
    video: VideoFormat
    first_frame: int
    video_frames_per_second: float
    def __init__(self, scene: _Optional[str] = ..., cameras: _Optional[_Iterable[_Union[Camera, _Mapping]]] = ..., frames_between: _Optional[int] = ..., frames_per_second: _Optional[float] = ..., options: _Optional[_Union[FrameOptions, _Mapping]] = ..., service_level: _Optional[_Union[_common_pb2.ServiceLevel, _Mapping]] = ..., start_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., video: _Optional[_Union[VideoFormat, str]] = ..., first_frame: _Optional[int] = ..., video_frames_per_second: _Optional[float] = ...) -> None: ...

class PathFrame(_message.Message):
    __slots__ = ("index", "frame", "served", "skipped")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    index: int
    frame: Frame
    served: _common_pb2.Served
    skipped: _errors_pb2.ErrorReason
    def __init__(self, index: _Optional[int] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., served: _Optional[_Union[_common_pb2.Served, _Mapping]] = ..., skipped: _Optional[_Union[_errors_pb2.ErrorReason, str]] = ...) -> None: ...

class RenderPathResponse(_message.Message):
    __slots__ = ("plan", "frame", "served", "video")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    VIDEO_FIELD_NUMBER: _ClassVar[int]
    plan: _common_pb2.Plan
    frame: PathFrame
    served: _common_pb2.Served
    video: bytes
    def __init__(self, plan: _Optional[_Union[_common_pb2.Plan, _Mapping]] = ..., frame: _Optional[_Union[PathFrame, _Mapping]] = ..., served: _Optional[_Union[_common_pb2.Served, _Mapping]] = ..., video: _Optional[bytes] = ...) -> None: ...

class ProgressiveFrame(_message.Message):
    __slots__ = ("index", "frame", "served")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    index: int
    frame: Frame
    served: _common_pb2.Served
    def __init__(self, index: _Optional[int] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., served: _Optional[_Union[_common_pb2.Served, _Mapping]] = ...) -> None: ...

class RenderProgressiveResponse(_message.Message):
    __slots__ = ("plan", "frame", "served")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    plan: _common_pb2.Plan
    frame: ProgressiveFrame
    served: _common_pb2.Served
    def __init__(self, plan: _Optional[_Union[_common_pb2.Plan, _Mapping]] = ..., frame: _Optional[_Union[ProgressiveFrame, _Mapping]] = ..., served: _Optional[_Union[_common_pb2.Served, _Mapping]] = ...) -> None: ...

class ListScenesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Scene(_message.Message):
    __slots__ = ("name", "hash", "gaussians", "sh_degree", "default_camera", "ladder", "dropped", "memory_bytes", "pinned", "evicted")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    GAUSSIANS_FIELD_NUMBER: _ClassVar[int]
    SH_DEGREE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_CAMERA_FIELD_NUMBER: _ClassVar[int]
    LADDER_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    hash: str
    gaussians: int
    sh_degree: int
    default_camera: LookAtCamera
    ladder: _common_pb2.Ladder
    dropped: int
    memory_bytes: int
    pinned: bool
    evicted: bool
    def __init__(self, name: _Optional[str] = ..., hash: _Optional[str] = ..., gaussians: _Optional[int] = ..., sh_degree: _Optional[int] = ..., default_camera: _Optional[_Union[LookAtCamera, _Mapping]] = ..., ladder: _Optional[_Union[_common_pb2.Ladder, _Mapping]] = ..., dropped: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., pinned: _Optional[bool] = ..., evicted: _Optional[bool] = ...) -> None: ...

class ListScenesResponse(_message.Message):
    __slots__ = ("scenes",)
    SCENES_FIELD_NUMBER: _ClassVar[int]
    scenes: _containers.RepeatedCompositeFieldContainer[Scene]
    def __init__(self, scenes: _Optional[_Iterable[_Union[Scene, _Mapping]]] = ...) -> None: ...

class LoadSceneRequest(_message.Message):
    __slots__ = ("scene", "pin")
    SCENE_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    scene: str
    pin: bool
    def __init__(self, scene: _Optional[str] = ..., pin: _Optional[bool] = ...) -> None: ...

class LoadSceneResponse(_message.Message):
    __slots__ = ("progress", "stage", "scene", "elapsed")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SCENE_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_FIELD_NUMBER: _ClassVar[int]
    progress: float
    stage: str
    scene: Scene
    elapsed: _duration_pb2.Duration
    def __init__(self, progress: _Optional[float] = ..., stage: _Optional[str] = ..., scene: _Optional[_Union[Scene, _Mapping]] = ..., elapsed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class UnloadSceneRequest(_message.Message):
    __slots__ = ("scene",)
    SCENE_FIELD_NUMBER: _ClassVar[int]
    scene: str
    def __init__(self, scene: _Optional[str] = ...) -> None: ...

class UnloadSceneResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
