"""What matching prompts without a tokenizer costs and misses: `python -m benchmarks.prompts [--quick]`.

Cost: a placement with and without knowing who holds the prompt, against the length of what is shared and the number of
workers. Misses: documents of this repository through the shipped tokenizer, pairs that begin alike for some way; what
a router believes to be cached after the first, beside what the worker's cache holds for the second. Fails where the
cache says that a believed prefix is not there at all. One thread; the full run takes about a minute.
"""

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import quantile, write
from headway.cost import Cost, StepCurve
from headway.prefix import BLOCK_TOKENS, CHUNK_BYTES, canonical_text
from headway.prompts import prompt_chunks
from headway.quality import Ladder, Rung
from headway.v1 import common_pb2, prefix_cache_pb2
from services.router.placement import Ask
from services.router.policies import Placer, read_policy
from services.router.prefixes import NOTHING_SHARED, KnownPrompts, PrefixIndex, Shared
from services.router.roster import Roster
from services.router.view import Asset, Description, Report, View, make_view
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.pool import BlockPool
from services.text_worker.model.families import load_architecture
from services.text_worker.prefixes import HeldPrefixes
from services.text_worker.tokenizer import TextTokenizer, load_tokenizer

ROOT = Path(__file__).parents[1]
MODEL = "m" * 64
SHARED_KIB = (0, 1, 8, 64)
WORKERS = (2, 16, 1000)


class Standing:
    """A worker whose state stands still."""

    open_calls = queue_depth = 0
    latency_ms = None
    wants_probe = False

    def __init__(self, name: str) -> None:
        ladder = Ladder((Rung("100%", 1.0, token_share=1.0),))
        self.address = name
        self.description = Description(name, common_pb2.KIND_TEXT, "", "", (Asset("tiny", MODEL, ladder),))
        report = Report(0.0, (), {("", ""): StepCurve(((1, Cost(5.0)),))}, 8, 0.1, 0, 0.0, False)
        self._view = make_view(name, self.description, report, ())

    def takes(self, draw: random.Random) -> bool:
        return True

    def view(self) -> View:
        return self._view


def report(worker: str, prompt: bytes) -> prefix_cache_pb2.PublishRequest:
    """All of a prompt, a chunk for each block."""
    links = prompt_chunks(prompt, asset_hash=MODEL, secret=None, tenant="")
    events = [prefix_cache_pb2.PrefixEvent(token_chain=link, chunk_chain=[link]) for link in links]
    return prefix_cache_pb2.PublishRequest(worker_id=worker, events=events)


def cost_figures(workers: int, shared_kib: int, repeats: int) -> dict[str, Any]:
    """Microseconds of CPU for one placement; half of the workers hold the shared part."""
    draw = random.Random(workers * 1000 + shared_kib)
    begin, rest = draw.randbytes(shared_kib << 10), draw.randbytes(1 << 10)
    index, roster = PrefixIndex(), Roster(Standing(f"w{number}") for number in range(workers))
    for number in range(0, workers, 2):
        index.take(report(f"w{number}", begin + draw.randbytes(CHUNK_BYTES)))
    known, placer = KnownPrompts(index, None), Placer(read_policy("headway"), quantile=0.9, draw=draw)
    prompt = begin + rest
    ask = Ask(
        common_pb2.KIND_TEXT, "model", "", common_pb2.ServiceLevel(), 0.0, 10.0,
        tokens=64, prompt_tokens=len(prompt) // 3, prompt=prompt, bytes_per_token=3,
    )  # fmt: skip

    def place(shared: Shared) -> None:
        placer.place(ask, roster, 0.0, shared=shared)

    without = [_cpu_us(lambda: place(NOTHING_SHARED)) for _ in range(repeats)]
    with_it = [_cpu_us(lambda: place(known.shared(prompt, MODEL, ""))) for _ in range(repeats)]
    return {
        "workers": workers,
        "shared_kib": shared_kib,
        "placement_us": statistics.median(without),
        "with_prompt_us": statistics.median(with_it),
    }


