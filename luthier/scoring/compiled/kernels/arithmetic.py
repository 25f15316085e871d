"""What kernels compute with: exponentials that fill vector registers, and BLAS's product."""

from __future__ import annotations

import numpy as np

from luthier.scoring.compiled.compiler import numba

nb = numba()
types = nb.types
intrinsic = nb.extending.intrinsic
f32 = np.float32

# Sums may be put into the order that vector registers add in. NaN and infinity stay what they are.
SUMS = {"contract", "nsz", "arcp", "reassoc"}
# Where the order is the point.
EXACT = {"contract"}

_sgemm = types.ExternalFunction("luthier_sgemm", types.void(*[types.voidptr] * 13))
thread_number = types.ExternalFunction("luthier_thread", types.int32())
thread_count = types.ExternalFunction("luthier_threads", types.int32())

PLAIN, TURNED = ord("N"), ord("T")
SMALLEST = f32(-60.0)
# Of the block of memory that the arguments of a product lie in, which BLAS takes by address.
PRODUCT_BYTES = 128


@intrinsic
def at(context, address):
    """An address as a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def largest(context, one, other):
    """The larger of two numbers, in the form that loops over it are made vectors of."""

    def generate(context, builder, signature, arguments):
        from llvmlite import ir

        number = ir.FloatType()
        function = builder.module.declare_intrinsic(
            "llvm.maxnum", [number], fnty=ir.FunctionType(number, [number, number])
        )
        return builder.call(function, arguments, fastmath=["fast"])

    return types.float32(types.float32, types.float32), generate


@intrinsic
def times_two_to(context, number, shifted):
    """number * 2^n, by adding n to its exponent; `shifted` is n + 1.5 * 2^23, whose lowest bits are n."""

    def generate(context, builder, signature, arguments):
        from llvmlite import ir

        word = ir.IntType(32)
        bits, exponent = (builder.bitcast(argument, word) for argument in arguments)
        moved = builder.shl(exponent, ir.Constant(word, 23))
        return builder.bitcast(builder.add(bits, moved), ir.FloatType())

    return types.float32(types.float32, types.float32), generate


@nb.njit(fastmath=EXACT, error_model="numpy")
def exponential(x):
    """e^x to a unit in the last place, for x up to 88; below -60 it is 0.

    e^-60 is 9e-27, beside the 1 of a row's largest score nothing. Numbers as small as float32 has them would be multiplied to some
    that are smaller than its normal ones, with which processors compute a hundred times more slowly.

    With n = round(x / ln 2) and r = x - n ln 2, e^x = 2^n e^r; the polynomial for e^r is Cephes' (Moshier, expf.c).
    """
    shifted = x * f32(1.44269504088896341) + f32(12582912.0)
    n = shifted - f32(12582912.0)
    r = x - n * f32(0.693359375)
    r = r - n * f32(-2.12194440e-4)
    e = f32(1.9875691500e-4)
    e = e * r + f32(1.3981999507e-3)
    e = e * r + f32(8.3334519073e-3)
    e = e * r + f32(4.1665795894e-2)
    e = e * r + f32(1.6666665459e-1)
    e = e * r + f32(5.0000001201e-1)
    e = e * r * r + r + f32(1.0)
    return f32(0.0) if x < SMALLEST else times_two_to(e, shifted)  # a NaN stays one


@nb.njit(error_model="numpy")
def floats(address, count):
    """The float32 numbers from an address on."""
    return nb.carray(at(address), (count,), f32)


@nb.njit(error_model="numpy")
def product(memory, one_turned, other_turned, rows, columns, inner, beta, one, one_step, other, other_step, into, step):
    """into = one other + beta into, of matrices that lie column by column, as Fortran's do; each by its address, and how far
    it is from a column to the next.

    Args:
        memory: `PRODUCT_BYTES` for BLAS's arguments. Integers take eight bytes there, so that it does not matter whether BLAS
            reads four of them or eight.
    """
    numbers = nb.carray(at(memory), (8,), np.int64)
    numbers[0], numbers[1] = one_turned, other_turned
    numbers[2], numbers[3], numbers[4] = rows, columns, inner
    numbers[5], numbers[6], numbers[7] = one_step, other_step, step
    factors = floats(memory + 64, 2)
    factors[0], factors[1] = f32(1.0), beta
    _sgemm(
        at(memory), at(memory + 8), at(memory + 16), at(memory + 24), at(memory + 32), at(memory + 64),
        at(one), at(memory + 40), at(other), at(memory + 48), at(memory + 68), at(into), at(memory + 56),
    )  # fmt: skip
