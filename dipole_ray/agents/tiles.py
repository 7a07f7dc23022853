"""The innermost tile of a matrix product: some rows by two vectors of the result, summed up in registers.

It decides how fast a product is, and compilers do not find it, so it is spelled out in LLVM's instructions, for
whatever vectors the machine has.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
VECTORS = 2
"""Bytes of a vector, and vectors in a row of a tile."""
INDEX = ir.IntType(64)
PAIR = np.uint32
"""Holds two bfloat16 numbers that are next to each other along the depth of a product, the first in the low half."""
HAS_PAIRS = bool(VECTOR_BYTES == 64 and _FEATURES.get("avx512bf16"))
"""Whether the machine multiplies such pairs and adds the two products in float32, one instruction a vector."""


class _BFloat(ir.HalfType):
    """LLVM's bfloat, which llvmlite lacks."""

    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()


def lanes_of(array: Any) -> int:
    """Return how many numbers of this array's type a vector holds."""
    return int(VECTOR_BYTES * 8 // array.dtype.bitwidth)


def vector_of(context: Any, array: Any) -> ir.VectorType:
    """Return the type of a vector of this array's numbers."""
    return ir.VectorType(context.get_data_type(array.dtype), lanes_of(array))


def address_of(context: Any, builder: Any, array: Any, value: Any, place: Any) -> Any:
    """Return the pointer to an array's element at a place counted in elements."""
    return builder.gep(context.make_array(array)(context, builder, value).data, [place])


def shuffled(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    """Return the lanes of two vectors, one after the other, in this order."""
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _multiply_add(builder: Any, numbers: Any, total: Any) -> Callable[[Any, Any, Any], Any]:
    """Return what adds the product of two vectors of these numbers, or of pairs, to a vector of type `total`."""
    lanes = total.count
    if numbers != types.uint32:
        name = f"llvm.fma.v{lanes}f{numbers.bitwidth}"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(total, [total] * 3), name)
        return lambda left, right, sums: builder.call(fma, (left, right, sums))
    halves = ir.VectorType(_BFloat(), 2 * lanes)
    form = ir.FunctionType(total, [total, halves, halves])
    dot = cgutils.get_or_insert_function(builder.module, form, f"llvm.x86.avx512bf16.dpbf16ps.{lanes * 32}")
    return lambda left, right, sums: builder.call(
        dot, (sums, builder.bitcast(left, halves), builder.bitcast(right, halves))
    )


@intrinsic  # type: ignore[untyped-decorator]
def pair_of(typing: Any, first: Any, second: Any) -> Any:
    """Return two float32 numbers, rounded to bfloat16, as a pair."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        halves = [builder.bitcast(builder.fptrunc(each, _BFloat()), ir.IntType(16)) for each in arguments]
        low, high = (builder.zext(half, ir.IntType(32)) for half in halves)
        return builder.or_(low, builder.shl(high, ir.IntType(32)(16)))

    return types.uint32(types.float32, types.float32), generate


def tile_of(rows: int) -> Any:
    """Return the function of a tile of this height.

    It writes, or adds, to c (rows by two vectors, rows `c_row` apart) the product of a, whose rows lie `a_row` and
    columns `a_step` apart, and of a panel b of two vectors' width, over `depth`. Places are counted in elements. Where
    a and b hold pairs, an element is one, and the depth is counted in them.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        typing: Any, a: Any, a_at: Any, a_row: Any, a_step: Any, b: Any, c: Any, c_at: Any, c_row: Any, depth: Any,
        adds: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a_value, a_at, a_row, a_step, b_value, c_value, c_at, c_row, depth, adds = arguments
            vector, loaded, lanes = vector_of(context, c), vector_of(context, a), lanes_of(c)
            fma = _multiply_add(builder, a.dtype, vector)
            zero, undefined = ir.Constant(vector, [0.0] * lanes), ir.Constant(loaded, ir.Undefined)
            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            left = address_of(context, builder, a, a_value, a_at)
            right = address_of(context, builder, b, b_value, INDEX(0))
            result = address_of(context, builder, c, c_value, c_at)
            builder.branch(loop)

            builder.position_at_end(loop)
            starts = [INDEX(0), left, right, *[zero] * (rows * VECTORS)]
            states = [builder.phi(start.type) for start in starts]
            (k, left, right), sums = states[:3], states[3:]
            loads = [
                builder.bitcast(builder.gep(right, [INDEX(v * lanes)]), loaded.as_pointer()) for v in range(VECTORS)
            ]
            loads = [builder.load(each, align=a.dtype.bitwidth // 8) for each in loads]
            added, row = [], left
            for i in range(rows):
                value = builder.insert_element(undefined, builder.load(row), ir.IntType(32)(0))
                spread = shuffled(builder, value, undefined, [0] * lanes)
                added += [fma(spread, loads[v], sums[i * VECTORS + v]) for v in range(VECTORS)]
                row = builder.gep(row, [a_row])
            onward = builder.add(k, INDEX(1))
            ends = [onward, builder.gep(left, [a_step]), builder.gep(right, [INDEX(lanes * VECTORS)]), *added]
            for state, start, end in zip(states, starts, ends, strict=True):
                state.add_incoming(start, before)
                state.add_incoming(end, loop)
            builder.cbranch(builder.icmp_signed("<", onward, depth), loop, after)

            builder.position_at_end(after)
            places = [builder.gep(result, [builder.mul(c_row, INDEX(i))]) for i in range(rows)]
            places = [builder.gep(place, [INDEX(v * lanes)]) for place in places for v in range(VECTORS)]
            places = [builder.bitcast(place, vector.as_pointer()) for place in places]
            with builder.if_else(adds) as (then, otherwise):
                with then:
                    for place, value in zip(places, added, strict=True):
                        builder.store(builder.fadd(builder.load(place, align=4), value), place, align=4)
                with otherwise:
                    for place, value in zip(places, added, strict=True):
                        builder.store(value, place, align=4)
            return context.get_dummy_value()

        index = types.intp
        return types.void(a, index, index, index, b, c, index, index, index, types.boolean), generate

    return tile
