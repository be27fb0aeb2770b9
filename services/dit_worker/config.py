"""Settings of the image worker."""

from pathlib import Path
from typing import Annotated, Literal

from headway.config import Address, OrOff, WorkerConfig, setting

MOST_IMAGES = 128
"""Most images in a request, by the contract."""

_REPOSITORY = Path(__file__).parents[2]
_CHECKOUT, _INSTALLED = _REPOSITORY / "models" / "dit-digits", _REPOSITORY / "headway" / "assets" / "dit-digits"


class DitWorkerConfig(WorkerConfig):
    """Headway's image worker: class-conditional images from a flow-map diffusion transformer, in 4, 2 or 1 steps."""

    listen: Address = setting(
        "127.0.0.1:50063", "address to serve gRPC on; port 0 picks a free one", group="Serving", unit="HOST:PORT"
    )
    model: Path = setting(
        _CHECKOUT if _CHECKOUT.is_dir() else _INSTALLED,
        "folder with config.json, card.json and model.safetensors",
        group="Model",
        unit="DIR",
    )
    max_images: int = setting(MOST_IMAGES, "most images in one request", group="Model", unit="N", ge=1, le=MOST_IMAGES)
    max_batch: Annotated[int | None, OrOff] = setting(
        None,
        "most images of several requests in one step; off: as many as still make an image cheaper, as measured",
        group="Model",
        unit="N",
        ge=1,
        le=1024,
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "where steps run; auto: on a GPU where there is one", group="Device", unit="NAME"
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = setting(
        "auto", "of the large matrices; auto: float32 on a CPU, float16 on a GPU", group="Device", unit="NAME"
    )
    threads: Annotated[int | None, OrOff] = setting(
        None, "threads that a step uses; off: as many as are measured to be quickest", group="Device", unit="N",
        ge=1, le=1024,
    )  # fmt: skip
