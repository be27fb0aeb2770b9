"""Kernels run in Triton's interpreter, with every uninitialised buffer filled with NaN."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

# Triton's own library functions (tl.sum, tl.max) and ours are bound to the interpreter when they are imported, so
# that must happen here, at collection, before any test imports triton for itself. The variable does not outlive the
# import.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton"):
        import kernels.flash_attention.triton
        import kernels.flash_attention_jvp.triton_backward
        import kernels.paged_attention.triton  # noqa: F401


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For one test, ops on CPU tensors run their kernels, interpreted."""
    tl = pytest.importorskip("triton.language")
    assert type(tl.max).__name__ == "InterpretedFunction", (
        "triton was imported before tests/kernels: run them by themselves"
    )
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN: what a kernel leaves out shows
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton 3.6's interpreter does what numpy 2 deprecates; warnings are errors here, and that one is not ours."""
    for item in items:
        if "interpreter" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"))
