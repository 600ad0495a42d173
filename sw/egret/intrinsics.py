"""Machine operations that Numba does not offer: leading zeros, unaligned big-endian words."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["leading_zeros", "load_word", "store_word"]


@intrinsic
def leading_zeros(typing_context: Any, number: Any) -> Any:
    """Count the zero bits above the highest one of a uint64; 64 for zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], cgutils.false_bit)

    return types.uint64(types.uint64), generate


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.IntType(64).as_pointer())


@intrinsic
def load_word(typing_context: Any, array: Any, index: Any) -> Any:
    """Read eight bytes of a uint8 array from `index` on as a big-endian uint64, unchecked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *arguments)
        return builder.bswap(builder.load(place, align=1))

    return types.uint64(array, types.intp), generate


@intrinsic
def store_word(typing_context: Any, array: Any, index: Any, number: Any) -> Any:
    """Write a uint64 as eight big-endian bytes into a uint8 array from `index` on, unchecked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *arguments[:2])
        builder.store(builder.bswap(arguments[2]), place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint64), generate
