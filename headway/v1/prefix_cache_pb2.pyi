import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Block(_message.Message):
    __slots__ = ("hash", "payload")
    HASH_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    hash: bytes
    payload: bytes
    def __init__(self, hash: _Optional[bytes] = ..., payload: _Optional[bytes] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("hashes", "present_only")
    HASHES_FIELD_NUMBER: _ClassVar[int]
    PRESENT_ONLY_FIELD_NUMBER: _ClassVar[int]
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    present_only: bool
    def __init__(self, hashes: _Optional[_Iterable[bytes]] = ..., present_only: _Optional[bool] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("blocks", "present")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[Block]
    present: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, blocks: _Optional[_Iterable[_Union[Block, _Mapping]]] = ..., present: _Optional[_Iterable[bool]] = ...) -> None: ...

class StoreRequest(_message.Message):
    __slots__ = ("blocks", "ttl")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[Block]
    ttl: _duration_pb2.Duration
    def __init__(self, blocks: _Optional[_Iterable[_Union[Block, _Mapping]]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StoreResponse(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: int
    def __init__(self, stored: _Optional[int] = ...) -> None: ...

class PrefixEvent(_message.Message):
    __slots__ = ("token_chain", "chunk_chain", "removed", "tokens")
    TOKEN_CHAIN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_CHAIN_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_chain: bytes
    chunk_chain: _containers.RepeatedScalarFieldContainer[bytes]
    removed: bool
    tokens: int
    def __init__(self, token_chain: _Optional[bytes] = ..., chunk_chain: _Optional[_Iterable[bytes]] = ..., removed: _Optional[bool] = ..., tokens: _Optional[int] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("worker_id", "sequence", "snapshot", "events", "lease")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    sequence: int
    snapshot: bool
    events: _containers.RepeatedCompositeFieldContainer[PrefixEvent]
    lease: _duration_pb2.Duration
    def __init__(self, worker_id: _Optional[str] = ..., sequence: _Optional[int] = ..., snapshot: _Optional[bool] = ..., events: _Optional[_Iterable[_Union[PrefixEvent, _Mapping]]] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("need_snapshot",)
    NEED_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    need_snapshot: bool
    def __init__(self, need_snapshot: _Optional[bool] = ...) -> None: ...

class WatchPrefixesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchPrefixesResponse(_message.Message):
    __slots__ = ("report",)
    REPORT_FIELD_NUMBER: _ClassVar[int]
    report: PublishRequest
    def __init__(self, report: _Optional[_Union[PublishRequest, _Mapping]] = ...) -> None: ...

class GetResultRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    def __init__(self, key: _Optional[bytes] = ...) -> None: ...

class GetResultResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: StoredResult
    def __init__(self, result: _Optional[_Union[StoredResult, _Mapping]] = ...) -> None: ...

class StoredResult(_message.Message):
    __slots__ = ("messages", "quality")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedScalarFieldContainer[bytes]
    quality: float
    def __init__(self, messages: _Optional[_Iterable[bytes]] = ..., quality: _Optional[float] = ...) -> None: ...

class PutResultRequest(_message.Message):
    __slots__ = ("key", "result", "ttl")
    KEY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    result: StoredResult
    ttl: _duration_pb2.Duration
    def __init__(self, key: _Optional[bytes] = ..., result: _Optional[_Union[StoredResult, _Mapping]] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PutResultResponse(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: bool
    def __init__(self, stored: _Optional[bool] = ...) -> None: ...
