"""The options that several commands share."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from headway.channels import Credentials, read_credentials
from headway.client import DEFAULT_ADDRESS, Headway

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)?")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}
_MOST_S = 3600.0


def parse_duration_s(text: str) -> float:
    """Seconds from "1.5", "1.5s", "800ms" or "2m". Raises `typer.BadParameter`."""
    match = _DURATION.fullmatch(str(text).strip())
    value_s = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
    if not 0 < value_s <= _MOST_S:
        raise typer.BadParameter(f"{text!r}: must be a time above 0 and up to an hour, such as 1.5, 1.5s or 800ms")
    return value_s


@dataclass(frozen=True)
class Server:
    """Where the mesh is, and who we are to it."""

    address: str
    ca: Path | None
    cert: Path | None
    key: Path | None
    api_key: Path | None

    def connect(self) -> Headway:
        """A client. Raises `typer.BadParameter` when a file cannot be read."""
        return Headway(self.address, self.credentials())

    def credentials(self) -> Credentials:
        """Who we are. Raises as `connect`."""
        try:
            return read_credentials(ca=self.ca, cert=self.cert, key=self.key, api_key=self.api_key)
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(str(error)) from error


Address = Annotated[
    str, typer.Option("--address", envvar="HEADWAY_ADDRESS", metavar="HOST:PORT", help="Router or worker to call.")
]
Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca", envvar="HEADWAY_CA", metavar="FILE", help="Server's authority (PEM): TLS.", rich_help_panel="Identity"
    ),
]
Cert = Annotated[
    Path | None, typer.Option("--cert", metavar="FILE", help="Client certificate (PEM).", rich_help_panel="Identity")
]
Key = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Its private key.", rich_help_panel="Identity")]
ApiKey = Annotated[
    Path | None,
    typer.Option(
        "--api-key", envvar="HEADWAY_API_KEY_FILE", metavar="FILE", help="File that holds the API key.",
        rich_help_panel="Identity",
    ),
]  # fmt: skip
Deadline = Annotated[
    float,
    typer.Option(
        "--deadline", "-d", parser=parse_duration_s, metavar="TIME",
        help="The budget: 1.5, 1.5s or 800ms. A shorter one buys lower quality.", rich_help_panel="Service level",
    ),
]  # fmt: skip
Priority = Annotated[
    str, typer.Option("--priority", help="low, normal or high: who gives way first.", rich_help_panel="Service level")
]
AtLeast = Annotated[
    str | None,
    typer.Option(
        "--at-least", metavar="MEASURE=VALUE", rich_help_panel="Service level",
        help="Least quality to accept: nfe=2, psnr_db=30, tokens=8 or normalised=0.9.",
    ),
]  # fmt: skip
Exact = Annotated[
    str | None,
    typer.Option("--exact", metavar="RUNG", help="This rung and no other.", rich_help_panel="Service level"),
]

__all__ = [
    "DEFAULT_ADDRESS",
    "Address",
    "ApiKey",
    "AtLeast",
    "Ca",
    "Cert",
    "Deadline",
    "Exact",
    "Key",
    "Priority",
    "Server",
    "parse_duration_s",
]
