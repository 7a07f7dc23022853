"""A hidden layer in Triton, its product and all that follows, and what the gradients of a stack of them take.

A layer is one kernel: the norm of the layer below, product, bias and GELU. Row by row the norm needs the mean and the
spread of the whole layer below, of which each program of that layer's kernel leaves those of its own columns.

Kernels see the members of S agents' stacks as one dimension M = S E; a parameter of member e of agent s lies at
s `outer` + e (its size). torch's builds for CUDA bring Triton; with TRITON_INTERPRET=1 it runs on a CPU, too.

Shapes: M members, B rows, I inputs, H hidden units, D outputs, N blocks of rows.
"""

import math
from typing import NamedTuple

import triton
import triton.language as tl

REDUCED, CHUNK = 64, 64
"""Columns that a program adds up, and how many numbers of each at once."""


class Tile(NamedTuple):
    """What one program of a product computes, `rows` by `columns`, reading `depth` terms of its sums at once."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int = 3


_SMALL, _WIDE, _LARGE = Tile(32, 32, 64, 4), Tile(32, 64, 64, 4), Tile(32, 128, 32, 4)
TILES = {
    ("hidden", "tf32"): {128: _SMALL, 1024: _WIDE, math.inf: _LARGE},
    ("hidden", "ieee"): {1024: _SMALL, math.inf: _LARGE},
    ("input", "tf32"): {1024: Tile(64, 64, 32, 4), math.inf: Tile(64, 128, 32, 4)},
    ("kernel", "tf32"): {1024: _WIDE, math.inf: _LARGE},
    ("kernel", "ieee"): {1024: _WIDE, math.inf: _LARGE},
}
"""By product and precision the tiles for as many results, in blocks of 32 x 32: measured on an H200 at 3 x 512.

