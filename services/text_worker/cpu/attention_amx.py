"""Attention over keys and values in 16 bits on CPUs with AMX: both products in bf16 tiles, their sums in fp32.

A tile holds 16 lines of 32 numbers. What is multiplied from the right has pairs of neighbours of the inner length side
by side, which is how `Pages` keeps bf16: a block is tiles as it is. Queries and softmax's numerators are rounded to
bf16.

A sum of the instruction goes through the inner length in one order for every line, so that a row's bits depend neither
on the rows beside it nor on how many lines the tile has: prompts and decode steps take the same path.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from headway.prefix import BLOCK_TOKENS
from services.text_worker.cpu.amx import LINES, configure, release
from services.text_worker.cpu.attention import begin_of_block
from services.text_worker.cpu.bf16 import rounded
from services.text_worker.cpu.bf16_amx import has_amx
from services.text_worker.cpu.compiled import compiled
from services.text_worker.cpu.softmax import numerators

TILE_ROWS = 16
"""Rows of one sequence that share a block while it is near: fewer would waste lines of tiles."""
MOST_LINES = 2 * LINES
"""Lines that are multiplied at once: two tiles of them by two tiles of columns fill the registers."""
INNER = 32
"""Inner lengths are multiples of it: numbers in a tile's line."""


def usable(head_dim: int) -> bool:
    """Whether this CPU multiplies tiles of bf16, this process may, and heads of this width are whole tiles."""
    return head_dim % INNER == 0 and has_amx()


def _product(row_tiles: int) -> Any:
    """An intrinsic: c[up to 16 row_tiles lines, 32] = sum over `count` of a[line, 32 k : 32 k + 32] . b_k.

    a: uint16, bf16, line by line of a_step from a_at on. places: int64; b_k are 16 lines of 64 numbers, b_step apart,
    from `column` numbers behind the address places[first + k] on, in `b` or in `rest`, which live as long as the call.
    c: fp32, lines c_step apart from c_at on. All steps in numbers. Needs `configure` before, on the same thread.
    """

    @intrinsic
    def product(context, a, a_at, a_step, places, first, count, b, rest, column, b_step, c, c_at, c_step):
        signature = types.void(a, a_at, a_step, places, first, count, b, rest, column, b_step, c, c_at, c_step)

        def build(context, builder, signature, arguments):
            _build(context, builder, signature, arguments, row_tiles)
            return context.get_dummy_value()

        return signature, build

    return product


def _loop(row_tiles: int) -> str:
    """Assembly. $0 a, $1 places, $2 tiles to go, $3 b_k, all of which change.

    $7 offset of the columns, $8 b's stride, $9 a's, $10 c, $11 its stride, $12 and $13 16 strides of a and of c.
    """
    sums = [f"%tmm{number}" for number in range(2 * row_tiles)]
    lines = [f"tilezero {total}" for total in sums]
    lines += ["1:", "movq ($1), $3", "addq $7, $3", "tileloadd ($3,$8,1), %tmm6", "tileloadd 64($3,$8,1), %tmm7"]
    lines += ["tileloadd ($0,$9,1), %tmm4", f"tdpbf16ps %tmm6, %tmm4, {sums[0]}", f"tdpbf16ps %tmm7, %tmm4, {sums[1]}"]
    if row_tiles == 2:
        lines += ["leaq ($0,$12,1), $3", "tileloadd ($3,$9,1), %tmm5"]
        lines += [f"tdpbf16ps %tmm6, %tmm5, {sums[2]}", f"tdpbf16ps %tmm7, %tmm5, {sums[3]}"]
    lines += ["addq $$64, $0", "addq $$8, $1", "decq $2", "jnz 1b"]
    lines += [f"tilestored {sums[0]}, ($10,$11,1)", f"tilestored {sums[1]}, 64($10,$11,1)"]
    if row_tiles == 2:
        lines += ["leaq ($10,$13,1), $3", f"tilestored {sums[2]}, ($3,$11,1)", f"tilestored {sums[3]}, 64($3,$11,1)"]
    return "\n".join(lines)


def _build(context, builder, signature, arguments, row_tiles):
    long, byte = ir.IntType(64), ir.IntType(8).as_pointer()
    _, a_at, a_step, _, first, count, _, _, column, b_step, _, c_at, c_step = arguments

    def numbers(count, size):
        return builder.mul(count, long(size))

    def address(which, at, size):
        array = context.make_array(signature.args[which])(context, builder, arguments[which])
        return builder.ptrtoint(builder.gep(builder.bitcast(array.data, byte), [numbers(at, size)]), long)

    given = [address(0, a_at, 2), address(3, first, 8), count, numbers(column, 2), numbers(b_step, 2)]
    given += [numbers(a_step, 2), address(10, c_at, 4), numbers(c_step, 4)]
    given += [numbers(a_step, 2 * LINES), numbers(c_step, 4 * LINES)]
    kind = ir.FunctionType(ir.LiteralStructType([long] * 4), [long] * 10)
    constraints = "=&r,=&r,=&r,=&r,0,1,2,r,r,r,r,r,r,r,~{memory},~{flags}"
    builder.asm(kind, _loop(row_tiles), constraints, given, True)


_product_1, _product_2 = _product(1), _product(2)


