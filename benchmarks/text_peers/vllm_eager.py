"""vLLM on a CPU, bf16, eager: a contender of `benchmarks.text`, in its own process.

Reads a task as JSON from standard input and prints what it measured. Prefixes are shared, and each run begins its
prompts with a token of its own, so that no run profits from one before it.
"""

import json
import os
import resource
import sys
import time
from itertools import pairwise
from typing import Any

CACHE_GB, CHUNK_TOKENS = "1", 512


def load(checkpoint: str, threads: int) -> Any:
    """The engine, ready for requests, in this process."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": CACHE_GB,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": str(threads),
    }
    import torch
    from vllm import EngineArgs, LLMEngine  # the variables must be there before

    torch.set_num_threads(threads)
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=checkpoint,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=True,
            enable_prefix_caching=True,
            max_num_batched_tokens=CHUNK_TOKENS,
        )
    )


def run(engine: Any, name: str, prompts: list[list[int]], new_tokens: list[int], first: int | None) -> dict[str, Any]:
    """All requests at once; `first` takes the place of every prompt's first token."""
    from vllm import SamplingParams

    start_s = time.monotonic()
    for number, (prompt, count) in enumerate(zip(prompts, new_tokens, strict=True)):
        ids = prompt if first is None else [first, *prompt[1:]]
        sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
        engine.add_request(f"{name}/{number}", {"prompt_token_ids": ids}, sampling)
    times, tokens = [list[float]() for _ in prompts], [list[int]() for _ in prompts]
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now_s = time.monotonic() - start_s
        for output in outputs:
            number = int(output.request_id.rsplit("/", 1)[1].split("-", 1)[0])
            times[number] += [now_s] * (len(output.outputs[0].token_ids) - len(tokens[number]))
            tokens[number] = list(output.outputs[0].token_ids)
    wall_s = time.monotonic() - start_s
    if [len(each) for each in tokens] != new_tokens:
        raise SystemExit(f"{[len(each) for each in tokens]} tokens came where {new_tokens} were asked for")
    gaps_s = [b - a for each in times for a, b in pairwise(each)]
    return {"wall_s": wall_s, "first_s": [each[0] for each in times], "gaps_s": gaps_s, "tokens": tokens}


def main() -> None:
    task = json.load(sys.stdin)
    engine = load(task["checkpoint"], task["threads"])
    import vllm

    runs: dict[str, Any] = {}
    fresh = 2  # the first of the tokens that mark a run
    for workload in task["workloads"]:
        name, prompts, new = workload["name"], workload["prompts"], workload["new_tokens"]
        run(engine, f"{name}/warm", prompts, [2] * len(new), fresh)
        firsts = [None, *range(fresh + 1, fresh + task["repeats"])]
        fresh += task["repeats"]
        runs[name] = [run(engine, f"{name}/{turn}", prompts, new, first) for turn, first in enumerate(firsts)]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"engine": f"vllm {vllm.__version__}", "precision": "bf16, eager", "peak_mb": peak_mb}
    print(json.dumps({**found, "runs": runs, "notes": {}}))


if __name__ == "__main__":
    main()
