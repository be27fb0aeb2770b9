"""Settings of the image worker."""

from pathlib import Path

from headway.config import Address, WorkerConfig, setting

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
    max_batch: int = setting(
        128, "most images in one step; larger requests are refused", group="Model", unit="N", ge=1, le=1024
    )

    @property
    def images_limit(self) -> int:
        """A request's images go through one step together, so both limits bind."""
        return min(self.max_images, self.max_batch)