def _shapes() -> np.ndarray:
    """Shapes of tiles for each number of lines up to `MOST_LINES`; uint8 [lines + 1, 64]."""
    shapes = np.zeros((MOST_LINES + 1, 64), np.uint8)
    shapes[:, 0] = 1  # the palette of 8 tiles of 1 KiB
    shapes[:, 16:32:2] = 64  # bytes a line, 16 bits each
    for lines, shape in enumerate(shapes):
        first, second = min(max(lines, 1), LINES), max(lines - LINES, 0) or LINES
        shape[48:56] = [first, first, second, second, first, second, LINES, LINES]
    return shapes


_SHAPES = _shapes()


@compiled()
def _cap(scores, softcap):
    for j in range(len(scores)):
        scores[j] = softcap * np.float32(math.tanh(scores[j] / softcap))


@compiled()
def _find(keys, values, tables, sequence, first_block, kv, of_keys, of_values):
    """Writes where the tiles of keys and the blocks of values begin, as addresses."""
    head_bytes, chunks = keys.shape[2] * BLOCK_TOKENS * 4, len(of_keys) // len(of_values)
    for b in range(len(of_values)):
        block = np.int64(tables[sequence, first_block + b])
        at = (block * keys.shape[1] + kv) * head_bytes
        of_values[b] = np.int64(values.ctypes.data) + at
        for chunk in range(chunks):
            of_keys[b * chunks + chunk] = np.int64(keys.ctypes.data) + at + chunk * (INNER * BLOCK_TOKENS * 2)


@compiled()
def _attend_tile(qkv, out, keys, values, tables, shapes, sequence, row, rows, start, kv, group, scale, window, softcap):
    """One key head of some rows of a sequence, the first at position `start`, `MOST_LINES` lines at once."""
    head_dim, chunks, lines, ends = values.shape[3], values.shape[3] // INNER, rows * group, start + rows
    first_block = max(0, start - window + 1) // BLOCK_TOKENS if window > 0 else 0
    blocks = (ends + BLOCK_TOKENS - 1) // BLOCK_TOKENS - first_block
    begin, length = first_block * BLOCK_TOKENS, blocks * BLOCK_TOKENS
    behind = begin + length - ends
    last_block = np.int64(tables[sequence, first_block + blocks - 1])
    tail = begin_of_block(values, last_block, kv, BLOCK_TOKENS - behind if behind > 0 else 0)
    of_keys, of_values = np.empty(blocks * chunks, np.int64), np.empty(blocks, np.int64)
    _find(keys, values, tables, sequence, first_block, kv, of_keys, of_values)
    if behind > 0:
        of_values[-1] = np.int64(tail.ctypes.data)
    most = min(lines, MOST_LINES)
    queries, weights = np.empty((most, head_dim), np.uint16), np.empty((most, length), np.uint16)
    scores, sums = np.empty((most, length), np.float32), np.empty((most, head_dim), np.float32)
    totals, none, key_step, value_step = np.empty(most, np.float32), np.int64(0), 2 * BLOCK_TOKENS, 2 * head_dim
    for line in range(0, lines, MOST_LINES):
        count = min(MOST_LINES, lines - line)
        reach = (start + (line + count - 1) // group) // BLOCK_TOKENS - first_block + 1  # blocks that these lines see
        for i in range(count):
            at = (kv * group + (line + i) % group) * head_dim
            for d in range(head_dim):
                queries[i, d] = rounded(qkv[row + (line + i) // group, at + d] * scale)
        configure(shapes, np.int64(count))
        for b in range(reach):
            first, to = b * chunks, b * BLOCK_TOKENS
            if count > LINES:
                _product_2(
                    queries, none, head_dim, of_keys, first, chunks, keys, tail, none, key_step, scores, to, length
                )
            else:
                _product_1(
                    queries, none, head_dim, of_keys, first, chunks, keys, tail, none, key_step, scores, to, length
                )
        for i in range(count):
            last = start + (line + i) // group
            first = max(begin, last - window + 1) if window > 0 else 0
            seen, begins = reach * BLOCK_TOKENS, i * length
            if softcap > 0.0:
                _cap(scores[i, :seen], softcap)
            totals[i] = numerators(scores, begins, weights, begins, seen, first - begin, last - begin)
        for d in range(0, head_dim, INNER):
            if count > LINES:
                _product_2(
                    weights, none, length, of_values, none, reach, values, tail, 2 * d, value_step, sums, d, head_dim
                )
            else:
                _product_1(
                    weights, none, length, of_values, none, reach, values, tail, 2 * d, value_step, sums, d, head_dim
                )
        for i in range(count):
            at, share = (kv * group + (line + i) % group) * head_dim, np.float32(1.0) / totals[i]
            for d in range(head_dim):
                out[row + (line + i) // group, at + d] = sums[i, d] * share
    release()


@compiled(parallel=True)
def _attend(qkv, out, keys, values, tables, tiles, shapes, heads, scale, window, softcap):
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    for item in prange(len(tiles) * kv_heads):
        tile, kv = item // kv_heads, item % kv_heads
        _attend_tile(
            qkv, out, keys, values, tables, shapes,
            np.int64(tiles[tile, 0]), np.int64(tiles[tile, 1]), np.int64(tiles[tile, 2]), np.int64(tiles[tile, 3]),
            kv, group, scale, window, softcap,
        )  # fmt: skip


def attend(qkv, out, keys, values, tables, tiles, heads, scale, window, softcap) -> None:
    """As `attention.attend`, over bf16 keys and values alone. Needs `usable`."""
    _attend(qkv, out, keys, values, tables, tiles, _SHAPES, heads, scale, window, softcap)
