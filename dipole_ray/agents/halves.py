"""Matrix products of numbers rounded to bfloat16, each pair of products added up in float32, on one core.

A processor with AVX512-BF16 does twice as many of these a second as in float32.

Shapes: M rows and N columns of the product, K depth, which padding makes even.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from dipole_ray.agents.compiling import OPTIONS, compiled
from dipole_ray.agents.products import DEPTH, PANELS, ROWS, fill, multiply, pack_column, workspace
from dipole_ray.agents.tiles import PAIR, VECTOR_BYTES, VECTORS, pair_of

Array = np.ndarray
_WIDTH = VECTORS * VECTOR_BYTES // 4


@compiled
def _pair_rows(source: Array, first: int, depth: int, start: int, stop: int, target: Array) -> None:
    """Write the pairs of rows of the source from `first` on, between two columns, to the target's rows."""
    for k in range(depth // 2):
        above, below, line = source[first + 2 * k], source[first + 2 * k + 1], target[k]
        for j in range(stop - start):
            line[j] = pair_of(above[start + j], below[start + j])
    if depth % 2:
        above, line = source[first + depth - 1], target[depth // 2]
        for j in range(stop - start):
            line[j] = pair_of(above[start + j], np.float32(0))


@compiled
def _pair_columns(source: Array, first: int, depth: int, start: int, stop: int, target: Array) -> None:
    """Write the pairs of columns of the source from `first` on, between two rows, to the target, row by row."""
    for i in range(stop - start):
        line, pairs = source[start + i, first : first + depth], target[i]
        for k in range(depth // 2):
            pairs[k] = pair_of(line[2 * k], line[2 * k + 1])
        if depth % 2:
            pairs[depth // 2] = pair_of(line[depth - 1], np.float32(0))


@compiled
def _pack(b: Array, transposed: bool, start: int, first: int, depth: int, lines: Array, panels: Array) -> None:
    """Do what `products.pack` does, with pairs along the depth; `lines` is room for those of a panel's columns."""
    width, (rows, columns) = panels.shape[2], b.shape
    if transposed:
        for i in range(min(len(panels), (rows - start + width - 1) // width)):
            at, stop = start + i * width, min(start + (i + 1) * width, rows)
            _pair_columns(b, first, depth, at, stop, lines)
            pack_column(lines[: stop - at], 0, 0, (depth + 1) // 2, panels[i])
        return
    count = min(len(panels), (columns - start + width - 1) // width)
    for k in range((depth + 1) // 2):
        above, is_last = b[first + 2 * k], 2 * k + 1 == depth
        below = above if is_last else b[first + 2 * k + 1]
        for i in range(count):
            at, row = start + i * width, panels[i, k]
            if at + width <= columns and not is_last:
                left, right = above[at : at + width], below[at : at + width]
                for j in range(width):
                    row[j] = pair_of(left[j], right[j])
            else:
                for j in range(width):
                    one = above[at + j] if at + j < columns else np.float32(0)
                    row[j] = pair_of(one, np.float32(0) if is_last or at + j >= columns else below[at + j])


@compiled
def workspace_of_halves(rows: int) -> Any:
    """Return what `multiply_halves` needs as room for products of up to so many rows."""
    pairs = DEPTH
    left = np.empty((rows * pairs,), PAIR)
    lines, panels = np.empty((_WIDTH, pairs), PAIR), np.empty((PANELS, pairs, _WIDTH), PAIR)
    return left, lines, panels, np.empty((ROWS, _WIDTH), np.float32)


@compiled
def multiply_halves(
    a: Array, a_transposed: bool, b: Array, b_transposed: bool, c: Array, adds: bool, room: Any
) -> None:
    """Do what `products.multiply` does, all arrays in float32, with the numbers of a and b rounded to bfloat16.

    Where the result has one column or a product one term, nothing is rounded: nearly all of it would be padding.
    """
    left, lines, panels, edge = room
    (rows, columns), width = c.shape, panels.shape[2]
    total = a.shape[0] if a_transposed else a.shape[1]
    if columns == 1 or total == 1:
        multiply(a, a_transposed, b, b_transposed, c, adds, workspace(a))
        return
    for first in range(0, total, 2 * DEPTH):
        depth = min(2 * DEPTH, total - first)
        pairs = (depth + 1) // 2
        if a_transposed:
            _pair_rows(a, first, depth, 0, rows, left[: pairs * rows].reshape((pairs, rows)))
            a_row, a_step = 1, rows
        else:
            _pair_columns(a, first, depth, 0, rows, left[: pairs * rows].reshape((rows, pairs)))
            a_row, a_step = pairs, 1
        for start in range(0, columns, len(panels) * width):
            _pack(b, b_transposed, start, first, depth, lines, panels)
            for i in range(min(len(panels), (columns - start + width - 1) // width)):
                fill(left, 0, a_row, a_step, panels[i], edge, c, start + i * width, pairs, adds or first > 0)


def room_for(number: Any, like: Array, rows: int) -> Any:
    """Return room for products of up to so many rows, of numbers as in `like`, or of halves if `number` is a `PAIR`."""
    raise NotImplementedError  # only compiled code calls it, and gets the function below


@overload(room_for, jit_options=OPTIONS)
def _compile_room_for(number: Any, like: Any, rows: Any) -> Any:
    def of_halves(number: Any, like: Any, rows: Any) -> Any:
        return workspace_of_halves(rows)

    def of_own(number: Any, like: Any, rows: Any) -> Any:
        return workspace(like)

    return of_halves if number == types.uint32 else of_own


def product(a: Any, a_transposed: Any, b: Any, b_transposed: Any, c: Any, adds: Any, room: Any) -> None:
    """Do what `multiply` does, or `multiply_halves`, as the room was made."""
    raise NotImplementedError  # only compiled code calls it, and gets the function below


@overload(product, jit_options=OPTIONS)
def _compile_product(a: Any, a_transposed: Any, b: Any, b_transposed: Any, c: Any, adds: Any, room: Any) -> Any:
    chosen = multiply if len(room) == 2 else multiply_halves

    def run(a: Any, a_transposed: Any, b: Any, b_transposed: Any, c: Any, adds: Any, room: Any) -> None:
        chosen(a, a_transposed, b, b_transposed, c, adds, room)

    return run
