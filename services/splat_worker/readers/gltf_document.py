"""The JSON of a glTF 2.0 file, as far as gaussians need it, parsed within limits; and where its buffers' bytes are."""

import base64
import binascii
import re
import struct
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headway.errors import BadInput

EXTENSION = "KHR_gaussian_splatting"
KNOWN_EXTENSIONS = frozenset({EXTENSION, "KHR_mesh_quantization"})
MAX_JSON_BYTES = 32 << 20
MAX_JSON_VALUES = 500_000
_GLB_MAGIC, _GLB_JSON, _GLB_BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_GLB_HEADER, _GLB_CHUNK = struct.Struct("<III"), struct.Struct("<II")
_DATA_URI = re.compile(r"data:application/(?:octet-stream|gltf-buffer);base64,", re.ASCII)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._()+-]{0,127}")
_SHOWN_PROBLEMS = 8

_Count = Annotated[int, Field(ge=0, le=1 << 40)]
_Index = Annotated[int, Field(ge=0, le=1 << 20)]
_Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Vector3 = tuple[_Number, _Number, _Number]
Vector4 = tuple[_Number, _Number, _Number, _Number]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Buffer(_Part):
    """Bytes: of a file beside this one, of a data URI, or (no uri, the first) of the .glb's binary chunk."""

    uri: str | None = None
    byteLength: _Count  # noqa: N815  the format's name, as all below


class BufferView(_Part):
    """A part of a buffer."""

    buffer: _Index
    byteOffset: _Count = 0  # noqa: N815
    byteLength: _Count  # noqa: N815
    byteStride: Annotated[int, Field(ge=4, le=252)] | None = None  # noqa: N815


class Accessor(_Part):
    """Typed elements in a view."""

    bufferView: _Index | None = None  # noqa: N815
    byteOffset: _Count = 0  # noqa: N815
    componentType: int  # noqa: N815
    normalized: bool = False
    count: Annotated[int, Field(ge=1, le=1 << 40)]
    type: str
    sparse: dict[str, object] | None = None


class Splatting(_Part):
    """The extension's object in a primitive."""

    kernel: str = "ellipse"
    colorSpace: str = "srgb_rec709_display"  # noqa: N815
    projection: str = "perspective"
    extensions: dict[str, object] = {}


class _Extensions(_Part):
    splatting: Splatting | None = Field(None, alias="KHR_gaussian_splatting")


class Primitive(_Part):
    """Points with attributes."""

    attributes: dict[str, _Index]
    mode: int = 4
    extensions: _Extensions = Field(default_factory=lambda: _Extensions.model_validate({}))


class Mesh(_Part):
    """Primitives that are placed together."""

    primitives: list[Primitive]


class Node(_Part):
    """A place in the scene: a matrix (column major), or translation, rotation (xyzw) and scale."""

    mesh: _Index | None = None
    children: list[_Index] = []
    matrix: Annotated[tuple[_Number, ...], Field(min_length=16, max_length=16)] | None = None
    translation: Vector3 = (0.0, 0.0, 0.0)
    rotation: Vector4 = (0.0, 0.0, 0.0, 1.0)
    scale: Vector3 = (1.0, 1.0, 1.0)


class _Asset(_Part):
    version: Annotated[str, Field(pattern=r"^2\.[0-9]+$")]


class _Scene(_Part):
    nodes: list[_Index] = []


class Document(_Part):
    """The file."""

    asset: _Asset
    extensionsRequired: list[str] = []  # noqa: N815
    scene: _Index | None = None
    scenes: list[_Scene] = []
    nodes: list[Node] = []
    meshes: list[Mesh]
    accessors: list[Accessor]
    bufferViews: list[BufferView]  # noqa: N815
    buffers: list[Buffer]


def read_document(path: Path, max_bytes: int) -> tuple[Document, list[memoryview]]:
    """The document and the bytes of its buffers, together at most `max_bytes`. Raises BadInput."""
    data = path.read_bytes()
    is_binary = path.suffix.lower() == ".glb"
    text, chunk = _split_glb(memoryview(data)) if is_binary else (memoryview(data), None)
    document = _parse(bytes(text))
    unknown = sorted(set(document.extensionsRequired) - KNOWN_EXTENSIONS)
    if unknown:
        raise BadInput("extensionsRequired", f"{', '.join(unknown)[:200]}; only {sorted(KNOWN_EXTENSIONS)} are known")
    claimed = sum(buffer.byteLength for buffer in document.buffers)
    if claimed > max_bytes:
        raise BadInput("buffers", f"{claimed} bytes together; the limit is {max_bytes}")
    return document, [_bytes_of(path, number, buffer, chunk) for number, buffer in enumerate(document.buffers)]


