"""The header of a PLY file, parsed strictly and with limits."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.errors import BadInput

MAX_HEADER_BYTES = 64 * 1024
MAX_PROPERTIES = 512
END = b"end_header\n"
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2",
    "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4",
    "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class Element:
    """One element of a PLY file; `offset` is its first byte in the file."""

    name: str
    count: int
    row: np.dtype[np.void]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.count * self.row.itemsize

    @property
    def fields(self) -> tuple[str, ...]:
        return self.row.names or ()


def parse_header(data: bytes | memoryview, file_bytes: int, max_rows: int) -> dict[str, Element]:
    """Elements by name, each proved to lie inside the file.

    `data` is the file's start. Raises BadInput naming the header line, element or property, and the byte
    offset.
    """
    head = bytes(data[:MAX_HEADER_BYTES])
    end = head.find(END)
    if not head.startswith(b"ply\n") or end < 0:
        raise BadInput("header", f"no 'ply' line or no 'end_header' line within the first {MAX_HEADER_BYTES} bytes")
    try:
        lines = head[:end].decode("ascii").split("\n")[1:-1]
    except UnicodeDecodeError as error:
        raise BadInput("header", f"byte that is not ASCII at offset {error.start}") from None
    return _place(_declared(lines), offset=end + len(END), file_bytes=file_bytes, max_rows=max_rows)


def _declared(lines: list[str]) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Name, count and properties of each element, as the lines say."""
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    formats = []
    for line in lines:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format":
            formats.append(" ".join(words[1:]))
        elif words[0] == "element" and len(words) == 3:
            elements.append((words[1], _count(words[1], words[2]), []))
        elif words[0] == "property" and len(words) == 3 and words[1] in _TYPES and elements:
            elements[-1][2].append((words[2], _TYPES[words[1]]))
        else:
            raise BadInput("header", f"cannot read the line '{line[:80]}'; only scalar properties are known")
    if formats != ["binary_little_endian 1.0"]:
        raise BadInput("header.format", f"{formats}; must be one 'binary_little_endian 1.0'")
    return elements


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise BadInput(f"element {name}", f"count '{text[:20]}'; must be a whole number of at most 12 digits")
    return int(text)


def _place(
    declared: list[tuple[str, int, list[tuple[str, str]]]], offset: int, file_bytes: int, max_rows: int
) -> dict[str, Element]:
    elements: dict[str, Element] = {}
    for name, count, properties in declared:
        names = [property_name for property_name, _ in properties]
        if name in elements or len(set(names)) != len(names) or not 1 <= len(names) <= MAX_PROPERTIES:
            raise BadInput(f"element {name}", f"named twice, or properties not unique or not 1 to {MAX_PROPERTIES}")
        if count > max_rows:
            raise BadInput(f"element {name}", f"count {count}; the limit is {max_rows}")
        element = Element(name, count, np.dtype(properties), offset)
        if element.end > file_bytes:
            raise BadInput(
                f"element {name}",
                f"{count} rows of {element.row.itemsize} bytes from offset {offset} end at {element.end}, "
                f"but the file has {file_bytes} bytes",
            )
        elements[name], offset = element, element.end
    return elements


def rows(data: memoryview, element: Element) -> npt.NDArray[np.void]:
    """The element's rows as a structured array over the file's bytes, without copying."""
    return np.frombuffer(data, dtype=element.row, count=element.count, offset=element.offset)
