"""Blocks and their memory: shared, copied before they are written, exported and imported, never leaked."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.prefix import BLOCK_TOKENS, HEADER_BYTES, ElementType, PayloadError
from services.text_worker.kv.chain import Chain
from services.text_worker.kv.pages import Pages, block_bytes, blocks_for
from services.text_worker.kv.pool import OutOfBlocks
from services.text_worker.kv.store import Holding, KvStore, blocks_of
from services.text_worker.kv.transfer import Layout, export_block, export_named, import_block
from services.text_worker.model.architecture import Architecture, Attention, Layer, Mlp, Rope
from services.text_worker.model.config import CheckpointError

LAYER = Layer(Attention(4, 2, 6, Rope(1e4, 6), 1.0), Mlp(8))
MODEL = Architecture("llama", 64, 24, (LAYER, LAYER, LAYER), 512, 1e-5, True, frozenset())
NAME, PRINT = b"n" * 32, b"f" * 32


FP32, BF16 = ElementType.FLOAT32, ElementType.BFLOAT16


def store(blocks: int = 8, element: ElementType = FP32) -> KvStore:
    return KvStore(Pages(MODEL, blocks + 1, element))


def holding() -> Holding:
    return Holding(Chain("tenant", PRINT))


def fill(pages: Pages, block: int, seed: int = 0) -> None:
    """Numbers in every place of a block."""
    random = np.random.default_rng(seed)
    shape = (2, 3, 2, BLOCK_TOKENS, 6)
    numbers = random.standard_normal(shape).astype(np.float32)
    pages.write(block, numbers if pages.element is FP32 else (numbers.view(np.uint32) >> 16).astype(np.uint16))


def run(kv: KvStore, held: Holding, tokens: list[int]) -> None:
    """As a step does that runs all tokens that are not cached yet."""
    kv.reserve(held, len(tokens))
    kv.computed(held, tokens, len(tokens) - held.computed)


def test_a_prompt_that_begins_alike_takes_full_blocks_over() -> None:
    kv, first, second = store(), holding(), holding()
    tokens = list(range(70))
    run(kv, first, tokens)
    found = kv.pool.match(second.chain.over([*tokens[:64], 5, 6, 7]))
    assert list(found) == first.blocks[:2]
    kv.adopt(second, found, 64)
    run(kv, second, [*tokens[:64], 5, 6, 7])
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    kv.release(first)
    kv.release(second)
    assert kv.pool.available == 8
    assert not kv.pool.match(Chain("other tenant", PRINT).over(tokens))
    assert not kv.pool.match(Chain("tenant", b"other model").over(tokens))


def test_the_last_token_of_a_shared_block_is_run_in_a_copy() -> None:
    kv, first, second = store(), holding(), holding()
    tokens = list(range(64))
    run(kv, first, tokens)
    fill(kv.pages, first.blocks[1])
    before = kv.pages.read(first.blocks[1])
    kv.adopt(second, kv.pool.match(second.chain.over(tokens)), 63)
    kv.reserve(second, 64)
    assert second.blocks[0] == first.blocks[0]
    assert second.blocks[1] != first.blocks[1]
    np.testing.assert_array_equal(kv.pages.read(second.blocks[1]), before)
    fill(kv.pages, second.blocks[1], seed=1)
    np.testing.assert_array_equal(kv.pages.read(first.blocks[1]), before)
    kv.computed(second, tokens, 1)
    kv.release(second)
    kv.release(first)
    assert kv.pool.available == 8


def test_no_room_leaves_a_holding_as_it_was() -> None:
    kv, held = store(2), holding()
    with pytest.raises(OutOfBlocks):
        kv.reserve(held, 65)
    assert (held.blocks, kv.pool.available) == ([], 2)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 100)), max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_chain_grows_as_a_new_one_would_be(rows: list[tuple[int, int]]) -> None:
    tokens: list[int] = []
    chain = Chain("tenant", PRINT)
    for kind, count in rows:
        tokens += [kind] * count
        chain.over(tokens)
    assert list(chain.over(tokens)) == list(Chain("tenant", PRINT).over(tokens))
    assert len(chain.over(tokens)) == len(tokens) // BLOCK_TOKENS


@pytest.mark.parametrize("element", [FP32, BF16])
def test_blocks_go_from_worker_to_worker(element: ElementType) -> None:
    here, there = store(element=element), store(element=element)
    fill(here.pages, 3)
    stored = export_block(here.pages, 3, block_hash=NAME, fingerprint=PRINT)
    assert len(stored) == HEADER_BYTES + block_bytes(MODEL, element.bytes_each)
    assert here.pages.size_bytes == 9 * block_bytes(MODEL, element.bytes_each)
    import_block(there.pages, 5, stored, block_hash=NAME, fingerprint=PRINT)
    np.testing.assert_array_equal(here.pages.read(3), there.pages.read(5))
    np.testing.assert_array_equal(here.pages.keys[1][3], there.pages.keys[1][5])
    np.testing.assert_array_equal(here.pages.values[2][3], there.pages.values[2][5])
    assert here.pages.read(3).any()


@pytest.mark.parametrize("element", [FP32, BF16])
def test_a_block_of_another_type_is_foreign(element: ElementType) -> None:
    other = BF16 if element is FP32 else FP32
    here, there = store(element=element), store(element=other)
    fill(here.pages, 3)
    stored = export_block(here.pages, 3, block_hash=NAME, fingerprint=PRINT)
    with pytest.raises(PayloadError, match="element"):
        import_block(there.pages, 5, stored, block_hash=NAME, fingerprint=PRINT)
    with pytest.raises(ValueError, match=other.name):
        there.pages.write(5, here.pages.read(3))
    assert not there.pages.read(5).any()


def test_numbers_in_16_bits_that_pages_do_not_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="bf16"):
        Pages(MODEL, 2, ElementType.FLOAT16)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
def test_a_block_in_16_bits_that_is_not_finite_is_refused(bits: int) -> None:
    kv = store(element=BF16)
    fill(kv.pages, 3)
    kv.pages.values[2][3, 1, 4, 4, 1] = bits
    stored = export_block(kv.pages, 3, block_hash=NAME, fingerprint=PRINT)
    with pytest.raises(PayloadError, match="not finite"):
        import_block(kv.pages, 5, stored, block_hash=NAME, fingerprint=PRINT)


def test_what_is_copied_without_holding_it_is_whole_or_nothing() -> None:
    kv, stopped = store(4), threading.Event()
    chains = [Chain("tenant", PRINT).over([kind] * BLOCK_TOKENS) for kind in range(1, 7)]

    def engine() -> None:
        """Gives few blocks to many prompts, as an engine does, each block filled with its prompt's number."""
        while not stopped.is_set():
            for kind in range(1, 7):
                held = holding()
                kv.reserve(held, BLOCK_TOKENS)
                kv.pages.write(held.blocks[0], np.full((2, 3, 2, BLOCK_TOKENS, 6), kind, np.float32))
                kv.computed(held, [kind] * BLOCK_TOKENS, BLOCK_TOKENS)
                kv.release(held)

    running = threading.Thread(target=engine)
    running.start()
    copied, layout = 0, Layout.of(kv.pages, PRINT)
    try:
        while copied < 200:
            for kind, (name,) in enumerate(chains, 1):
                stored = export_named(kv, kv.pages, name, fingerprint=PRINT)
                if stored is not None:
                    assert (layout.content(stored, name) == kind).all()
                    copied += 1
    finally:
        stopped.set()
        running.join()


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "shape", "nan"])
def test_a_block_that_is_not_what_was_asked_for_is_not_written(damage: str) -> None:
    kv = store()
    fill(kv.pages, 3)
    if damage == "nan":
        kv.pages.values[2][3, 1, 4, 4] = np.nan
    pages = Pages(Architecture("llama", 64, 24, (LAYER,), 512, 1e-5, True, frozenset()), 4)
    source = (pages, 2) if damage == "shape" else (kv.pages, 3)
    stored = export_block(*source, block_hash=NAME, fingerprint=PRINT)
    if damage == "cut":
        stored = stored[:-1]
    if damage == "flipped":
        stored = stored[:-1] + bytes([stored[-1] ^ 1])
    with pytest.raises(PayloadError):
        import_block(kv.pages, 5, stored, block_hash=b"o" * 32 if damage == "other" else NAME, fingerprint=PRINT)
    assert not kv.pages.read(5).any()


def test_a_budget_that_holds_no_whole_context_is_refused_with_the_least_that_does() -> None:
    large = Architecture("llama", 64, 24, (LAYER,) * 200, 512, 1e-5, True, frozenset())
    with pytest.raises(CheckpointError, match=r"kv_memory_mb: 1 hold 1 blocks; .* needs 11"):
        blocks_for(large, 1, 512)
    assert blocks_for(large, 11, 512) >= blocks_of(512) + 2
