"""Read the YAML files an operator writes (settings, API keys) and refuse what cannot be meant."""

from collections.abc import Hashable
from pathlib import Path

import yaml

MAX_YAML_BYTES = 1 << 20


class YamlFileError(ValueError):
    """The file cannot be read, is too large, is no YAML or not one mapping. The message is one line."""


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (a few bytes of them can stand for gigabytes) and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, object]:
    """The one mapping in `path`; an empty file is an empty mapping. Blocks. Raises `YamlFileError`."""
    text = _text(path)
    try:
        loaded = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise YamlFileError(f"{path}: not YAML: {_where(error)}") from error
    except ValueError as error:  # what looks like a date and is none
        raise YamlFileError(f"{path}: {error}") from error
    except RecursionError as error:
        raise YamlFileError(f"{path}: nested too deeply") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise YamlFileError(f"{path}: must hold one mapping of names to values")
    return loaded


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise YamlFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_YAML_BYTES:
        raise YamlFileError(f"{path}: larger than {MAX_YAML_BYTES} bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise YamlFileError(f"{path}: not UTF-8 text") from error


def _where(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    return f"line {error.problem_mark.line + 1}: {error.problem}"
