"""A diffusion transformer trained by TVM, whose step count the budget decides."""


def main() -> None:
    """The console script `headway-dit-worker`."""
    from headway.server import console_script

    console_script("services.dit_worker.main", program="headway-dit-worker", extra="dit")
