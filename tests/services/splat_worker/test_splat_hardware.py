"""Which device frames are drawn on: what each setting takes, and what stops a start."""

import logging
import shutil
import sys

import pytest
import torch
from splat_rig import worker

from benchmarks.gsplat_reference import without_cuda
from headway.config import ConfigError, read
from headway.server import StartError
from services.splat_worker import hardware
from services.splat_worker.config import SplatWorkerConfig
from services.splat_worker.cpu_renderer import CpuRenderer

HAS_CUDA = torch.cuda.is_available()
CPU = torch.device("cpu")


def taken(device: str, threads: int = 1) -> tuple[str, str, int]:
    renderer = hardware.renderers(device, threads)()
    renderer.close()
    return renderer.engine, renderer.device, renderer.threads


def test_the_cpu_is_taken_when_it_is_asked_for() -> None:
    assert isinstance(hardware.renderers("cpu", 1)(), CpuRenderer)
    assert taken("cpu", 2) == ("numba-cpu", "cpu", 2)


@pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device")
def test_auto_takes_the_cpu_where_there_is_no_cuda_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert taken("auto") == ("numba-cpu", "cpu", 1)
    assert "frames are drawn on the CPU: " in caplog.text


@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
def test_auto_takes_cuda_where_there_is_some() -> None:
    assert taken("auto")[:2] == ("gsplat-cuda", "cuda:0")


@pytest.mark.parametrize("missing", ["torch", "gsplat"])
def test_cuda_without_a_package_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(StartError, match=rf"^device: cuda needs {missing}.*pip install 'headway\[splat-cuda\]'"):
        hardware.renderers("cuda", 1)
    assert taken("auto")[0] == "numba-cpu"


def test_cuda_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_DRIVER", "libno-such-driver.so.1")
    with pytest.raises(StartError, match=r"^device: .*driver.*libno-such-driver"):
        hardware.renderers("cuda", 1)


@pytest.mark.skipif(shutil.which("nvcc") is not None, reason="gsplat would compile its kernels, for minutes")
def test_kernels_that_do_not_run_are_found_before_anything_is_served() -> None:
    found = hardware.broken_kernels(CPU)  # gsplat has none for a CPU
    assert found is not None and found.startswith("gsplat's CUDA kernels do not run (")


def test_kernels_that_draw_other_pixels_are_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import gsplat

    with without_cuda():
        assert hardware.broken_kernels(CPU) is None
        shade = gsplat.spherical_harmonics
        monkeypatch.setattr(gsplat, "spherical_harmonics", lambda *args, **masks: 1.2 * shade(*args, **masks))
        found = hardware.broken_kernels(CPU)
    assert found is not None and "other pixels" in found


def test_the_setting_is_checked() -> None:
    assert read(SplatWorkerConfig, ["--device", "cpu"], prog="test", env={}).device == "cpu"
    with pytest.raises(ConfigError, match=r"^device \(flag --device\): 'tpu'.*'auto', 'cpu' or 'cuda'"):
        read(SplatWorkerConfig, ["--device", "tpu"], prog="test", env={})


@pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device")
async def test_cuda_that_is_not_there_stops_the_start(tmp_path) -> None:
    with pytest.raises(StartError, match=r"^device: "):
        async with worker(device="cuda", cache_dir=tmp_path):
            pass