def _split_glb(data: memoryview) -> tuple[memoryview, memoryview | None]:
    """The JSON and, where there is one, the binary chunk."""
    if len(data) < _GLB_HEADER.size:
        raise BadInput("header", f"{len(data)} bytes; must be at least {_GLB_HEADER.size}")
    magic, version, length = _GLB_HEADER.unpack_from(data)
    if magic != _GLB_MAGIC or version != 2:
        raise BadInput("header.magic", f"0x{magic:08x}, version {version} at offset 0; must be 'glTF', version 2")
    if length != len(data):
        raise BadInput("header.length", f"{length} at offset 8, but the file has {len(data)} bytes")
    chunks, at = list[tuple[int, memoryview]](), _GLB_HEADER.size
    while at < length and len(chunks) < 2:
        if at + _GLB_CHUNK.size > length:
            raise BadInput("chunk", f"its header at offset {at} is cut off at {length}")
        size, kind = _GLB_CHUNK.unpack_from(data, at)
        start = at + _GLB_CHUNK.size
        if start + size > length:
            raise BadInput("chunk", f"{size} bytes from offset {start}, but the file has {length}")
        chunks.append((kind, data[start : start + size]))
        at = start + size
    if not chunks or chunks[0][0] != _GLB_JSON:
        raise BadInput("chunk", f"the first, at offset {_GLB_HEADER.size}, must be JSON")
    return chunks[0][1], chunks[1][1] if len(chunks) == 2 and chunks[1][0] == _GLB_BIN else None


def _parse(text: bytes) -> Document:
    if len(text) > MAX_JSON_BYTES:
        raise BadInput("json", f"{len(text)} bytes; the limit is {MAX_JSON_BYTES}: put buffers into .bin or .glb")
    values = text.count(b",") + text.count(b"[") + text.count(b"{")
    if values > MAX_JSON_VALUES:  # else a few megabytes of brackets become gigabytes of lists
        raise BadInput("json", f"about {values} values; the limit is {MAX_JSON_VALUES}")
    try:
        return Document.model_validate_json(text)
    except ValidationError as error:
        shown = error.errors(include_url=False, include_context=False, include_input=False)[:_SHOWN_PROBLEMS]
        raise BadInput({".".join(map(str, item["loc"])) or "json": item["msg"] for item in shown}) from None


def _bytes_of(path: Path, number: int, buffer: Buffer, chunk: memoryview | None) -> memoryview:
    field = f"buffers.{number}"
    if buffer.uri is None:
        data = chunk if number == 0 else None
        if data is None:
            raise BadInput(f"{field}.uri", "missing, and the file has no binary chunk for it")
    elif (head := _DATA_URI.match(buffer.uri)) is not None:
        data = _decoded(field, buffer.uri, head.end())
    else:
        data = _beside(path, field, buffer)
    if len(data) < buffer.byteLength:
        raise BadInput(f"{field}.byteLength", f"{buffer.byteLength}, but there are {len(data)} bytes")
    return data[: buffer.byteLength]


def _decoded(field: str, uri: str, start: int) -> memoryview:
    try:
        return memoryview(base64.b64decode(uri[start:], validate=True))
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"{field}.uri", f"is not base64: {error}") from None


def _beside(path: Path, field: str, buffer: Buffer) -> memoryview:
    """Of a file in the same folder: a name, never a path, and no link that leads elsewhere."""
    name = unquote(buffer.uri or "")
    if not _FILE_NAME.fullmatch(name):
        raise BadInput(f"{field}.uri", f"{name[:64]!r}; must be a data URI or the name of a file in the same folder")
    beside = path.parent / name
    if not beside.is_file() or beside.resolve().parent != path.parent.resolve():
        raise BadInput(f"{field}.uri", f"there is no file {name!r} in the same folder")
    with beside.open("rb") as file:
        return memoryview(file.read(buffer.byteLength))
