"""Arithmetic of the kernels: bits of numbers, half dtypes, the exponential, sums without error.

Numba compiles what is here into the kernels, for every dtype that a kernel meets. Half dtypes come
as the integers that hold their bits, because numba has no arithmetic for them: int16 is bfloat16,
uint16 is float16.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

#: No flag of LLVM's that changes a result, but for a product and a sum rounded once (fma).
EXACT: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}

#: The same for a loop that adds up: LLVM may deal what it adds to as many lanes as it likes.
ANY_ORDER: dict[str, Any] = {**EXACT, "fastmath": {"contract", "reassoc"}}

f32, i32, i64 = np.float32, np.int32, np.int64


# --- bits and addresses


@intrinsic
def bits_of(_context, x):
    """The bits of a float, as an integer of its width."""
    width = x.bitwidth

    def generate(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.IntType(width))

    return {32: types.int32, 64: types.int64}[width](x), generate


@intrinsic
def float32_of(_context, x):
    """The float32 of the last 32 bits: numba's sums of int32 are int64."""

    def generate(_context, builder, _signature, args):
        return builder.bitcast(builder.trunc(args[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), generate


@intrinsic
def float64_of(_context, x):
    """The float64 of those bits."""

    def generate(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), generate


@intrinsic
def pointer(_context, address, like):
    """An address as a pointer to entries of the dtype of the array `like`."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), generate


@intrinsic
def fetch(_context, address):
    """Have the memory at an address brought into the second cache, if it is there at all."""
    flags = [ir.Constant(ir.IntType(32), x) for x in (0, 2, 1)]  # to read, of use again, data

    def generate(context, builder, _signature, args):
        place = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, *(flag.type for flag in flags)])
        function = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(function, [place, *flags])
        return context.get_dummy_value()

    return types.void(types.intp), generate


# --- the greater of two


@intrinsic
def greater(_context, x, y):
    """The greater of two floats; of a NaN and a number either.

    LLVM makes vectors of a maximum over a loop only where it is told that no NaN is to be minded.
    """
    flags = ("nnan", "nsz")

    def generate(_context, builder, _signature, args):
        first = builder.fcmp_ordered(">", *args, flags=flags)
        return builder.select(first, *args, flags=flags)

    return x(x, x), generate


# --- half dtypes


def widen(x):
    """An entry in the dtype that is computed in."""
    raise NotImplementedError


def narrow(x, like):
    """A computed number in the dtype of entry `like`, rounded to the nearest, ties to even."""
    raise NotImplementedError


@overload(widen, jit_options=EXACT)
def _widen(x):
    if x == types.int16:
        return lambda x: float32_of(i32(x) << i32(16))
    if x == types.uint16:
        return _widen_float16
    return lambda x: x


def _widen_float16(x):
    # The exponent moves from a bias of 15 to one of 127. Subnormals are so many times 2^-24: as
    # subnormals of float32 they would be 0 to a thread that flushes those.
    magnitude, sign = i32(x) & i32(0x7FFF), (i32(x) & i32(0x8000)) << i32(16)
    normal = (magnitude << i32(13)) + i32(112 << 23)
    small = bits_of(f32(magnitude) * f32(2.0**-24))
    endless = (magnitude << i32(13)) | i32(0x7F800000)
    wide = small if magnitude < i32(0x0400) else normal
    return float32_of((endless if magnitude >= i32(0x7C00) else wide) | sign)


@overload(narrow, jit_options=EXACT)
def _narrow(x, like):
    if like == types.int16:
        return _narrow_bfloat16
    if like == types.uint16:
        return _narrow_float16
    return lambda x, like: x


def _narrow_bfloat16(x, like):
    wide = bits_of(x)
    rounded = (wide + i32(0x7FFF) + ((wide >> i32(16)) & i32(1))) >> i32(16)
    return np.int16(rounded if x == x else i32(0x7FC0))


def _narrow_float16(x, like):
    wide = bits_of(x) & i32(0x7FFFFFFF)
    odd = (wide >> i32(13)) & i32(1)
    normal = (wide - i32(112 << 23) + i32(0xFFF) + odd) >> i32(13)
    # Beside 1/2 the unit of rounding is that of float16's subnormals.
    small = bits_of(float32_of(wide) + f32(0.5)) - i32(126 << 23)
    endless = i32(0x7E00) if wide > i32(0x7F800000) else i32(0x7C00)
    finite = small if wide < i32(113 << 23) else normal
    sign = (bits_of(x) >> i32(16)) & i32(0x8000)
    return np.uint16((endless if wide >= i32(143 << 23) else finite) | sign)


# --- exp


def exp(x):
    """The exponential of x <= 0, within two units of rounding, subnormals included.

    With n the integer nearest to x/ln 2 and r = x - n·ln 2, exp(x) = 2^n·exp(r), |r| <= 0.35. Added
    to 1.5·2^23 (or 2^52) a small number is rounded to an integer, which then lies in the last bits.
    n·ln 2 is subtracted in two parts, the first of so few bits that its product is exact. exp(r)
    is 1 + r + r²·p(r), with p of the least greatest relative error for its degree (by Remez's
    exchange), about a twentieth of a unit of rounding. The power of two is made of its bits, too
    great by a factor that leaves it normal, and divided by that.
    """
    raise NotImplementedError


@overload(exp, jit_options=EXACT)
def _exp(x):
    return _exp64 if x == types.float64 else _exp32


def _exp32(x):
    turned = x * f32(1.4426950408889634) + f32(12582912.0)
    n = turned - f32(12582912.0)
    r = (x - n * f32(0.693359375)) + n * f32(2.12194440e-4)
    p = f32(0.00138145986467)
    p = p * r + f32(0.00836871687973)
    p = p * r + f32(0.0416683880453)
    p = p * r + f32(0.166665206317)
    p = p * r + f32(0.499999934478)
    p = p * (r * r) + r + f32(1)
    power = float32_of((bits_of(turned) + i32(127 + 64)) << i32(23))
    return f32(0) if x < f32(-104) else (p * power) * f32(2.0**-64)


def _exp64(x):
    turned = x * 1.4426950408889634 + 6755399441055744.0
    n = turned - 6755399441055744.0
    r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    p = 2.5000061602835666699e-8
    p = p * r + 2.7630248379211443975e-7
    p = p * r + 2.7557586373840163694e-6
    p = p * r + 2.4801493098906550659e-5
    p = p * r + 1.9841269506578687653e-4
    p = p * r + 1.3888888943631112946e-3
    p = p * r + 8.3333333334944616641e-3
    p = p * r + 4.1666666666530158590e-2
    p = p * r + 1.6666666666666412523e-1
    p = p * r + 5.0000000000000106271e-1
    p = p * (r * r) + r + 1.0
    power = float64_of((bits_of(turned) + i64(1023 + 256)) << i64(52))
    return 0.0 if x < -746.0 else (p * power) * 2.0**-256


# --- sums


@numba.njit(**EXACT)
def add_exactly(total, lost, x):
    """``total + x``, and what its rounding loses, added to what was `lost` before (Knuth)."""
    sum_ = total + x
    back = sum_ - total
    return sum_, lost + ((total - (sum_ - back)) + (x - back))


# --- log1p


def log1p(x):
    """log(1 + x) of a finite x >= 0, within two units of rounding; NaN stays.

    With y = 1 + x as it is rounded, c what that lost, y = 2^k·m and m within sqrt(2) of 1,

        log(1 + x) = k·ln 2 + log m + c/y,

    and log m = f - f²/2 + s·(f²/2 + R(s²)) with f = m - 1, s = f/(2 + f): the method, and the
    polynomials R, of fdlibm (Sun Microsystems, 1993).
    """
    raise NotImplementedError


@overload(log1p, jit_options=EXACT)
def _log1p(x):
    return _log1p64 if x == types.float64 else _log1p32


def _log1p32(x):
    y = f32(1) + x
    lost = (f32(1) - (y - x) if x > f32(1) else x - (y - f32(1))) / y
    turned = bits_of(y) + i32(0x3F800000 - 0x3F3504F3)
    k = f32(i32(turned >> i32(23)) - i32(127))
    f = float32_of((turned & i32(0x007FFFFF)) + i32(0x3F3504F3)) - f32(1)
    s = f / (f32(2) + f)
    z, half = s * s, f32(0.5) * f * f
    r = f32(0.24279078841)
    r = r * z + f32(0.28498786688)
    r = r * z + f32(0.40000972152)
    r = r * z + f32(0.66666662693)
    near = s * (half + r * z) + (k * f32(9.0580006145e-6) + lost) - half + f
    return near + k * f32(6.9313812256e-1)


def _log1p64(x):
    y = 1.0 + x
    lost = (1.0 - (y - x) if x > 1.0 else x - (y - 1.0)) / y
    turned = bits_of(y) + i64(0x3FF00000_00000000 - 0x3FE6A09E_00000000)
    k = float(i64(turned >> i64(52)) - i64(1023))
    f = float64_of((turned & i64(0x000FFFFF_FFFFFFFF)) + i64(0x3FE6A09E_00000000)) - 1.0
    s = f / (2.0 + f)
    z, half = s * s, 0.5 * f * f
    r = 1.479819860511658591e-01
    r = r * z + 1.531383769920937332e-01
    r = r * z + 1.818357216161805012e-01
    r = r * z + 2.222219843214978396e-01
    r = r * z + 2.857142874366239149e-01
    r = r * z + 3.999999999940941908e-01
    r = r * z + 6.666666666666735130e-01
    near = s * (half + r * z) + (k * 1.90821492927058770002e-10 + lost) - half + f
    return near + k * 6.93147180369123816490e-01
