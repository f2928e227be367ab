"""Cosines and the largest value, with gradients written out: the large tensors are read and written once, not thrice.

PyTorch derives the same gradients, but divides, multiplies, masks and adds whole sequences of positions on the way. On
a processor, where those do not fit the cache, that took most of the time of co-attention.

Shape suffixes: B pairs of a batch, P positions of a sequence, Q positions of its partner, D feature width.
"""

import torch
from torch.autograd.function import once_differentiable

from .losses import EPSILON


def _scale(x_BPD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What makes a vector's length 1, in float32 or wider; and whether it is too long to be divided by a constant."""
    wide = torch.promote_types(x_BPD.dtype, torch.float32)
    length_BP1 = torch.linalg.vector_norm(x_BPD, dim=-1, keepdim=True, dtype=wide)
    return 1 / length_BP1.clamp(min=EPSILON), length_BP1 >= EPSILON


class _Cosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BPD: torch.Tensor, *partners: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x_scale_BP1, x_free_BP1 = _scale(x_BPD)
        saved, found = [x_BPD, x_scale_BP1, x_free_BP1], []
        for y_BQD in partners:
            y_scale_BQ1, y_free_BQ1 = _scale(y_BQD)
            if torch.float16 in (x_BPD.dtype, y_BQD.dtype):  # whose products may be too large for it
                cosines_BPQ = (x_BPD * x_scale_BP1) @ (y_BQD * y_scale_BQ1).mT
            else:
                cosines_BPQ = x_BPD @ y_BQD.mT * x_scale_BP1 * y_scale_BQ1.mT
            found.append(cosines_BPQ.to(torch.promote_types(x_BPD.dtype, y_BQD.dtype)))
            saved += [y_BQD, y_scale_BQ1, y_free_BQ1, found[-1]]
        ctx.save_for_backward(*saved)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_BPD, x_scale_BP1, x_free_BP1, *rest = ctx.saved_tensors
        # d cos / d x = y / (|x| |y|) - cos x / |x|^2, and the same for y.
        along_BP1, across, of_partners = 0.0, [], []
        for number, gradient_BPQ in enumerate(gradients):
            y_BQD, y_scale_BQ1, y_free_BQ1, cosines_BPQ = rest[4 * number : 4 * number + 4]
            along_BPQ = gradient_BPQ * cosines_BPQ
            along_BP1 = along_BP1 + along_BPQ.sum(dim=-1, keepdim=True)
            across_BPQ = (gradient_BPQ * x_scale_BP1 * y_scale_BQ1.mT).to(x_BPD.dtype)
            across.append((across_BPQ, y_BQD.to(x_BPD.dtype)))
            if not ctx.needs_input_grad[1 + number]:
                of_partners.append(None)
                continue
            along_BQ1, local_BPD = along_BPQ.sum(dim=-2)[..., None], x_BPD
            if y_BQD.ndim == 2:
                along_BQ1, across_BPQ, local_BPD = along_BQ1.sum(dim=0), across_BPQ.flatten(0, 1), x_BPD.flatten(0, 1)
            along_BQ1 = along_BQ1 * y_scale_BQ1.square() * y_free_BQ1
            of_partners.append(_add_product(y_BQD * -along_BQ1.to(y_BQD.dtype), across_BPQ.mT, local_BPD))
        x_gradient = None
        if ctx.needs_input_grad[0]:
            along_BP1 = along_BP1 * x_scale_BP1.square() * x_free_BP1
            x_gradient = x_BPD * -along_BP1.to(x_BPD.dtype)
            for across_BPQ, y_BQD in across:
                x_gradient = _add_product(x_gradient, across_BPQ, y_BQD)
        return x_gradient, *of_partners


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
    return _Cosines.apply(x_BPD, y_BQD)[0]


def cosines_with_each(x_BPD: torch.Tensor, *partners: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`cosines` with several partners, for which the positions are read once."""
    return _Cosines.apply(x_BPD, *partners)


def largest(x_BPD: torch.Tensor) -> torch.Tensor:
    """Each feature's largest value over the positions, `(B, D)`."""
    return _Largest.apply(x_BPD)