def _cpu_us(work: Any) -> float:
    began_s = time.process_time()
    work()
    return (time.process_time() - began_s) * 1e6


def documents() -> list[str]:
    """Prose and code."""
    paths = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "headway").glob("*.py"), *(ROOT / "protos").rglob("*.proto")]
    return [text for path in sorted(paths) if len(text := path.read_text()) > 4 * CHUNK_BYTES]


def pairs(count: int) -> Iterator[tuple[str, str]]:
    """Prompts that begin alike: as long as two pages at most, and as different as two ends of one document."""
    draw, texts = random.Random(0), documents()
    for _ in range(count):
        begin, one, other = (draw.choice(texts) for _ in range(3))
        shared = begin[: draw.randrange(CHUNK_BYTES, min(len(begin), 6000))]
        yield shared + one[: draw.randrange(20, 2000)], shared + other[: draw.randrange(20, 2000)]


def missed_figures(tokenizer: TextTokenizer, count: int) -> dict[str, Any]:
    """Tokens believed to be cached for the second of two prompts, beside those that are."""
    believed, held = [], []
    for first, second in pairs(count):
        is_held, is_believed = _second_of(tokenizer, first, second)
        if is_believed and not is_held:
            raise SystemExit("a router believes in a prefix of which the cache holds nothing")
        held.append(is_held)
        believed.append(is_believed)
    over = [more - less for more, less in zip(believed, held, strict=True) if more > less]
    return {
        "pairs": count,
        "held_tokens": sum(held),
        "believed_share": sum(believed) / sum(held),
        "not_seen_at_all": sum(less > 0 and not more for more, less in zip(believed, held, strict=True)) / count,
        "believed_too_much": len(over) / count,
        "tokens_too_much_p99": quantile(over, 0.99) if over else 0,
    }


def _second_of(tokenizer: TextTokenizer, first: str, second: str) -> tuple[int, int]:
    pool, index = BlockPool(1024), PrefixIndex()
    canonical, tokens = canonical_text(first), tokenizer.encode(first)
    blocks = list(Chain("", b"").over(tokens))
    held = HeldPrefixes(pool)
    held.note(len(canonical), len(tokens), [*_links(canonical)], blocks)
    for block, name in zip(pool.take(len(blocks)), blocks, strict=True):
        pool.store(block, name)
    index.take(prefix_cache_pb2.PublishRequest(worker_id="w", events=held.whole()))
    canonical, tokens = canonical_text(second), tokenizer.encode(second)
    is_held = len(pool.match(Chain("", b"").over(tokens))) * BLOCK_TOKENS
    known = KnownPrompts(index, None).shared(canonical, MODEL, "").held_bytes("w")
    return is_held, len(tokens) * known // len(canonical)


def _links(canonical: bytes) -> Sequence[bytes]:
    return tuple(prompt_chunks(canonical, asset_hash=MODEL, secret=None, tenant=""))


def main() -> None:
    """Measures, prints, and writes `benchmarks/results/prompts.json` unless `--quick`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer prompts; write nothing")
    quick = parser.parse_args().quick
    folder = ROOT / "models" / "text"
    tokenizer = load_tokenizer(folder, load_architecture(folder))
    costs = [cost_figures(workers, kib, 20 if quick else 300) for workers in WORKERS for kib in SHARED_KIB]
    for row in costs:
        print(f"{row['workers']:5} workers, {row['shared_kib']:3} KiB shared: placement {row['placement_us']:6.0f} us,"
              f" with the prompt {row['with_prompt_us']:6.0f} us")  # fmt: skip
    missed = missed_figures(tokenizer, 40 if quick else 1000)
    print(", ".join(f"{name}: {value:.3g}" for name, value in missed.items()))
    if not quick:
        print(write("prompts", {"costs": costs, "missed": missed}))


if __name__ == "__main__":
    main()
