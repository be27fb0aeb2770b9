"""`python -m headway.device --socket PATH`: the arbiter of one device, until SIGTERM or SIGINT."""

import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvloop
from pydantic import BaseModel, ConfigDict

from headway.config import LogLevel, load, setting
from headway.device.arbiter import ArbiterError, DeviceArbiter


class ArbiterConfig(BaseModel):
    """The device arbiter: lets the workers of one device run one step at a time, the most urgent first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    socket: Path = setting(..., "where to listen; its folder must exist", group="Arbiter", unit="PATH")
    stuck_s: float = setting(
        5.0, "hold time after which a lease is logged", group="Arbiter", unit="SECONDS", gt=0, le=3600
    )
    log_level: LogLevel = setting("info", "least severe message to log", group="General", unit="LEVEL")


async def _serve(config: ArbiterConfig) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    async with DeviceArbiter(config.socket, stuck_s=config.stuck_s) as arbiter:
        logging.info("device arbiter on %s", config.socket)
        await stop.wait()
        logging.info("device arbiter ends after %s", arbiter.stats)


def main() -> None:
    """Runs until told to stop. Leaves with code 2 when the socket cannot be had."""
    config = load(ArbiterConfig, sys.argv[1:], prog="headway-device")
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")
    try:
        uvloop.run(_serve(config))
    except ArbiterError as error:
        print(f"headway-device: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
