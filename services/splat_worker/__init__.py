"""Frames of 3D Gaussian Splatting scenes."""


def main() -> None:
    """The console script `headway-splat-worker`."""
    from headway.server import console_script

    console_script("services.splat_worker.main", program="headway-splat-worker", extra="splat")
