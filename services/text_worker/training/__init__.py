"""The recipe of the default text model: `python -m services.text_worker.training`."""
