"""transformers with a static cache, bf16: a contender of `benchmarks.text`, in its own process.

Reads a task as JSON from standard input and prints what it measured. Prompts of one length run as one batch, as its
users run it; time to first token is that of the batch, and no gaps are known.
"""

import json
import resource
import sys
import time
from typing import Any

import torch
import transformers


def run(model: Any, prompts: list[list[int]], new_tokens: list[int]) -> dict[str, Any]:
    """All requests, batched by length of prompt and answer."""
    start_s = time.monotonic()
    first_s, tokens = [0.0] * len(prompts), [list[int]() for _ in prompts]
    for shape in sorted({(len(prompt), count) for prompt, count in zip(prompts, new_tokens, strict=True)}):
        chosen = [i for i, prompt in enumerate(prompts) if (len(prompt), new_tokens[i]) == shape]
        batch = torch.tensor([prompts[i] for i in chosen])
        clock = FirstToken()
        with torch.inference_mode():
            found = model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=shape[1],
                min_new_tokens=shape[1],
                do_sample=False,
                cache_implementation="static",
                disable_compile=True,
                stopping_criteria=transformers.StoppingCriteriaList([clock]),
            )
        for i, line in zip(chosen, found[:, shape[0] :].tolist(), strict=True):
            first_s[i], tokens[i] = (clock.first_s or time.monotonic()) - start_s, line
    return {"wall_s": time.monotonic() - start_s, "first_s": first_s, "gaps_s": [], "tokens": tokens}


class FirstToken(transformers.StoppingCriteria):
    """Never stops; notes when it was first asked."""

    first_s: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.first_s = self.first_s or time.monotonic()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def main() -> None:
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(task["checkpoint"], dtype=torch.bfloat16).eval()
    runs = {}
    for workload in task["workloads"]:
        prompts, new = workload["prompts"], workload["new_tokens"]
        run(model, prompts, [2] * len(new))
        runs[workload["name"]] = [run(model, prompts, new) for _ in range(task["repeats"])]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"engine": f"transformers {transformers.__version__}", "precision": "bf16", "peak_mb": peak_mb}
    print(json.dumps({**found, "runs": runs, "notes": {}}))


if __name__ == "__main__":
    main()
