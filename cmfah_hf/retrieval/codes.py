"""Continuous codes, binary codes and packed codes: the only place that defines the bit order.

Shapes: `N` items, `K` hash bits. Continuous codes (hash values) are real, `(N, K)`, usually in (-1, 1). Packed codes
are `(N, K / 8)` bytes: bit `j` of a code is bit `j % 8`, counted from the least significant, of byte `j // 8`
(little-endian). It is set where the continuous code is `>= 0`. Codes of 0 and 1 would all become the same code, so they
are refused (see `refuse_zeros_and_ones`). In this order, nibble `m` of a code is also the index of its own +-1 vector
among the 16 of a product quantizer's subspace, so one array of bytes serves both rankings (see `searchers/`).
"""

from typing import Any

import numpy as np

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.models.codes import AQD_STEP

MAX_BITS = 1024
# float32 holds every multiple of AQD_STEP up to this magnitude, so no partial sum of a score below it is ever rounded.
_AQD_LARGEST_SUM = 2.0**24 * AQD_STEP


def as_array(values: Any) -> np.ndarray:
    """`values` (NumPy, nested lists, or a dense PyTorch tensor of any device and type) as a NumPy array.

    Raises:
        HashIndexError: If they have rows of different lengths, or are sparse, quantized, masked, or without data.
    """
    if hasattr(values, "toarray") or str(getattr(values, "layout", "torch.strided")) != "torch.strided":
        raise HashIndexError("A sparse matrix was given where a dense one is needed; convert it first.")
    if getattr(values, "is_quantized", False) or getattr(values, "is_nested", False):
        raise HashIndexError("A quantized or nested tensor was given; convert it to a dense tensor of numbers first.")
    if getattr(values, "is_meta", False):
        raise HashIndexError("A tensor on the device 'meta' has no values; compute it on another device.")
    if np.ma.is_masked(values):
        raise HashIndexError("A masked array was given, and some of its values are masked; fill them first.")
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            if values.is_floating_point() and values.element_size() < 4:
                values = values.float()  # NumPy has no bfloat16
            values = values.numpy()
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of different lengths, types that NumPy lacks
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise HashIndexError(f"No array of numbers can be made of a {type(values).__name__} ({reason}).") from error