Larger tiles read less for each result, but leave a GPU idle where results are few.
"""


def tile_for(product: str, precision: str, members: int, rows: int, columns: int) -> Tile:
    """Return by what tiles a product of `members` results (rows, columns) is computed."""
    blocks = members * triton.cdiv(rows, 32) * triton.cdiv(columns, 32)
    return next(tile for most, tile in TILES[product, precision].items() if blocks <= most)


def rows_for(members: int, rows: int) -> tuple[int, int]:
    """Return of how many rows a program without a product takes care, and its warps; as many as keep a GPU busy."""
    return (4, 4) if members * rows <= 1024 else (8, 8)


_PLAIN = ("members", "share", "E")
"""Arguments of which no value is worth a kernel of its own."""


@triton.jit
def gate_of(a: tl.tensor) -> tl.tensor:
    """Return the factor by which GELU scales its input, see `networks.gelu_tanh`."""
    return tl.sigmoid(1.5957691216057308 * a * (1.0 + 0.044715 * a * a))


@triton.jit(do_not_specialize=_PLAIN)
def hidden_layer(
    x: tl.tensor, kernel: tl.tensor, bias: tl.tensor, scale: tl.tensor, shift: tl.tensor, below: tl.tensor,
    moments: tl.tensor, y: tl.tensor, slope: tl.tensor, parts: tl.tensor, rows: tl.tensor, members: tl.tensor,
    share: tl.tensor, x_member: tl.tensor, x_row: tl.tensor, outer: tl.tensor,
    E: tl.tensor, INPUTS: tl.constexpr, H: tl.constexpr, BELOW: tl.constexpr, BELOW_BLOCK: tl.constexpr,
    BELOW_TILE: tl.tensor, NORM_IN: tl.constexpr, NORM_OUT: tl.constexpr, KEEP: tl.constexpr,
    EPSILON: tl.constexpr, PRECISION: tl.constexpr, TILE_B: tl.constexpr, TILE_H: tl.constexpr, DEPTH: tl.constexpr,
) -> None:  # fmt: skip
    """Write y = GELU(norm(x) kernel + bias), (M, B, H), and what the layer above and the gradients need of it.

    x is (M / share, B, I) with strides; `below` and `parts` are sums and centred squares, (2, M, tiles, B), of the
    columns that one program of the layer below computes, and of those of this one. From `below` come the mean and the
    inverse spread in `moments`, (2, M, B). `slope` is the derivative of y by the product.
    """
    row, column = tl.program_id(0) * TILE_B + tl.arange(0, TILE_B), tl.program_id(1) * TILE_H + tl.arange(0, TILE_H)
    member, term, is_row, is_column = tl.program_id(2), tl.arange(0, DEPTH), row < rows, column < H
    at, e = (member // E).to(tl.int64) * outer, member % E
    left, right = x + (member // share).to(tl.int64) * x_member, kernel + at + e * INPUTS * H
    if NORM_IN:
        part = tl.arange(0, BELOW_BLOCK)
        of = (member * BELOW + part)[:, None] * rows + row[None, :]
        known = (part < BELOW)[:, None] & is_row[None, :]
        number = tl.maximum(tl.minimum(INPUTS - part * BELOW_TILE, BELOW_TILE), 1).to(tl.float32)[:, None]
        sums = tl.load(below + of, mask=known, other=0.0)
        squares = tl.load(below + members * BELOW * rows + of, mask=known, other=0.0)
        mean = tl.sum(sums, axis=0) / INPUTS
        off = tl.where(known, sums / number - mean[None, :], 0.0)
        rstd = tl.rsqrt(tl.sum(squares + number * off * off, axis=0) / INPUTS + EPSILON)
        if KEEP:
            own = is_row & (tl.program_id(1) == 0)
            tl.store(moments + member * rows + row, mean, mask=own)
            tl.store(moments + (members + member) * rows + row, rstd, mask=own)
    total = tl.zeros((TILE_B, TILE_H), dtype=tl.float32)
    for start in range(0, INPUTS, DEPTH):
        k = start + term
        a_at, b_at = left + (row[:, None] * x_row + k[None, :]), right + (k[:, None] * H + column[None, :])
        a = tl.load(a_at, mask=is_row[:, None] & (k < INPUTS)[None, :], other=0.0)
        b = tl.load(b_at, mask=(k < INPUTS)[:, None] & is_column[None, :], other=0.0)
        if NORM_IN:
            factor = tl.load(scale + at + e * INPUTS + k, mask=k < INPUTS, other=0.0)
            term_added = tl.load(shift + at + e * INPUTS + k, mask=k < INPUTS, other=0.0)
            a = (a - mean[:, None]) * rstd[:, None] * factor[None, :] + term_added[None, :]
        total = tl.dot(a, b, total, input_precision=PRECISION)
    z = total + tl.load(bias + at + e * H + column, mask=is_column, other=0.0)[None, :]
    gate = gate_of(z)
    g, inside = z * gate, is_row[:, None] & is_column[None, :]
    to = (member * rows + row)[:, None] * H + column[None, :]
    tl.store(y + to, g, mask=inside)
    if KEEP:
        derivative = gate + g * (1.0 - gate) * 1.5957691216057308 * (1.0 + 0.134145 * z * z)
        tl.store(slope + to, derivative, mask=inside)
    if NORM_OUT:
        g = tl.where(is_column[None, :], g, 0.0)
        summed, width = tl.sum(g, axis=1), tl.minimum(H - tl.program_id(1) * TILE_H, TILE_H).to(tl.float32)
        centred = tl.where(is_column[None, :], g - (summed / width)[:, None], 0.0)
        of_tile = (member * tl.num_programs(1) + tl.program_id(1)) * rows + row
        tl.store(parts + of_tile, summed, mask=is_row)
        tl.store(parts + members * tl.num_programs(1) * rows + of_tile, tl.sum(centred * centred, axis=1), mask=is_row)


@triton.jit(do_not_specialize=_PLAIN)
def last_layer(
    x: tl.tensor, kernel: tl.tensor, bias: tl.tensor, scale: tl.tensor, shift: tl.tensor, moments: tl.tensor,
    y: tl.tensor, rows: tl.tensor, members: tl.tensor, outer: tl.tensor, E: tl.tensor, H: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, EPSILON: tl.constexpr,
) -> None:  # fmt: skip
    """Write y = norm(x) kernel + bias, (M, B, D), and the moments of the rows of x (M, B, H)."""
    row, unit, member = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.program_id(1)
    is_row, valid, at, e = row < rows, unit < H, (member // E).to(tl.int64) * outer, member % E
    inside = is_row[:, None] & valid[None, :]
    g = tl.load(x + (member * rows + row)[:, None] * H + unit[None, :], mask=inside, other=0.0)
    if NORM:
        mean = tl.sum(g, axis=1) / H
        centred = tl.where(inside, g - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, axis=1) / H + EPSILON)
        tl.store(moments + member * rows + row, mean, mask=is_row)
        tl.store(moments + (members + member) * rows + row, rstd, mask=is_row)
        g = centred * rstd[:, None] * tl.load(scale + at + e * H + unit, mask=valid, other=0.0)[None, :]
        g += tl.load(shift + at + e * H + unit, mask=valid, other=0.0)[None, :]
    for d in range(D):
        w = tl.load(kernel + at + (e * H + unit) * D + d, mask=valid, other=0.0)
        found = tl.sum(g * w[None, :], axis=1) + tl.load(bias + at + e * D + d)
        tl.store(y + (member * rows + row) * D + d, found, mask=is_row)


@triton.jit(do_not_specialize=_PLAIN)
def hidden_gradient(
    y: tl.tensor, slope: tl.tensor, scale: tl.tensor, shift: tl.tensor, moments: tl.tensor, above: tl.tensor,
    last_kernel: tl.tensor, dz: tl.tensor, sums: tl.tensor, rows: tl.tensor, members: tl.tensor, outer: tl.tensor,
    E: tl.tensor, H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    NORM: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradient of a layer's product, dz (M, B, H), and sums over this program's rows, (kinds, N, M, WIDTH).

    `above` is the gradient of the layer's result, (M, B, H); or where D is not 0 that of the outputs, (M, B, D). The
    kinds are the gradients of bias, and with a norm of scale and shift; of each output's kernel, and of its bias.
    """
    block, member, column = tl.program_id(0), tl.program_id(1), tl.arange(0, BLOCK)
    row, valid, at, e = block * ROWS + tl.arange(0, ROWS), column < H, (member // E).to(tl.int64) * outer, member % E
    is_row = row < rows
    inside, of = is_row[:, None] & valid[None, :], (member * rows + row)[:, None] * H + column[None, :]
    out, kind = sums + (block * members + member) * WIDTH + column, tl.num_programs(0) * members * WIDTH
    kinds = 3 if NORM else 1
    result = tl.load(y + of, mask=inside, other=0.0)
    normal = result
    if NORM:
        mean = tl.load(moments + member * rows + row, mask=is_row, other=0.0)
        rstd = tl.load(moments + (members + member) * rows + row, mask=is_row, other=0.0)
        factor = tl.load(scale + at + e * H + column, mask=valid, other=0.0)
        normal = tl.where(inside, (result - mean[:, None]) * rstd[:, None], 0.0)
        result = normal * factor[None, :] + tl.load(shift + at + e * H + column, mask=valid, other=0.0)[None, :]
    if D == 0:
        d = tl.load(above + of, mask=inside, other=0.0)
    else:
        d = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for o in range(D):
            part = tl.load(above + (member * rows + row) * D + o, mask=is_row, other=0.0)
            w = tl.load(last_kernel + at + (e * H + column) * D + o, mask=valid, other=0.0)
            d += part[:, None] * w[None, :]
            tl.store(out + (kinds + o) * kind, tl.sum(part[:, None] * result, axis=0), mask=valid)
            tl.store(sums + (kinds + D) * kind + (block * members + member) * WIDTH + o, tl.sum(part, axis=0))
    if NORM:
        tl.store(out + kind, tl.sum(d * normal, axis=0), mask=valid)
        tl.store(out + 2 * kind, tl.sum(d, axis=0), mask=valid)
        d = d * factor[None, :]
        along = tl.sum(d * normal, axis=1) / H
        d = rstd[:, None] * (d - (tl.sum(d, axis=1) / H)[:, None] - normal * along[:, None])
    d = tl.where(inside, d * tl.load(slope + of, mask=inside, other=0.0), 0.0)
    tl.store(dz + of, d, mask=inside)
    tl.store(out, tl.sum(d, axis=0), mask=valid)


@triton.jit(do_not_specialize=_PLAIN)
def add_blocks(
    sums: tl.tensor, bias: tl.tensor, scale: tl.tensor, shift: tl.tensor, last_kernel: tl.tensor, last_bias: tl.tensor,
    members: tl.tensor, outer: tl.tensor, E: tl.tensor, H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr, NORM: tl.constexpr, REDUCED: tl.constexpr, CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    """Add up what `hidden_gradient` leaves, always in one order: the step stays repeatable."""
    column, member, kind = tl.program_id(0) * REDUCED + tl.arange(0, REDUCED), tl.program_id(1), tl.program_id(2)
    at, e, chunk = (member // E).to(tl.int64) * outer, member % E, tl.arange(0, CHUNK)
    total = tl.zeros((REDUCED,), dtype=tl.float32)
    for start in range(0, BLOCKS, CHUNK):
        block = start + chunk
        of = ((kind * BLOCKS + block)[:, None] * members + member) * WIDTH + column[None, :]
        inside = (block < BLOCKS)[:, None] & (column < WIDTH)[None, :]
        total += tl.sum(tl.load(sums + of, mask=inside, other=0.0), axis=0)
    kinds = 3 if NORM else 1
    if kind == 0:
        tl.store(bias + at + e * H + column, total, mask=column < H)
    if NORM:
        if kind == 1:
            tl.store(scale + at + e * H + column, total, mask=column < H)
        if kind == 2:
            tl.store(shift + at + e * H + column, total, mask=column < H)
    if D > 0:
        if (kind >= kinds) & (kind < kinds + D):
            tl.store(last_kernel + at + (e * H + column) * D + (kind - kinds), total, mask=column < H)
        if kind == kinds + D:
            tl.store(last_bias + at + e * D + column, total, mask=column < D)


@triton.jit(do_not_specialize=_PLAIN)
def input_gradient(
    dz: tl.tensor, kernel: tl.tensor, dx: tl.tensor, rows: tl.tensor, outer: tl.tensor, E: tl.tensor,
    INPUTS: tl.constexpr, H: tl.constexpr, PRECISION: tl.constexpr, TILE_B: tl.constexpr, TILE_I: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:  # fmt: skip
    """Write dx (M, B, I), the gradient of a layer's inputs, from that of its product (M, B, H)."""
    row, unit = tl.program_id(0) * TILE_B + tl.arange(0, TILE_B), tl.program_id(1) * TILE_I + tl.arange(0, TILE_I)
    member, term, is_row, is_unit = tl.program_id(2), tl.arange(0, DEPTH), row < rows, unit < INPUTS
    right = kernel + (member // E).to(tl.int64) * outer + (member % E) * INPUTS * H
    left, total = dz + member.to(tl.int64) * rows * H, tl.zeros((TILE_B, TILE_I), dtype=tl.float32)
    for start in range(0, H, DEPTH):
        k = start + term
        a_at, b_at = left + (row[:, None] * H + k[None, :]), right + (unit[:, None] * H + k[None, :])
        a = tl.load(a_at, mask=is_row[:, None] & (k < H)[None, :], other=0.0)
        b = tl.load(b_at, mask=is_unit[:, None] & (k < H)[None, :], other=0.0)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    to = (member * rows + row)[:, None] * INPUTS + unit[None, :]
    tl.store(dx + to, total, mask=is_row[:, None] & is_unit[None, :])


@triton.jit(do_not_specialize=_PLAIN)
def kernel_gradient(
    x: tl.tensor, scale: tl.tensor, shift: tl.tensor, moments: tl.tensor, dz: tl.tensor, dw: tl.tensor,
    members: tl.tensor, share: tl.tensor, x_member: tl.tensor, x_row: tl.tensor, outer: tl.tensor, dw_outer: tl.tensor,
    E: tl.tensor, BATCH: tl.constexpr, INPUTS: tl.constexpr, H: tl.constexpr, NORM: tl.constexpr,
    PRECISION: tl.constexpr, TILE_I: tl.constexpr, TILE_H: tl.constexpr, DEPTH: tl.constexpr,
) -> None:  # fmt: skip
    """Write dw (M, I, H), the gradient of a layer's kernel: norm(x)' dz, see `hidden_layer`."""
    unit, column = tl.program_id(0) * TILE_I + tl.arange(0, TILE_I), tl.program_id(1) * TILE_H + tl.arange(0, TILE_H)
    member, term, is_unit, is_column = tl.program_id(2), tl.arange(0, DEPTH), unit < INPUTS, column < H
    s, e, total = (member // E).to(tl.int64), member % E, tl.zeros((TILE_I, TILE_H), dtype=tl.float32)
    left, right = x + (member // share).to(tl.int64) * x_member, dz + member.to(tl.int64) * BATCH * H
    if NORM:
        factor = tl.load(scale + s * outer + e * INPUTS + unit, mask=is_unit, other=0.0)
        term_added = tl.load(shift + s * outer + e * INPUTS + unit, mask=is_unit, other=0.0)
    for start in range(0, BATCH, DEPTH):
        row = start + term
        is_row = row < BATCH
        a_at, b_at = left + (row[:, None] * x_row + unit[None, :]), right + (row[:, None] * H + column[None, :])
        a = tl.load(a_at, mask=is_row[:, None] & is_unit[None, :], other=0.0)
        if NORM:
            mean = tl.load(moments + member * BATCH + row, mask=is_row, other=0.0)
            rstd = tl.load(moments + (members + member) * BATCH + row, mask=is_row, other=0.0)
            a = (a - mean[:, None]) * rstd[:, None] * factor[None, :] + term_added[None, :]
        b = tl.load(b_at, mask=is_row[:, None] & is_column[None, :], other=0.0)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
    to = s * dw_outer + (e * INPUTS + unit)[:, None] * H + column[None, :]
    tl.store(dw + to, total, mask=is_unit[:, None] & is_column[None, :])
