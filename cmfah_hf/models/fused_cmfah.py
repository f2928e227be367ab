"""Cosines and the largest value, with gradients written out: the large tensors are read and written once, not thrice.

PyTorch derives the same gradients, but divides, multiplies, masks and adds whole sequences of positions on the way. On
a processor, where those do not fit the cache, that took most of the time of co-attention.

Shape suffixes: B pairs of a batch, P positions of a sequence, Q positions of its partner, D feature width.
"""

import torch
from torch.autograd.function import once_differentiable

from .losses import EPSILON


class _Cosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BPD: torch.Tensor, y_BQD: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(torch.promote_types(x_BPD.dtype, y_BQD.dtype), torch.float32)
        x_length_BP1, y_length_BQ1 = (
            torch.linalg.vector_norm(z, dim=-1, keepdim=True, dtype=wide) for z in (x_BPD, y_BQD)
        )
        x_scale_BP1, y_scale_BQ1 = (1 / length.clamp(min=EPSILON) for length in (x_length_BP1, y_length_BQ1))
        if torch.float16 in (x_BPD.dtype, y_BQD.dtype):  # whose products may be too large for it
            cosines_BPQ = (x_BPD * x_scale_BP1) @ (y_BQD * y_scale_BQ1).mT
        else:
            cosines_BPQ = x_BPD @ y_BQD.mT * x_scale_BP1 * y_scale_BQ1.mT
        cosines_BPQ = cosines_BPQ.to(torch.promote_types(x_BPD.dtype, y_BQD.dtype))
        # Below that length a vector is divided by a constant.
        x_free, y_free = x_length_BP1 >= EPSILON, y_length_BQ1 >= EPSILON
        ctx.save_for_backward(x_BPD, y_BQD, x_scale_BP1, y_scale_BQ1, x_free, y_free, cosines_BPQ)
        return cosines_BPQ

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_BPQ: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x_BPD, y_BQD, x_scale_BP1, y_scale_BQ1, x_free, y_free, cosines_BPQ = ctx.saved_tensors
        # d cos / d x = y / (|x| |y|) - cos x / |x|^2, and the same for y.
        along_BPQ = gradient_BPQ * cosines_BPQ
        across_BPQ = (gradient_BPQ * x_scale_BP1 * y_scale_BQ1.mT).to(x_BPD.dtype)
        x_gradient = y_gradient = None
        if ctx.needs_input_grad[0]:
            along_BP1 = along_BPQ.sum(dim=-1, keepdim=True) * x_scale_BP1.square() * x_free
            x_gradient = _add_product(x_BPD * -along_BP1.to(x_BPD.dtype), across_BPQ, y_BQD.to(x_BPD.dtype))
        if ctx.needs_input_grad[1]:
            along_BQ1 = along_BPQ.sum(dim=-2)[..., None]
            if y_BQD.ndim == 2:
                along_BQ1, across_BPQ, x_BPD = along_BQ1.sum(dim=0), across_BPQ.flatten(0, 1), x_BPD.flatten(0, 1)
            along_BQ1 = along_BQ1 * y_scale_BQ1.square() * y_free
            y_gradient = _add_product(y_BQD * -along_BQ1.to(y_BQD.dtype), across_BPQ.mT, x_BPD)
        return x_gradient, y_gradient


def _add_product(sum_BPD: torch.Tensor, x_BPQ: torch.Tensor, y_BQD: torch.Tensor) -> torch.Tensor:
    """`sum + x @ y`, in the place of `sum`; `y` may be one for the whole batch."""
    if sum_BPD.dtype != y_BQD.dtype:  # of what is trained in float32 under bfloat16
        return sum_BPD + x_BPQ @ y_BQD
    if y_BQD.ndim == 3:
        return sum_BPD.baddbmm_(x_BPQ, y_BQD)
    sum_BPD.flatten(0, -2).addmm_(x_BPQ.flatten(0, -2), y_BQD)
    return sum_BPD


class _Largest(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BPD: torch.Tensor) -> torch.Tensor:
        largest_BD = x_BPD.amax(dim=1)
        ctx.save_for_backward(x_BPD, largest_BD)
        return largest_BD

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_BD: torch.Tensor) -> torch.Tensor:
        x_BPD, largest_BD = ctx.saved_tensors
        share_BPD = torch.eq(x_BPD, largest_BD[:, None], out=torch.empty_like(x_BPD))
        return share_BPD.mul_((gradient_BD / share_BPD.sum(dim=1))[:, None])  # those that tie share it, as in `amax`


def cosines(x_BPD: torch.Tensor, y_BQD: torch.Tensor) -> torch.Tensor:
    """Cosine of every position with every position of its partner, `(B, P, Q)`; 0 where one is zero.

    Args:
        x_BPD: Positions.
        y_BQD: The partners' positions; `(Q, D)` if all share one partner.
    """
    return _Cosines.apply(x_BPD, y_BQD)


def largest(x_BPD: torch.Tensor) -> torch.Tensor:
    """Each feature's largest value over the positions, `(B, D)`."""
    return _Largest.apply(x_BPD)
