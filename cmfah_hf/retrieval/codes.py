"""Hash values, bits and packed codes: the one place that knows the bit order.

Shapes: `N` items, `K` hash bits. Hash values are real, `(N, K)`, usually in (-1, 1). Packed codes are `(N, K / 8)`
bytes: bit `j` of a code is bit `j % 8`, counted from the least significant, of byte `j // 8` (little-endian), and it is
set where the hash value is `>= 0`. With that order nibble `m` of a code is also the index of its own +-1 vector among
the 16 of a product quantiser's sub-space, so that one array of bytes serves both rankings (see `scan.py`).
"""

from typing import Any

import numpy as np

from cmfah_hf.errors import HashIndexError

MAX_BITS = 1024
AQD_STEP = 2.0**-14
# float32 holds every multiple of AQD_STEP up to this magnitude, so no partial sum of a score below it is ever rounded.
_AQD_LARGEST_SUM = 2.0**24 * AQD_STEP


def as_array(values: Any) -> np.ndarray:
    """`values` (NumPy, nested lists, or a PyTorch tensor of any device and type) as a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # NumPy has no bfloat16
        values = values.numpy()
    return np.asarray(values)


def check_bits(bits: int) -> int:
    """`bits` itself where a packed code can have that many.

    Raises:
        HashIndexError: If it is no multiple of 8, or outside 8..1024.
    """
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or bits % 8 or not 8 <= bits <= MAX_BITS:
        raise HashIndexError(f"A code cannot have {bits!r} bits; take a multiple of 8 from 8 to {MAX_BITS}.")
    return int(bits)


def sign(hash_values: Any) -> np.ndarray:
    """The +-1 code of each row: `(N, K)` int8, with `sgn(0) = +1` (`[hash]`, see docs/method.md).

    Raises:
        HashIndexError: If the values are no `(N, K)` matrix of finite numbers.
    """
    return np.where(_real_matrix(hash_values) >= 0, np.int8(1), np.int8(-1))


def pack(hash_values: Any) -> np.ndarray:
    """`(N, K)` hash values as `(N, K / 8)` uint8 codes.

    >>> pack([[0.5, -0.5, 0.0, -1.0, -1.0, -1.0, -1.0, -1.0]])
    array([[5]], dtype=uint8)

    Raises:
        HashIndexError: If the values are no `(N, K)` matrix of finite numbers, or `K` is no multiple of 8.
    """
    values_NK = _real_matrix(hash_values)
    check_bits(values_NK.shape[1])
    return np.packbits(values_NK >= 0, axis=1, bitorder="little")


def unpack(packed: Any, bits: int | None = None) -> np.ndarray:
    """`(N, K / 8)` uint8 codes as `(N, K)` int8 of +-1, the reverse of `pack`.

    Args:
        packed: The codes.
        bits: `K`, to have it checked; eight times the width otherwise.

    Raises:
        HashIndexError: If `packed` is no `(N, K / 8)` uint8 matrix, or not `bits` wide.
    """
    packed = as_array(packed)
    if packed.dtype != np.uint8 or packed.ndim != 2:
        raise HashIndexError(f"Packed codes are an (N, K / 8) uint8 matrix, not {packed.dtype} {packed.shape}.")
    width = packed.shape[1] * 8
    if bits is not None and bits != width:
        raise HashIndexError(f"The packed codes have {width} bits, where {bits} were expected.")
    return np.unpackbits(packed, axis=1, bitorder="little").astype(np.int8) * 2 - 1


def signs_of(packed: np.ndarray) -> np.ndarray:
    """`(..., K / 8)` uint8 codes as `(..., K)` float32 of +-1, for arithmetic with real values."""
    return _SIGNS_OF_BYTE.take(packed, axis=0).reshape(*packed.shape[:-1], -1)


def round_for_aqd(hash_values: Any) -> np.ndarray:
    """`z_q` of `[aqd]` rounded to multiples of 2^-14 (half to even): `(N, K)` float32.

    Every partial sum of `<z_q, B_x>` is then itself a float32, whatever the order of the additions, so scores come out
    bit-equal from any machine, library or number of threads, and equal scores are truly equal. The rounding moves a
    score by at most `K * 2^-15`.

    Raises:
        HashIndexError: If the values are no `(N, K)` matrix of finite numbers, or so large that the sums would round.
    """
    values_NK = as_array(hash_values)
    if values_NK.ndim != 2 or values_NK.dtype.kind != "f" or values_NK.dtype.itemsize < 4:
        values_NK = _real_matrix(values_NK).astype(np.float64)
    # Scaling by a power of two is exact, so float32 need not be widened.
    rounded_NK = np.rint(values_NK * (1 / AQD_STEP)) * AQD_STEP
    sums_N = np.abs(rounded_NK).sum(axis=1)
    if not (sums_N <= _AQD_LARGEST_SUM).all():
        _real_matrix(values_NK)
        row = np.flatnonzero(~(sums_N <= _AQD_LARGEST_SUM))[0]
        raise HashIndexError(
            f"Row {row} is no row of hash values: its magnitudes sum to {sums_N[row]:g}, "
            f"at most {_AQD_LARGEST_SUM:g} can be ranked exactly; give values in [-1, 1]."
        )
    return rounded_NK.astype(np.float32, copy=False)


def _real_matrix(hash_values: Any) -> np.ndarray:
    values = as_array(hash_values)
    if values.ndim != 2:
        raise HashIndexError(f"Hash values are an (N, K) matrix, not an array of shape {values.shape}.")
    # Unsigned and boolean values are bits or packed bytes already: `>= 0` would set every one of them.
    if values.dtype.kind not in "if":
        raise HashIndexError(f"Hash values are real or +-1, not {values.dtype}; unpack or convert them first.")
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            row = np.flatnonzero(~finite.all(axis=1))[0]
            wrong = "a NaN" if np.isnan(values[row]).any() else "an infinity"
            raise HashIndexError(f"Row {row} of the hash values holds {wrong}; check the model's input there.")
    return values


_SIGNS_OF_BYTE = unpack(np.arange(256, dtype=np.uint8)[:, None]).astype(np.float32)
