"""Settings of a service: flags over `HEADWAY_*` variables over a YAML file over the field's default.

A service subclasses `ServiceConfig`, adds fields made with `setting(...)` and calls `load`. Every field is at
once a flag (`--max-deadline-s`), a variable (`HEADWAY_MAX_DEADLINE_S`) and a YAML key (`max_deadline_s`).
What is wrong stops the start with one line per mistake: the field, where its value came from, its limit.
"""

import argparse
import difflib
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from headway.yaml_file import YamlFileError, read_mapping

Model = TypeVar("Model", bound=BaseModel)


_PASSWORD = re.compile(r"//[^/@\s]*@")


class ConfigError(ValueError):
    """Settings that must not start a service. `lines`: one readable line per mistake."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


def setting(default: object, description: str, *, group: str, unit: str = "VALUE", **limits: object) -> Any:
    """A field of a settings class: `unit` names the value in `--help`, `limits` are pydantic's (`ge=`)."""
    field: Any = Field
    return field(default, description=description, json_schema_extra={"group": group, "unit": unit}, **limits)


def check_address(value: str) -> str:
    """HOST:PORT with a port of 0 to 65535 (0: the system picks), or unix:PATH."""
    if value.startswith("unix:"):
        if len(value) == len("unix:"):
            raise ValueError("unix: needs a path")
        return value
    host, colon, port = value.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError("must be HOST:PORT with a port of 0 to 65535, or unix:PATH")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("an IPv6 host is written in brackets: [::1]:50050")
    return value


