"""The recipe of the scene that ships with Headway: `python -m services.splat_worker.recipe --out models/scenes`."""
