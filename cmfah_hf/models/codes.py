"""Binary codes: the signs of continuous codes, and the grid of queries in asymmetric search."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# `[aqd]`: queries are rounded to multiples of this, so that every sum is exact, and items of one code tie.
AQD_STEP = 2.0**-14


def sign(hash_BK: "torch.Tensor") -> "torch.Tensor":
    """-1 or +1 a bit, with `sgn(0) = +1`, `[hash]`."""
    return hash_BK.new_ones(()).where(hash_BK >= 0, -1.0)