def shortened(value: Any) -> str:
    """The representation of a value for an error message, cut off if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of thousands of digits
        return f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_bits(bits: int) -> int:
    """`bits` as an int, if packed codes can have this many.

    Raises:
        HashIndexError: If it is not a multiple of 8, or outside 8..1024.
    """
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or bits % 8 or not 8 <= bits <= MAX_BITS:
        raise HashIndexError(f"A code cannot have {shortened(bits)} bits; take a multiple of 8 from 8 to {MAX_BITS}.")
    return int(bits)


def check_count(name: str, number: Any) -> int:
    """`number` as an int.

    Raises:
        QueryError: If it is not a whole number of at least 1.
    """
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
        raise QueryError(f"{name} must be a whole number of at least 1, not {shortened(number)}.")
    return int(number)


def check_distance(name: str, distance: Any, bits: int) -> int:
    """A Hamming distance as an int.

    Raises:
        QueryError: If it is not a whole number from 0 to `bits`.
    """
    if isinstance(distance, bool) or not isinstance(distance, (int, np.integer)) or not 0 <= distance <= bits:
        raise QueryError(f"{name} must be a whole number of bits from 0 to {bits}, not {shortened(distance)}.")
    return int(distance)


def sign(hash_values: Any) -> np.ndarray:
    """The +-1 code of each row: `(N, K)` int8, with `sgn(0) = +1` (`[hash]`, see docs/method.md).

    Raises:
        HashIndexError: If the values are not an `(N, K)` matrix of finite numbers, or are codes of 0 and 1.
    """
    return np.where(refuse_zeros_and_ones(_real_matrix(hash_values)) >= 0, np.int8(1), np.int8(-1))


def pack(hash_values: Any) -> np.ndarray:
    """Packs `(N, K)` continuous codes into `(N, K / 8)` uint8.

    >>> pack([[0.5, -0.5, 0.0, -1.0, -1.0, -1.0, -1.0, -1.0]])
    array([[5]], dtype=uint8)

    Raises:
        HashIndexError: If the values are not an `(N, K)` matrix of finite numbers, are codes of 0 and 1, or `K` is not
            a multiple of 8.
    """
    values_NK = refuse_zeros_and_ones(_real_matrix(hash_values))
    check_bits(values_NK.shape[1])
    return np.packbits(values_NK >= 0, axis=1, bitorder="little")


def packed_codes(codes: Any, bits: int, what: str) -> np.ndarray:
    """Codes in any form that an index takes, as `(N, K / 8)` uint8.

    Args:
        codes: `(N, K)` continuous codes, or `(N, K / 8)` uint8 packed codes.
        bits: `K`.
        what: Their name in errors.

    Raises:
        HashIndexError: If they are not such a matrix, or as `pack` does.
    """
    codes = as_array(codes)
    if codes.ndim != 2:
        raise HashIndexError(f"{what} are a matrix with one row per item, not an array of shape {codes.shape}.")
    check_width(codes, bits, what)
    return codes if codes.dtype == np.uint8 else pack(codes)


def check_width(codes: np.ndarray, bits: int, what: str) -> None:
    """Checks the number of bits of `(N, K)` continuous codes or `(N, K / 8)` packed codes.

    Raises:
        HashIndexError: If it is not `bits`.
    """
    packed = codes.dtype == np.uint8
    width = codes.shape[1] * (8 if packed else 1)
    if width != bits:
        if packed and codes.shape[1] == bits:
            refuse_zeros_and_ones(codes)
        read_as = " (uint8 is read as packed codes, eight bits a byte)" if packed else ""
        raise HashIndexError(f"{what} have {width} bits, the index has {bits}{read_as}.")


def unpack(packed: Any, bits: int | None = None) -> np.ndarray:
    """Unpacks `(N, K / 8)` uint8 codes into `(N, K)` int8 of +-1.

    Args:
        packed: The codes.
        bits: The expected `K`. None: eight times the width.

    Raises:
        HashIndexError: If `packed` is not an `(N, K / 8)` uint8 matrix, or not `bits` wide.
    """
    packed = as_array(packed)
    if packed.dtype != np.uint8 or packed.ndim != 2:
        raise HashIndexError(f"Packed codes are an (N, K / 8) uint8 matrix, not {packed.dtype} {packed.shape}.")
    width = packed.shape[1] * 8
    if bits is not None and bits != width:
        raise HashIndexError(f"The packed codes have {width} bits, where {bits} were expected.")
    return np.unpackbits(packed, axis=1, bitorder="little").astype(np.int8) * 2 - 1


def reverse_bit_order(packed: Any) -> np.ndarray:
    """The same codes with the bits of each byte in reverse order, `(..., K / 8)` uint8.

    Converts packed codes of this package, whose first bit is the least significant, to the order of `numpy.packbits`
    and of `precision="ubinary"` in sentence-transformers, whose first bit is the most significant, and back.

    >>> reverse_bit_order(pack([[0.5, -0.5, 0.5, -1.0, -1.0, -1.0, -1.0, -1.0]]))
    array([[160]], dtype=uint8)

    Raises:
        HashIndexError: If `packed` is not uint8.
    """
    packed = as_array(packed)
    if packed.dtype != np.uint8:
        raise HashIndexError(f"Packed codes are uint8, not {packed.dtype}; encode with precision='ubinary'.")
    return _REVERSED.take(packed)


def signs_of(packed: np.ndarray) -> np.ndarray:
    """Unpacks `(..., K / 8)` uint8 codes into `(..., K)` float32 of +-1, for arithmetic with real values."""
    return _SIGNS_OF_BYTE.take(packed, axis=0).reshape(*packed.shape[:-1], 8 * packed.shape[-1])


def round_for_aqd(hash_values: Any) -> np.ndarray:
    """`z_q` of `[aqd]` rounded to multiples of 2^-14 (half to even): `(N, K)` float32.

    Every partial sum of `<z_q, B_x>` is then exact in float32, in any order. So scores are bit-equal on any
    machine, library and number of threads, and ties are true ties. The rounding moves a score by at most `K * 2^-15`.

    Raises:
        HashIndexError: If the values are not an `(N, K)` matrix of finite numbers, are codes of 0 and 1, or are so
            large that sums would be rounded.
    """
    values_NK = as_array(hash_values)
    if values_NK.ndim != 2 or values_NK.dtype.kind != "f" or values_NK.dtype.itemsize < 4:
        values_NK = _real_matrix(values_NK).astype(np.float64)
    refuse_zeros_and_ones(values_NK)
    # Scaling by a power of two is exact, so float32 needs no widening.
    rounded_NK = np.rint(values_NK * (1 / AQD_STEP)) * AQD_STEP
    sums_N = np.abs(rounded_NK).sum(axis=1)
    if not (sums_N <= _AQD_LARGEST_SUM).all():
        _real_matrix(values_NK)
        row = np.flatnonzero(~(sums_N <= _AQD_LARGEST_SUM))[0]
        raise HashIndexError(
            f"Row {row} is not a continuous code: its magnitudes sum to {sums_N[row]:g}, "
            f"at most {_AQD_LARGEST_SUM:g} can be ranked exactly; give values in [-1, 1]."
        )
    return rounded_NK.astype(np.float32, copy=False)


def _real_matrix(hash_values: Any) -> np.ndarray:
    values = as_array(hash_values)
    if values.ndim != 2:
        raise HashIndexError(f"Continuous codes are an (N, K) matrix, not an array of shape {values.shape}.")
    # Unsigned and boolean values are bits or packed bytes: `>= 0` would set every bit.
    if values.dtype.kind in "bu" and (values <= 1).all():
        raise HashIndexError(_ZEROS_AND_ONES.format(values.dtype))
    if values.dtype.kind not in "if":
        raise HashIndexError(f"Continuous codes are real or +-1, not {values.dtype}; unpack or convert them first.")
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            row = np.flatnonzero(~finite.all(axis=1))[0]
            wrong = "a NaN" if np.isnan(values[row]).any() else "an infinity"
            raise HashIndexError(f"Row {row} of the continuous codes holds {wrong}; check the model's input there.")
    return values


def refuse_zeros_and_ones(values: np.ndarray) -> np.ndarray:
    """`values` themselves, unless they are codes of 0 and 1, in which `>= 0` would set every bit.

    Values count as such codes if all are 0 or 1 and, for integers, at least one is 0; for floats, at least one is 0 and
    one is 1. Ones alone are a code of +-1, and floating-point zeros alone are continuous codes.

    Raises:
        HashIndexError: If they are codes of 0 and 1.
    """
    first = values[:1]  # enough to clear almost all other values
    if first.size and ((first == 0) | (first == 1)).all() and ((values == 0) | (values == 1)).all():
        zeros = np.count_nonzero(values == 0)
        if zeros and (values.dtype.kind != "f" or zeros < values.size):
            raise HashIndexError(_ZEROS_AND_ONES.format(values.dtype))
    return values


_ZEROS_AND_ONES = (
    "The codes ({}) hold only 0 and 1, which are bits, but signs are needed; give `2 * codes - 1` of a signed type, "
    'or packed bytes, `numpy.packbits(codes > 0, axis=1, bitorder="little")`.'
)
_SIGNS_OF_BYTE = unpack(np.arange(256, dtype=np.uint8)[:, None]).astype(np.float32)
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), axis=1)[:, 0]
