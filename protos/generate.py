"""Generates `headway/v1` from the contracts, and checks that it is fresh and that every element is commented.

python protos/generate.py           write headway/v1
python protos/generate.py --check   change nothing; exit 1 and say what is stale or lacks a comment
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").rglob("*.proto"))
INCLUDES = [f"-I{ROOT / 'protos'}", f"-I{Path(protoc.__file__).parent / '_proto'}"]


def compile_to(target: Path) -> None:
    """Writes messages, type stubs and, for the files that hold a service, gRPC stubs under `target`."""
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *INCLUDES, *outputs, *SOURCES]) != 0:
        raise SystemExit("protoc failed")
    for source in SOURCES:
        if "\nservice " not in (ROOT / "protos" / source).read_text():
            (target / source.replace(".proto", "_pb2_grpc.py")).unlink()


def stale_files(fresh: Path) -> Iterator[str]:
    """Names every generated file that differs from what `protoc` makes now."""
    names = {path.name for path in (fresh / "headway/v1").iterdir()}
    present = {path.name for path in (ROOT / "headway/v1").glob("*_pb2*")}
    for name in sorted(names | present):
        new, old = fresh / "headway/v1" / name, ROOT / "headway/v1" / name
        if not (new.exists() and old.exists()) or new.read_bytes() != old.read_bytes():
            yield f"headway/v1/{name} is stale: run `make protos`"


def uncommented(fresh: Path) -> Iterator[str]:
    """Names every service, rpc, message, field, oneof, enum and value that has no leading comment."""
    out = fresh / "set.pb"
    if protoc.main(["protoc", *INCLUDES, "--include_source_info", f"-o{out}", *SOURCES]) != 0:
        raise SystemExit("protoc failed")
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    for file in files.file:
        commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
        for path, name in elements(file):
            if path not in commented:
                yield f"{file.name}: {name} has no comment"


def elements(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yields the source path (field numbers of descriptor.proto) and the name of each element of a file."""
    for index, message in enumerate(file.message_type):
        yield from message_elements((4, index), message, message.name)
    for index, enum in enumerate(file.enum_type):
        yield from enum_elements((5, index), enum, enum.name)
    for index, service in enumerate(file.service):
        yield (6, index), service.name
        for number, method in enumerate(service.method):
            yield (6, index, 2, number), f"{service.name}.{method.name}"


def message_elements(
    path: tuple[int, ...], message: descriptor_pb2.DescriptorProto, name: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, 2, index), f"{name}.{field.name}"
    for index, oneof in enumerate(message.oneof_decl):
        if not oneof.name.startswith("_"):  # the hidden oneof of an optional field
            yield (*path, 8, index), f"{name}.{oneof.name}"
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:  # the hidden message of a map field
            yield from message_elements((*path, 3, index), nested, f"{name}.{nested.name}")
    for index, enum in enumerate(message.enum_type):
        yield from enum_elements((*path, 4, index), enum, f"{name}.{enum.name}")


def enum_elements(
    path: tuple[int, ...], enum: descriptor_pb2.EnumDescriptorProto, name: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, 2, index), f"{name}.{value.name}"


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        with tempfile.TemporaryDirectory() as folder:
            compile_to(Path(folder))
            problems = [*stale_files(Path(folder)), *uncommented(Path(folder))]
        sys.exit("\n".join(problems) or 0)
    for old in (ROOT / "headway/v1").glob("*_pb2*"):
        old.unlink()
    compile_to(ROOT)


if __name__ == "__main__":
    main()
