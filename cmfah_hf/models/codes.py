"""Binary codes: the signs of continuous codes, and the grid of queries in asymmetric search."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# `[aqd]`: queries are rounded to multiples of this, so that all sums are exact and items with equal codes tie.
AQD_STEP = 2.0**-14


def sign(hash_BK: "torch.Tensor") -> "torch.Tensor":
    """Binary codes of -1 and +1, with `sgn(0) = +1`, `[hash]`."""
    return hash_BK.new_ones(()).where(hash_BK >= 0, -1.0)
