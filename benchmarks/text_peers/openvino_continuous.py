"""OpenVINO GenAI's continuous batching: a contender of `benchmarks.text`, in its own process.

Reads a task as JSON from standard input and prints what it measured. The checkpoint is written as GGUF in F16, all else
is as OpenVINO chooses; prefixes are shared, and each run begins its prompts with a token of its own, so that no run
profits from one before it.
"""

import json
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from gguf_file import write_gguf

CACHE_GB, CHUNK_TOKENS = 1, 512


def load(checkpoint: Path, threads: int) -> Any:
    """The engine, ready for requests."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.max_num_batched_tokens = CHUNK_TOKENS
    scheduler.enable_prefix_caching = True
    if threads < 2:
        raise SystemExit("OpenVINO 2026.4 divides by zero with one thread: use two")
    return openvino_genai.ContinuousBatchingPipeline(
        str(write_gguf(checkpoint)), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
    )


def run(engine: Any, prompts: list[list[int]], new_tokens: list[int], first: int | None) -> dict[str, Any]:
    """All requests at once; `first` takes the place of every prompt's first token."""
    start_s = time.monotonic()
    handles = [
        engine.add_request(number, _ids(prompt if first is None else [first, *prompt[1:]]), _exactly(count))
        for number, (prompt, count) in enumerate(zip(prompts, new_tokens, strict=True))
    ]
    times, tokens = [list[float]() for _ in handles], [list[int]() for _ in handles]
    while engine.has_non_finished_requests():
        engine.step()
        now_s = time.monotonic() - start_s
        for number, handle in enumerate(handles):
            if handle.can_read():
                new = [token for output in handle.read().values() for token in output.generated_ids]
                tokens[number] += new
                times[number] += [now_s] * len(new)
    wall_s = time.monotonic() - start_s
    if [len(each) for each in tokens] != new_tokens:
        raise SystemExit(f"{[len(each) for each in tokens]} tokens came where {new_tokens} were asked for")
    gaps_s = [b - a for each in times for a, b in pairwise(each)]
    return {"wall_s": wall_s, "first_s": [each[0] for each in times], "gaps_s": gaps_s, "tokens": tokens}


def _ids(prompt: list[int]) -> openvino.Tensor:
    return openvino.Tensor(np.array([prompt], np.int64))


def _exactly(count: int) -> Any:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
    return config


def main() -> None:
    task = json.load(sys.stdin)
    engine = load(Path(task["checkpoint"]), task["threads"])
    runs: dict[str, Any] = {}
    fresh = 2  # the first of the tokens that mark a run
    for workload in task["workloads"]:
        prompts, new = workload["prompts"], workload["new_tokens"]
        run(engine, prompts, [2] * len(new), fresh)
        firsts = [None, *range(fresh + 1, fresh + task["repeats"])]
        fresh += task["repeats"]
        runs[workload["name"]] = [run(engine, prompts, new, first) for first in firsts]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {
        "engine": f"openvino-genai {openvino_genai.__version__}",
        "precision": "F16 weights, else its choice",
        "peak_mb": peak_mb,
    }
    print(json.dumps({**found, "runs": runs, "notes": {}}))


if __name__ == "__main__":
    main()
