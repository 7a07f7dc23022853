"""The innermost tile of a matrix product: some rows by two vectors of the result, summed up in registers.

It decides how fast a product is, and compilers do not find it, so it is spelled out in LLVM's instructions, for
whatever vectors the machine has.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx2") else 16
VECTORS = 2
"""Bytes of a vector, and vectors in a row of a tile."""
INDEX = ir.IntType(64)


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


def tile_of(rows: int) -> Any:
    """Return the function of a tile of this height.

    It writes, or adds, to c (rows by two vectors, rows `c_row` apart) the product of a, whose rows lie `a_row` and
    columns `a_step` apart, and of a panel b of two vectors' width, over `depth`. Places are counted in elements.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def tile(
        typing: Any, a: Any, a_at: Any, a_row: Any, a_step: Any, b: Any, c: Any, c_at: Any, c_row: Any, depth: Any,
        adds: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a_value, a_at, a_row, a_step, b_value, c_value, c_at, c_row, depth, adds = arguments
            vector, lanes = vector_of(context, a), lanes_of(a)
            name = f"llvm.fma.v{lanes}f{a.dtype.bitwidth}"
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
            zero, undefined = ir.Constant(vector, [0.0] * lanes), ir.Constant(vector, ir.Undefined)
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
                builder.bitcast(builder.gep(right, [INDEX(v * lanes)]), vector.as_pointer()) for v in range(VECTORS)
            ]
            loads = [builder.load(each, align=a.dtype.bitwidth // 8) for each in loads]
            added, row = [], left
            for i in range(rows):
                value = builder.insert_element(undefined, builder.load(row), ir.IntType(32)(0))
                spread = shuffled(builder, value, undefined, [0] * lanes)
                added += [builder.call(fma, (spread, loads[v], sums[i * VECTORS + v])) for v in range(VECTORS)]
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