def _none_when_off(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in {"off", "none", ""} else value


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


OrOff = BeforeValidator(_none_when_off)
"""Lets a flag, a variable or YAML say "off" where None is meant: `Annotated[int | None, OrOff]`."""


def check_target(address: str) -> str:
    """An address to connect to: as one to listen on, but port 0 cannot be called. Raises ValueError."""
    try:
        check_address(address)
    except ValueError as error:
        raise ValueError(f"{address!r}: {error}") from None
    if not address.startswith("unix:") and int(address.rpartition(":")[2]) == 0:
        raise ValueError(f"{address!r}: port 0 cannot be called")
    return address


Address = Annotated[str, AfterValidator(check_address)]
Target = Annotated[str, AfterValidator(check_target)]
CommaList = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
Port = Annotated[int, Field(ge=0, le=65535)]
LogLevel = Literal["debug", "info", "warning", "error"]


class ServiceConfig(BaseModel):
    """One service of a Headway mesh."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Annotated[FilePath | None, OrOff] = setting(
        None, "YAML file with any of these settings", group="General", unit="FILE"
    )
    log_level: LogLevel = setting("info", "least severe message to log", group="General", unit="LEVEL")

    listen: Address = setting(
        "127.0.0.1:0", "address to serve gRPC on; port 0 picks a free one", group="Serving", unit="HOST:PORT"
    )
    max_deadline_s: float = setting(
        30.0, "budget of a call that brings no deadline, and the most that any call is given",
        group="Serving", unit="SECONDS", gt=0, le=3600, allow_inf_nan=False,
    )  # fmt: skip
    return_reserve_ms: float = setting(
        5.0, "part of every budget kept back to return the answer",
        group="Serving", unit="MS", ge=0, le=1000, allow_inf_nan=False,
    )  # fmt: skip
    drain_s: float = setting(
        10.0, "how long calls in flight may finish after SIGTERM",
        group="Serving", unit="SECONDS", ge=0, le=600, allow_inf_nan=False,
    )  # fmt: skip
    max_message_mib: int = setting(16, "largest message taken or sent", group="Serving", unit="MIB", ge=1, le=512)
    max_concurrent_rpcs: int = setting(
        1024, "calls served at once; more are refused", group="Serving", unit="N", ge=1, le=100_000
    )
    max_metadata_kib: int = setting(16, "most metadata a call may bring", group="Serving", unit="KIB", ge=4, le=64)

    tls_cert: Annotated[FilePath | None, OrOff] = setting(
        None,
        "certificate chain (PEM), read anew when it changes; turns TLS on, with --tls-key",
        group="Security",
        unit="FILE",
    )
    tls_key: Annotated[FilePath | None, OrOff] = setting(
        None, "private key (PEM) of --tls-cert", group="Security", unit="FILE"
    )
    tls_client_ca: Annotated[FilePath | None, OrOff] = setting(
        None,
        "authority (PEM) that must have signed client certificates: mutual TLS",
        group="Security",
        unit="FILE",
    )
    api_keys: Annotated[FilePath | None, OrOff] = setting(
        None,
        "YAML of tenant: [sha256 of key, or {sha256: ..., expires: 2027-01-31}, ...], read anew when it changes; "
        "without it every caller is one tenant",
        group="Security",
        unit="FILE",
    )

    operators: CommaList = setting(
        ("router",), "tenants that may drain a service, and load and unload scenes; without keys and certificates "
        "everybody may", group="Security", unit="TENANT,...",
    )  # fmt: skip
    debug_services: Literal["local", "always", "never"] = setting(
        "local", "when reflection and channelz are served; local: on loopback and Unix sockets only",
        group="Security", unit="WHEN",
    )  # fmt: skip

    metrics_port: Annotated[Port | None, OrOff] = setting(
        0,
        "port of the Prometheus endpoint; 0 picks a free one, off serves none",
        group="Telemetry",
        unit="PORT",
    )
    otlp_endpoint: Annotated[str | None, OrOff] = setting(
        None, "OTLP/gRPC collector for traces, e.g. http://127.0.0.1:4317", group="Telemetry", unit="URL",
        pattern=r"^https?://\S+$",
    )  # fmt: skip

    device_socket: Annotated[Path | None, OrOff] = setting(
        None, "socket of the device arbiter; without it steps take no lease", group="Device", unit="PATH"
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are set together or not at all")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self


class UpstreamConfig(ServiceConfig):
    """One service that calls others of the mesh."""

    upstream_ca: Annotated[FilePath | None, OrOff] = setting(
        None, "authority (PEM) of the certificates of the services that it calls; turns TLS to them on",
        group="Security", unit="FILE",
    )  # fmt: skip
    upstream_cert: Annotated[FilePath | None, OrOff] = setting(
        None, "certificate (PEM) to show them: mutual TLS", group="Security", unit="FILE"
    )
    upstream_key: Annotated[FilePath | None, OrOff] = setting(
        None, "private key (PEM) of --upstream-cert", group="Security", unit="FILE"
    )
    upstream_api_key: Annotated[FilePath | None, OrOff] = setting(
        None, "file with the API key to show them", group="Security", unit="FILE"
    )

    @model_validator(mode="after")
    def _upstream_is_whole(self) -> Self:
        if (self.upstream_cert is None) != (self.upstream_key is None):
            raise ValueError("upstream_cert and upstream_key are set together or not at all")
        if self.upstream_cert is not None and self.upstream_ca is None:
            raise ValueError("upstream_cert needs upstream_ca")
        return self


class WorkerConfig(ServiceConfig):
    """One worker of a Headway mesh."""

    default_target_s: float = setting(
        30.0, "when an answer is wanted by a caller who does not say; its deadline if that is earlier",
        group="Quality", unit="SECONDS", gt=0, le=3600, allow_inf_nan=False,
    )  # fmt: skip
    rung_quantile: float = setting(
        0.9, "rungs are chosen so that this share comes by its target", group="Quality", unit="SHARE", gt=0, lt=1
    )
    admission_quantile: float = setting(
        0.999, "work is admitted when this share comes by its deadline", group="Quality", unit="SHARE", gt=0, lt=1
    )
    failover_share: float = setting(
        0.5, "of the time that work may wait, beyond the first seconds, this share is kept free at admission, for "
        "answers that other workers lose", group="Quality", unit="SHARE", ge=0, lt=1,
    )  # fmt: skip
    lease_secret: Annotated[FilePath | None, OrOff] = setting(
        None, "file with the secret that the mesh's routers share with its workers, or several, a line each, of which "
        "all are good; read anew when it changes: work is then taken only with a router's lease, which names the "
        "tenant, or a key or certificate", group="Security", unit="FILE",
    )  # fmt: skip
    policy: str = setting(
        "headway", "who decides rungs: headway, or to compare: greedy, lowest, fixed:RUNG, threshold[:ANSWERS], "
        "fifo[:RUNG]", group="Quality", unit="NAME",
    )  # fmt: skip
    threads: Annotated[int | None, OrOff] = setting(
        None, "threads that a step uses; off: as many as there are cores", group="Device", unit="N", ge=1, le=1024
    )
    device_id: Annotated[str | None, OrOff] = setting(
        None, "name that all workers on one device share; off: made from the host", group="Device", unit="NAME"
    )
    cache_dir: Annotated[Path | None, OrOff] = setting(
        None, "where calibrations are kept between starts; off: the user's cache folder", group="Device", unit="DIR"
    )


@dataclass(frozen=True)
class _Given:
    """A value and where it came from, in words for an error."""

    value: object
    source: str


def load(model: type[Model], argv: Sequence[str], *, prog: str, env: Mapping[str, str] | None = None) -> Model:
    """Settings for the service `prog` from `argv` (without the program's name), `env` and a YAML file.

    Prints and exits with code 2 on a mistake (see `read`), with code 0 after `--help`.
    """
    try:
        return read(model, argv, prog=prog, env=os.environ if env is None else env)
    except ConfigError as error:
        for line in error.lines:
            print(f"{prog}: {line}", file=sys.stderr)
        raise SystemExit(2) from None


def read(model: type[Model], argv: Sequence[str], *, prog: str, env: Mapping[str, str]) -> Model:
    """As `load`, but raises `ConfigError`. Blocks on the YAML file and on checks that named files exist."""
    given = {**_from_env(model, env), **_from_flags(model, argv, prog)}
    path = given.get("config")
    if path is not None and _none_when_off(path.value) is not None:
        given = {**_from_file(model, path), **given}
    try:
        return model.model_validate({name: item.value for name, item in given.items()})
    except ValidationError as error:
        raise ConfigError(_explain(error, given)) from error


def _from_env(model: type[BaseModel], env: Mapping[str, str]) -> dict[str, _Given]:
    """Empty variables count as absent: compose files and shells pass them on unset."""
    found = {name: f"HEADWAY_{name.upper()}" for name in model.model_fields}
    return {name: _Given(env[key], f"environment {key}") for name, key in found.items() if env.get(key)}


def _from_flags(model: type[BaseModel], argv: Sequence[str], prog: str) -> dict[str, _Given]:
    parsed, rest = _parser(model, prog).parse_known_args(list(argv))
    if rest:
        raise ConfigError([_unknown(rest[0].split("=")[0], [_flag(name) for name in model.model_fields], "flag")])
    return {name: _Given(value, f"flag {_flag(name)}") for name, value in vars(parsed).items()}


def _from_file(model: type[BaseModel], path: _Given) -> dict[str, _Given]:
    try:
        loaded = read_mapping(Path(str(path.value)))
    except YamlFileError as error:
        raise ConfigError([f"config ({path.source}): {error}"]) from error
    names = set(model.model_fields) - {"config"}
    values = {key.replace("-", "_"): value for key, value in loaded.items()}
    wrong = [f"{path.value}: {_unknown(key, sorted(names), 'key')}" for key in values if key not in names]
    if wrong or len(values) != len(loaded):
        raise ConfigError(wrong or [f"{path.value}: the same key is spelled with - and with _"])
    return {key: _Given(value, f"{path.value}, key {key}") for key, value in values.items()}


def _explain(error: ValidationError, given: Mapping[str, _Given]) -> list[str]:
    return [
        _line(str(item["loc"][0]) if item["loc"] else None, item, given) for item in error.errors(include_url=False)
    ]


def _line(field: str | None, item: Mapping[str, Any], given: Mapping[str, _Given]) -> str:
    problem = item["msg"].removeprefix("Value error, ")
    if field is None:
        return str(problem)
    if field not in given:
        return f"{field}: {problem}"
    value = _PASSWORD.sub("//***@", repr(given[field].value))
    return f"{field} ({given[field].source}): {value if len(value) <= 80 else value[:77] + '...'}: {problem}"


def _unknown(word: str, known: Sequence[str], what: str) -> str:
    close = difflib.get_close_matches(word.replace("_", "-" if what == "flag" else "_"), known, n=1)
    return f"unknown {what} {word!r}" + (f"; did you mean {close[0]!r}?" if close else "; --help lists them all")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([message])


def _parser(model: type[BaseModel], prog: str) -> argparse.ArgumentParser:
    width = min(shutil.get_terminal_size().columns, 110)
    parser = _Parser(
        prog=prog, allow_abbrev=False, argument_default=argparse.SUPPRESS,
        description=(model.__doc__ or "").strip().split("\n\n")[0],
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=width),
        usage=f"{prog} [--setting VALUE ...]",
        epilog="Each setting may also be a HEADWAY_ variable (HEADWAY_LISTEN) or a key of the YAML file "
        "(listen). Flags win over variables, variables over the file.",
    )  # fmt: skip
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in model.model_fields.items():
        extra = cast(Mapping[str, str], field.json_schema_extra or {})
        title = extra.get("group", "General")
        group = groups.setdefault(title, parser.add_argument_group(title))
        _add_flag(group, name, field, extra)
    return parser


def _add_flag(group: argparse._ArgumentGroup, name: str, field: FieldInfo, extra: Mapping[str, str]) -> None:
    text = f"{field.description or ''} ({_limits(field)}default: {_shown(field)})".replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(_flag(name), dest=name, help=text, action=argparse.BooleanOptionalAction)
    else:
        group.add_argument(_flag(name), dest=name, help=text, metavar=extra.get("unit", "VALUE"))


def _limits(field: FieldInfo) -> str:
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    bounds = [
        f"{word} {getattr(m, sign):g}" for m in field.metadata for sign, word in signs.items() if hasattr(m, sign)
    ]
    choices = (
        getattr(field.annotation, "__args__", ()) if getattr(field.annotation, "__origin__", None) is Literal else ()
    )
    return "".join(f"{part}; " for part in [*bounds, " | ".join(choices)] if part)


def _shown(field: FieldInfo) -> str:
    if field.is_required():
        return "none, must be given"
    if isinstance(field.default, tuple):
        return ",".join(map(str, field.default)) or "empty"
    return "off" if field.default is None else str(field.default)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
