"""Texts under load: `python -m benchmarks.text_load [--quick]`.

The experiments of `benchmarks.experiment` on one text worker with the model that ships, requests of 64 to 192 tokens of
which at least a quarter must come, Headway's planner against policies that share its batching, its order by deadline
and its feasibility check (`fifo` by nature has neither of the first two). The end-of-text token is forbidden, so that a
text is as long as was asked and quality is the share of tokens that came. Weights are in bf16, as the peer has them.
Speculation is off: it makes what a token costs depend on the text.

`--vllm PYTHON` puts vLLM beside it on the same arrivals (`benchmarks/text_server_peer.py`), run by a Python that has it
(`benchmarks/text_peers/README.md`).

Results and picture: `benchmarks/results/text-load.json` and `.svg`. About 15 minutes; `--quick` about one, and only to
see that it runs.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.experiment.arrivals import Arrival, Mix
from benchmarks.experiment.capacity import Effort
from benchmarks.experiment.generator import Answer
from benchmarks.experiment.plots import draw
from benchmarks.experiment.runner import Contender, Peer, Plan, Subject, run
from benchmarks.figures import RESULTS, write
from benchmarks.text_server_peer import vllm as run_vllm
from headway.client import AsyncHeadway
from headway.requests import service_level, text_request
from headway.v1 import common_pb2, text_pb2
from services.text_worker.config import default_model
from services.text_worker.model.families import load_architecture
from services.text_worker.tokenizer import load_tokenizer

console = Console(width=120)
SIZES = (64, 128, 192)
LEAST = "25%"
SHARE = 0.25
CHAT = [("user", "Explain exceptions in Python.")]
TOP, LOWEST = "fixed:100%", f"fixed:{LEAST}"
CONTENDERS = (
    Contender("headway"),
    Contender("greedy", flags=("--policy", "greedy"), share=0.5),
    Contender(TOP, flags=("--policy", TOP), share=0.25),
    Contender(LOWEST, flags=("--policy", LOWEST), share=0.25),
    Contender("fifo", flags=("--policy", "fifo"), share=0.25, shapes=False),
)
FULL = Plan(requests=4000, most_cell_s=30.0, shape_s=20.0, effort=Effort(9, 3.0))
QUICK = Plan(loads=(0.6, 1.5), requests=150, most_cell_s=4.0, shape_s=4.0, effort=Effort(3, 1.0), gap_instances=3)


def subject() -> Subject:
    """The worker with the text model that ships."""
    folder = default_model()
    end = load_tokenizer(folder, load_architecture(folder)).eos_ids

    def asked(seed: int, tokens: int, level: common_pb2.ServiceLevel) -> text_pb2.GenerateRequest:
        if level.WhichOneof("quality") is None:
            level.at_least.normalised = SHARE
        request = text_request(CHAT, max_tokens=tokens, temperature=0.7, seed=seed, level=level)
        request.sampling.logit_bias.extend(text_pb2.LogitBias(token_id=each, bias=-100) for each in end)
        return request

    async def send(client: AsyncHeadway, arrival: Arrival, level: common_pb2.ServiceLevel) -> AsyncIterator[Answer]:
        request = asked(arrival.seed, arrival.items, level)
        async for message in client.text(request, deadline_s=arrival.deadline_ms / 1000):
            if message.HasField("plan"):
                yield message.plan
            elif message.HasField("summary"):
                yield message.summary.served

    async def golden(client: AsyncHeadway) -> bytes:
        request = asked(7, 48, service_level(exact=LEAST))
        parts = [message async for message in client.text(request, deadline_s=25.0)]
        return b"".join(part.chunk.text.encode() for part in parts)

    command = (sys.executable, "-m", "services.text_worker.main", "--weights", "bf16", "--speculate", "off")
    return Subject("text-load", "tokens", command, send, Mix(SIZES), golden, lowest=LEAST)


def vllm_peer(python: str) -> Peer:
    """vLLM with the model that ships, asked for the same texts."""

    def body(arrival: Arrival) -> dict[str, Any]:
        messages = [{"role": role, "content": content} for role, content in CHAT]
        drawn = {"temperature": 0.7, "seed": arrival.seed, "ignore_eos": True}
        return {"messages": messages, "max_tokens": arrival.items, **drawn}

    return Peer("vLLM", partial(run_vllm, python, default_model(), body, SHARE))


def main(
    vllm: Annotated[str | None, typer.Option(help="a Python with vLLM, to be sent the same", metavar="PYTHON")] = None,
    quick: Annotated[bool, typer.Option(help="a minute, to see that it runs; no figure of it means anything")] = False,
) -> None:
    """Measures the text worker under load and writes benchmarks/results/text-load.json and text-load.svg."""
    results = asyncio.run(run(subject(), CONTENDERS, QUICK if quick else FULL, [vllm_peer(vllm)] if vllm else ()))
    name = "text-load-quick" if quick else "text-load"
    console.print(f"written to {write(name, {'quick': quick, **results.as_dict()})}")
    draw(results, RESULTS / f"{name}.svg", f"texts: {results.about['worker']['engine']}")


app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
