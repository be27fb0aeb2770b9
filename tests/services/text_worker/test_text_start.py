"""The text worker's start and end: draining, broken checkpoints, bad settings."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from text_rig import MODEL, ask, refusal, served

from headway.config import ConfigError, read
from headway.server import StartError
from headway.v1 import worker_pb2, worker_pb2_grpc
from services.text_worker.config import TextWorkerConfig
from services.text_worker.hardware import why_not
from services.text_worker.model.families import load_architecture


async def test_draining_finishes_what_is_admitted_and_takes_nothing_new(tmp_path: Path) -> None:
    async with served(tmp_path, weights="bf16") as channel:
        answer = asyncio.create_task(ask(channel, max_tokens=60))
        async for state in worker_pb2_grpc.WorkerStub(channel).Watch(worker_pb2.WatchWorkerRequest(), timeout=20):
            if state.in_flight or answer.done():
                break
        await worker_pb2_grpc.WorkerStub(channel).Drain(worker_pb2.DrainRequest(), timeout=20)
        assert (await answer).reason == "LENGTH"
        assert (await refusal(channel)).reason_name == "DRAINING"


def broken(tmp_path: Path, file: str, content: bytes | None) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", None, "neither model.safetensors nor"),
        ("model.safetensors", b"\0" * 64, "model.safetensors: cannot be read"),
        ("tokenizer.json", None, "tokenizer.json: cannot be read"),
        ("config.json", b'{"architectures": ["MambaForCausalLM"]}', "MambaForCausalLM"),
        ("generation_config.json", b'{"eos_token_id": 9999}', "eos_token_id"),
    ],
)
async def test_a_broken_checkpoint_stops_the_start(file: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="model: ") as stopped:
        async with served(tmp_path, model=broken(tmp_path, file, content)):
            pass
    assert said in str(stopped.value)
    assert "\n" not in str(stopped.value)


async def test_a_context_over_the_models_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="context_tokens: 513 is over the model's 512"):
        async with served(tmp_path, context_tokens=513):
            pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
async def test_a_device_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="device: torch finds no CUDA device on this host"):
        async with served(tmp_path, device="cuda"):
            pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "int8"}, "weights int8 are served on a CPU alone"),
        ({"batch_invariant": True}, "batch_invariant is served on a CPU alone"),
        ({}, None),
        ({"weights": "bf16"}, None),
    ],
)
def test_what_no_gpu_serves_is_named(options: dict[str, Any], said: str | None) -> None:
    reason = why_not(TextWorkerConfig(model=MODEL, **options), load_architecture(MODEL), 512)
    assert (reason is None) if said is None else said in (reason or "")


@pytest.mark.parametrize(
    "flags", [["--model", "/nowhere"], ["--kv-memory-mb", "0"], ["--weights", "int3"], ["--device", "tpu"]]
)
async def test_a_bad_setting_names_its_flag(flags: list[str]) -> None:
    with pytest.raises(ConfigError, match=flags[0].removeprefix("--")):
        read(TextWorkerConfig, flags, prog="headway-text-worker", env={})
