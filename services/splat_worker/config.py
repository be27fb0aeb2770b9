"""Settings of the splat worker."""

from pathlib import Path
from typing import Literal

from headway.config import Address, WorkerConfig, setting

_REPOSITORY = Path(__file__).parents[2]
_CHECKOUT, _INSTALLED = _REPOSITORY / "models" / "scenes", _REPOSITORY / "headway" / "assets" / "scenes"


class SplatWorkerConfig(WorkerConfig):
    """Headway's splat worker: frames of 3D gaussian splatting scenes, at the level and resolution that the budget
    buys."""

    listen: Address = setting(
        "127.0.0.1:50062", "address to serve gRPC on; port 0 picks a free one", group="Serving", unit="HOST:PORT"
    )
    scenes: Path = setting(
        _CHECKOUT if _CHECKOUT.is_dir() else _INSTALLED,
        "folder of scene files (.ply, .spz, .sog, .splat, .ksplat, .glb, .gltf), followed while the worker runs; a "
        "file's name is its scene's",
        group="Scenes",
        unit="DIR",
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto",
        "where frames are drawn; cuda: through gsplat; auto: so where it can be, and said in the log",
        group="Device",
        unit="NAME",
    )
    max_gaussians: int = setting(
        5_000_000,
        "most gaussians in a scene; larger ones are not loaded",
        group="Scenes",
        unit="N",
        ge=1,
        le=50_000_000,
    )
    max_file_mib: int = setting(2048, "largest scene file that is read", group="Scenes", unit="MIB", ge=1, le=65_536)
    max_scenes: int = setting(32, "most scenes in the folder", group="Scenes", unit="N", ge=1, le=1024)
    scene_memory_mb: int = setting(
        4096,
        "memory for loaded scenes, on the host and as much again on a GPU; beyond it those not used for longest are "
        "evicted, and load again when asked for",
        group="Scenes",
        unit="MB",
        ge=1,
        le=16_777_216,
    )
    scene_poll_s: float = setting(
        2.0, "how often the scene folder is looked at; a file counts once two looks saw it alike", group="Scenes",
        unit="SECONDS", ge=0.05, le=3600, allow_inf_nan=False,
    )  # fmt: skip
