"""Language models of several families, tokens streamed."""


def main() -> None:
    """The console script `headway-text-worker`."""
    from headway.server import console_script

    console_script("services.text_worker.main", program="headway-text-worker", extra="text")
