"""A vector of 16 float32 numbers for numba kernels.

numba hands plain loops to LLVM, which turns a branch-free loop of fixed length into vector instructions only while it
can prove a lot about it: a variable start, a sum over two loops or a second array each prevent it. Kernels that must be
vectors say so with this type. LLVM cuts it to what the processor has (one register with AVX-512, two with AVX2, four
with SSE or NEON).

Within a kernel: ``+ - * /`` between vectors or a vector and a float32; comparisons give a mask, masks combine with
``&``. numba's cache looks at the file of a kernel alone: who changes this one clears the kernels' cache.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16
"""Numbers in a vector."""

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS, _BITS = (ir.VectorType(kind, LANES) for kind in (_FLOAT, _INT, ir.IntType(1)))


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


class _Mask(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"mask{LANES}")


_vector, _mask = _Vector(), _Mask()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Vector) -> None:
        super().__init__(manager, kind, _FLOATS)


@register_model(_Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Mask) -> None:
        super().__init__(manager, kind, _BITS)


def _repeat(builder: Any, value: Any, kind: Any = _FLOATS) -> Any:
    """All lanes the scalar ``value``."""
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _constant(kind: Any, value: float) -> ir.Constant:
    value = float(np.float32(value)) if kind is _FLOATS else value
    return ir.Constant(kind, [value] * LANES)


def _define(symbol: Callable, result: types.Type, instruction: Callable) -> None:
    """Let ``symbol`` work on two vectors, or a vector and a float32 on either side."""

    @type_callable(symbol)
    def _(_context: Any) -> Callable:
        def typer(a: types.Type, b: types.Type) -> types.Type | None:
            pair = {a, b}
            return result if _vector in pair and pair <= {_vector, types.float32} else None

        return typer

    for pair in ((_Vector, _Vector), (_Vector, types.Float), (types.Float, _Vector)):

        @lower_builtin(symbol, *pair)
        def _(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
            both = [v if t == _vector else _repeat(builder, v) for v, t in zip(args, signature.args)]
            return instruction(builder, *both)


_define(operator.add, _vector, lambda builder, a, b: builder.fadd(a, b))
_define(operator.sub, _vector, lambda builder, a, b: builder.fsub(a, b))
_define(operator.iadd, _vector, lambda builder, a, b: builder.fadd(a, b))
_define(operator.isub, _vector, lambda builder, a, b: builder.fsub(a, b))
_define(operator.mul, _vector, lambda builder, a, b: builder.fmul(a, b))
_define(operator.truediv, _vector, lambda builder, a, b: builder.fdiv(a, b))
_define(operator.gt, _mask, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_define(operator.ge, _mask, lambda builder, a, b: builder.fcmp_ordered(">=", a, b))
_define(operator.le, _mask, lambda builder, a, b: builder.fcmp_ordered("<=", a, b))


@type_callable(operator.and_)
def _type_and(_context: Any) -> Callable:
    return lambda a, b: _mask if a == _mask and b == _mask else None


@lower_builtin(operator.and_, _Mask, _Mask)
def _and(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
    return builder.and_(*args)


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _FLOATS.as_pointer())


@intrinsic
def load(_typing, array, index):
    """The vector array[index : index + LANES] of a contiguous float32 array; the bounds are not checked."""

    def code(context, builder, signature, args):
        return builder.load(_address(context, builder, signature.args[0], *args), align=4)

    return _vector(array, types.intp), code


@intrinsic
def store(_typing, array, index, value):
    """array[index : index + LANES] = value"""

    def code(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _vector), code


@intrinsic
def repeat(_typing, value):
    """A vector whose lanes are all ``value``."""
    return _vector(types.float32), lambda _context, builder, _signature, args: _repeat(builder, args[0])


@intrinsic
def select(_typing, mask, a, b):
    """Lane by lane: a where the mask is set, else b."""
    return _vector(_mask, _vector, _vector), lambda _context, builder, _signature, args: builder.select(*args)


@intrinsic
def any_lane(_typing, mask):
    """Whether the mask is set anywhere."""

    def code(_context, builder, _signature, args):
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(_mask), code


@intrinsic
def totals(_typing, vectors):
    """Sums over the lanes of each of a tuple of up to 16 vectors: lane i is the total of vectors[i], 0 beyond the last.

    Each step adds half vectors of two neighbors and puts them side by side, so all the sums together take hardly more
    shuffles than two of them alone.
    """

    def code(_context, builder, signature, args):
        rows = [builder.extract_value(args[0], i) for i in range(signature.args[0].count)]
        size = LANES
        while size > 1:
            rows += [_constant(_FLOATS, 0.0)] * (len(rows) % 2)
            half = size // 2
            low = [first + k for first in range(0, 2 * LANES, size) for k in range(half)]
            shapes = [ir.Constant(_INTS, [lane + shift for lane in low]) for shift in (0, half)]
            pairs = zip(rows[::2], rows[1::2])
            rows = [builder.fadd(*(builder.shuffle_vector(a, b, shape) for shape in shapes)) for a, b in pairs]
            size = half
        return rows[0]

    return _vector(vectors), code


# Chebyshev fit of 2^f on [-1/2, 1/2]: relative error 8e-8, half a unit in the last place of float32.
_EXP2 = np.polynomial.Chebyshev.interpolate(lambda f: 2.0**f, 5, domain=[-0.5, 0.5])
_EXP2 = _EXP2.convert(kind=np.polynomial.Polynomial).coef


@intrinsic
def exp2(_typing, value):
    """2^x to about 2e-7 relative for x in [-126, 0]; outside it the result is meaningless.

    The library's is no vector instruction. x = n + f with |f| <= 1/2; n goes into the exponent bits.
    """

    def code(_context, builder, _signature, args):
        x = args[0]
        n = builder.fptosi(builder.fsub(x, _constant(_FLOATS, 0.5)), _INTS)  # rounds towards zero, so to the nearest
        f = builder.fsub(x, builder.sitofp(n, _FLOATS))
        result = _constant(_FLOATS, _EXP2[5])
        for coefficient in _EXP2[4::-1]:
            result = builder.fadd(builder.fmul(result, f), _constant(_FLOATS, coefficient))
        bits = builder.add(builder.bitcast(result, _INTS), builder.shl(n, _constant(_INTS, 23)))
        return builder.bitcast(bits, _FLOATS)

    return _vector(_vector), code
