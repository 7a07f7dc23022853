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
ROWS, _FEW_ROWS = (12, 4) if VECTOR_BYTES == 64 else (6, 2)
DEPTH = 256
"""Rows of b that are gone through at once: a panel stays in the first cache."""
PANELS = 4
"""Panels that are packed at once: of rows that lie apart in memory, a stretch is read of each."""

Array = np.ndarray


_tall_tile, _low_tile, _row_tile = tile_of(ROWS), tile_of(_FEW_ROWS), tile_of(1)


@intrinsic
def transpose(typing: Any, source: Any, place: Any, row: Any, target: Any, target_at: Any, target_row: Any) -> Any:
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
def pack_column(b: Array, start: int, first: int, depth: int, panel: Array) -> None:
    """Copy rows of b from `start` on, which are columns of its transpose, to a panel; their numbers from `first` on."""
    width = panel.shape[1]
    columns, lanes = min(width, b.shape[0] - start), width // VECTORS
    whole, deep = columns // lanes * lanes, depth // lanes * lanes
    for j in range(0, whole, lanes):
        for k in range(0, deep, lanes):
            transpose(b, (start + j) * b.shape[1] + first + k, b.shape[1], panel, k * width + j, width)
    for j in range(columns):
        for k in range(deep if j < whole else 0, depth):
            panel[k, j] = b[start + j, first + k]
    for k in range(depth):
        for j in range(columns, width):
            panel[k, j] = 0


@compiled
def _pack(b: Array, transposed: bool, start: int, first: int, depth: int, panels: Array) -> None:
    """Copy the columns from `start` on and the rows from `first` on of b, or of its transpose, to panels; pad by 0."""
    count, _, width = panels.shape
    columns = (b.shape[0] if transposed else b.shape[1]) - start
    count = min(count, (columns + width - 1) // width)
    if transposed:
        for i in range(count):
            pack_column(b, start + i * width, first, depth, panels[i])
        return
    for k in range(depth):
        line = b[first + k]
        for i in range(count):
            part, row = line[start + i * width : start + (i + 1) * width], panels[i, k]
            if len(part) == width:
                for j in range(width):
                    row[j] = part[j]
            else:
                for j in range(width):
                    row[j] = part[j] if j < len(part) else 0


@compiled
def workspace(like: Array) -> Any:
    """Return what `multiply` needs as room, for numbers as in `like`: panels and a tile at the edge of a result."""
    width = VECTORS * VECTOR_BYTES // like.itemsize
    return np.empty((PANELS, DEPTH, width), like.dtype), np.empty((ROWS, width), like.dtype)


@compiled
def multiply_vector(a: Array, a_transposed: bool, b: Array, c: Array, adds: bool) -> None:
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
    panels, edge = room
    columns, width = c.shape[1], panels.shape[2]
    if columns == 1:  # nearly all of a tile would be padding
        multiply_vector(a, a_transposed, b, c, adds)
        return
    total = a.shape[0] if a_transposed else a.shape[1]
    a_row, a_step = (1, a.shape[1]) if a_transposed else (a.shape[1], 1)
    for first in range(0, total, DEPTH):
        depth = min(DEPTH, total - first)
        for start in range(0, columns, len(panels) * width):
            _pack(b, b_transposed, start, first, depth, panels)
            for i in range(min(len(panels), (columns - start + width - 1) // width)):
                fill(a, first * a_step, a_row, a_step, panels[i], edge, c, start + i * width, depth, adds or first > 0)


@compiled
def fill(
    a: Array, place: int, a_row: int, a_step: int, panel: Array, edge: Array, c: Array, start: int, depth: int,
    adding: bool,
) -> None:  # fmt: skip
    """Write, or add, the columns of c from `start` on, as many as the panel is wide, tile by tile.

    The rows of a begin at this place; `edge` takes a tile that is wider than what is left of c.
    """
    (rows, columns), width = c.shape, panel.shape[1]
    within, row = min(width, columns - start), 0
    while row < rows:
        height = ROWS if rows - row >= ROWS else _FEW_ROWS if rows - row >= _FEW_ROWS else 1
        whole = within == width
        target, at, stride = (c, row * columns + start, columns) if whole else (edge, 0, width)
        left, also = place + row * a_row, adding and whole
        if height == ROWS:
            _tall_tile(a, left, a_row, a_step, panel, target, at, stride, depth, also)
        elif height == _FEW_ROWS:
            _low_tile(a, left, a_row, a_step, panel, target, at, stride, depth, also)
        else:
            _row_tile(a, left, a_row, a_step, panel, target, at, stride, depth, also)
        if not whole:
            for i in range(height):
                for j in range(within):
                    c[row + i, start + j] = edge[i, j] + (c[row + i, start + j] if adding else 0)
        row += height
