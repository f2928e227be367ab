"""The number of set bits, for functions that numba compiles."""

import numba
import numpy as np


@numba.njit(inline="always")
def ones(x: np.uint64) -> np.uint64:
    """The number of set bits. Compilers recognize this form and use the processor's instruction."""
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
