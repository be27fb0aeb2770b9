"""llama.cpp through its C interface: a contender of `benchmarks.text`, in its own process.

`llama_cpp_batch.py Q8_0` (or F16) reads a task as JSON from standard input and prints what it measured. Prompts are
prefilled in batches of up to 512 tokens, several at a time, what they share once; then all sequences decode together.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np
from gguf_file import write_gguf

CHUNK_TOKENS, MOST_SEQUENCES, CONTEXT_TOKENS = 512, 33, 33 * 640


def load(path: Path) -> Any:
    """The model."""
    ll.llama_backend_init()
    return ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())


class Engine:
    """A cache of the model's and a batch that is filled anew for each call."""

    def __init__(self, model: Any, threads: int, *, unified: bool) -> None:
        """unified: one cache for all sequences, which they need to share a beginning; attention is slower over it."""
        params = ll.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT_TOKENS, CHUNK_TOKENS, CHUNK_TOKENS
        params.n_seq_max, params.n_threads, params.n_threads_batch = MOST_SEQUENCES, threads, threads
        params.kv_unified = unified
        self.context = ll.llama_init_from_model(model, params)
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
        self.batch = ll.llama_batch_init(CHUNK_TOKENS, 0, 1)
        self.memory = ll.llama_get_memory(self.context)

    def close(self) -> None:
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.context)

    def clear(self) -> None:
        ll.llama_memory_clear(self.memory, True)

    def share(self, source: int, target: int, tokens: int) -> None:
        """Sequence `target` begins with the first `tokens` of `source`."""
        ll.llama_memory_seq_cp(self.memory, source, target, 0, tokens)

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Runs (sequence, position, token, whether the next is wanted); the likeliest next token by sequence."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (sequence, position, token, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, position, 1
            batch.seq_id[index][0], batch.logits[index] = sequence, wanted
        if (code := ll.llama_decode(self.context, batch)) != 0:
            raise SystemExit(f"llama_decode gave {code}")
        return {row[0]: self._likeliest(index) for index, row in enumerate(rows) if row[3]}

    def _likeliest(self, index: int) -> int:
        logits = ll.llama_get_logits_ith(self.context, index)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())


def chunks(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), CHUNK_TOKENS):
        yield rows[start : start + CHUNK_TOKENS]


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of several prompts begin with."""
    same = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    return min(sum(1 for _ in same), min(map(len, prompts)) - 1) if len(prompts) > 1 else 0


def prefill(engine: Engine, prompts: Sequence[Sequence[int]]) -> Iterator[dict[int, int]]:
    """Runs all prompts, what all of them begin with once; yields first tokens as they come."""
    shared = shared_tokens(prompts)
    for part in chunks([(0, position, prompts[0][position], False) for position in range(shared)]):
        engine.decode(part)
    for number in range(1, len(prompts) if shared else 0):
        engine.share(0, number, shared)
    rows = [
        (number, position, prompt[position], position == len(prompt) - 1)
        for number, prompt in enumerate(prompts)
        for position in range(shared, len(prompt))
    ]
    for part in chunks(rows):
        yield engine.decode(part)


def run(engine: Engine, prompts: list[list[int]], new_tokens: list[int]) -> dict[str, Any]:
    """All requests at once."""
    engine.clear()
    start_s = time.monotonic()
    times, tokens = [list[float]() for _ in prompts], [list[int]() for _ in prompts]

    def take(found: dict[int, int]) -> None:
        now_s = time.monotonic() - start_s
        for number, token in found.items():
            times[number].append(now_s)
            tokens[number].append(token)

    for found in prefill(engine, prompts):
        take(found)
    while going := [number for number, count in enumerate(new_tokens) if len(tokens[number]) < count]:
        take(engine.decode([(n, len(prompts[n]) + len(tokens[n]) - 1, tokens[n][-1], True) for n in going]))
    wall_s = time.monotonic() - start_s
    gaps_s = [b - a for each in times for a, b in pairwise(each)]
    return {"wall_s": wall_s, "first_s": [each[0] for each in times], "gaps_s": gaps_s, "tokens": tokens}


def main() -> None:
    kind, task = sys.argv[1], json.load(sys.stdin)
    model = load(write_gguf(Path(task["checkpoint"]), kind))
    runs: dict[str, Any] = {}
    for workload in task["workloads"]:
        prompts, new = workload["prompts"], workload["new_tokens"]
        engine = Engine(model, task["threads"], unified=shared_tokens(prompts) > 0)
        run(engine, prompts, [2] * len(new))
        runs[workload["name"]] = [run(engine, prompts, new) for _ in range(task["repeats"])]
        engine.close()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"engine": f"llama.cpp, python {ll.__version__}", "precision": kind, "peak_mb": peak_mb}
    print(json.dumps({**found, "runs": runs, "notes": {}}))


if __name__ == "__main__":
    main()
