"""Matrix products of the sizes of an update, on one core.

A vendor's library is tuned for large products and one maker's processors: on AMD's, MKL reaches half of this, and each
call from Python costs as much as a product of width 128.

Shapes: M rows and N columns of the product, K depth.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from dipole_ray.agents.compiling import compiled
from dipole_ray.agents.tiles import INDEX, VECTOR_BYTES, VECTORS, address_of, lanes_of, shuffled, tile_of, vector_of

# Rows of a tile that leave registers, of which AVX2 has half as many, for two vectors of b and one value of a.
_ROWS, _FEW_ROWS = (12, 4) if VECTOR_BYTES == 64 else (6, 2)
_DEPTH = 256
"""Rows of b that are gone through at once: the panel stays in the first cache."""

Array = np.ndarray


_tall_tile, _low_tile, _row_tile = tile_of(_ROWS), tile_of(_FEW_ROWS), tile_of(1)


@intrinsic
def _transpose(typing: Any, source: Any, place: Any, row: Any, target: Any, target_at: Any, target_row: Any) -> Any:
    """Write a square of the source, a vector wide, as columns of the target; rows lie `row` and `target_row` apart."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_value, place, row, target_value, target_at, target_row = arguments
        lanes, kind = lanes_of(source), vector_of(context, source).as_pointer()
        start = address_of(context, builder, source, source_value, place)
        starts = [builder.gep(start, [builder.mul(row, INDEX(i))]) for i in range(lanes)]
        lines = [builder.load(builder.bitcast(each, kind), align=4) for each in starts]
        block = lanes // 2
        while block:  # swap the off-diagonal blocks of all squares of twice this size
            swapped = list(lines)
            for i in (i for i in range(lanes) if not i & block):
                pair = lines[i], lines[i + block]
                upper = [lanes + j - block if j & block else j for j in range(lanes)]
                lower = [lanes + j if j & block else j + block for j in range(lanes)]
                swapped[i], swapped[i + block] = (shuffled(builder, *pair, order) for order in (upper, lower))
            lines, block = swapped, block // 2
        start = address_of(context, builder, target, target_value, target_at)
        for i, line in enumerate(lines):
            builder.store(line, builder.bitcast(builder.gep(start, [builder.mul(target_row, INDEX(i))]), kind), align=4)
        return context.get_dummy_value()

    index = types.intp
    return types.void(source, index, index, target, index, index), generate


@compiled
def _pack(b: Array, transposed: bool, start: int, first: int, depth: int, panel: Array) -> None:
    """Copy the columns from `start` on and the rows from `first` on of b, or of its transpose, to a panel; pad by 0."""
    width = panel.shape[1]
    columns = min(width, (b.shape[0] if transposed else b.shape[1]) - start)
    lanes = width // VECTORS
    done, deep = (columns // lanes * lanes, depth // lanes * lanes) if transposed else (0, 0)
    for j in range(0, done, lanes):
        for k in range(0, deep, lanes):
            _transpose(b, (start + j) * b.shape[1] + first + k, b.shape[1], panel, k * width + j, width)
    if transposed:
        for j in range(columns):
            for k in range(deep if j < done else 0, depth):
                panel[k, j] = b[start + j, first + k]
    else:
        part = b[first : first + depth, start : start + columns]  # an index from 0 needs no look at its sign
        for k in range(depth):
            for j in range(columns):
                panel[k, j] = part[k, j]
    for k in range(depth):
        for j in range(columns, width):
            panel[k, j] = 0


@compiled
def workspace(like: Array) -> Any:
    """Return what `multiply` needs as room, for numbers as in `like`: a panel and a tile at the edge of a result."""
    width = VECTORS * VECTOR_BYTES // like.itemsize
    return np.empty((_DEPTH, width), like.dtype), np.empty((_ROWS, width), like.dtype)


@compiled
def _multiply_vector(a: Array, a_transposed: bool, b: Array, c: Array, adds: bool) -> None:
    """Do what `multiply` does for a b that has one column."""
    vector, result = b.reshape(b.size), c.reshape(c.size)
    if not adds:
        result[:] = 0
    for i in range(a.shape[0]):
        line = a[i]
        if a_transposed:
            for j in range(len(line)):
                result[j] += vector[i] * line[j]
        else:
            total = line[0] * vector[0]
            for j in range(1, len(line)):
                total += line[j] * vector[j]
            result[i] += total


@compiled
def multiply(a: Array, a_transposed: bool, b: Array, b_transposed: bool, c: Array, adds: bool, room: Any) -> None:
    """Write, or add, to c (M, N) the product of a (M, K) and b (K, N), each of which may be given transposed.

    All are contiguous. Each number is summed up in the order of K whatever M and N, so rows may be computed apart.
    """
    panel, edge = room
    (rows, columns), width = c.shape, panel.shape[1]
    if columns == 1:  # nearly all of a tile would be padding
        _multiply_vector(a, a_transposed, b, c, adds)
        return
    total = a.shape[0] if a_transposed else a.shape[1]
    a_row, a_step = (1, a.shape[1]) if a_transposed else (a.shape[1], 1)
    for first in range(0, total, _DEPTH):
        depth, adding = min(_DEPTH, total - first), adds or first > 0
        for start in range(0, columns, width):
            _pack(b, b_transposed, start, first, depth, panel)
            within, row = min(width, columns - start), 0
            while row < rows:
                height = _ROWS if rows - row >= _ROWS else _FEW_ROWS if rows - row >= _FEW_ROWS else 1
                whole = within == width
                target, place, stride = (c, row * columns + start, columns) if whole else (edge, 0, width)
                at, also = row * a_row + first * a_step, adding and whole
                if height == _ROWS:
                    _tall_tile(a, at, a_row, a_step, panel, target, place, stride, depth, also)
                elif height == _FEW_ROWS:
                    _low_tile(a, at, a_row, a_step, panel, target, place, stride, depth, also)
                else:
                    _row_tile(a, at, a_row, a_step, panel, target, place, stride, depth, also)
                if not whole:
                    for i in range(height):
                        for j in range(within):
                            c[row + i, start + j] = edge[i, j] + (c[row + i, start + j] if adding else 0)
                row += height
