"""What `headway scene` runs as a process of its own, so that the command line needs none of the worker's libraries."""

from headway.server import console_script

if __name__ == "__main__":
    console_script("services.splat_worker.scene_cli", program="headway scene", extra="splat")
