"""Fused attention kernels (cosine similarity, max pooling, selection) with hand-written gradients.

Autograd computes the same gradients, but divides, multiplies, masks and adds whole sequences of positions in separate
passes. On a CPU, whose cache they exceed, these took most of the time of attention. Here each is read and written once.

Shape suffixes: B pairs of a batch, P positions of a sequence, Q positions of its partner, C concepts, V partners, D
feature width.
"""

from collections.abc import Sequence

import torch
from torch.autograd.function import once_differentiable

# Minimum length in normalizations: representable in float16, and below the length of any feature.
EPSILON = 1e-6


def _scale(x_BPD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reciprocal length of each vector, in float32 or wider, and whether the length is at least `EPSILON`."""
    wide = torch.promote_types(x_BPD.dtype, torch.float32)
    length_BP1 = torch.linalg.vector_norm(x_BPD, dim=-1, keepdim=True, dtype=wide)
    return 1 / length_BP1.clamp(min=EPSILON), length_BP1 >= EPSILON


def _cosines(x_BPD: torch.Tensor, y_BQD: torch.Tensor, x_scale_BP1: torch.Tensor, y_scale_BQ1: torch.Tensor):
    if torch.float16 in (x_BPD.dtype, y_BQD.dtype):  # its range is too small for the products
        cosines_BPQ = (x_BPD * x_scale_BP1) @ (y_BQD * y_scale_BQ1).mT
    else:
        cosines_BPQ = x_BPD @ y_BQD.mT * x_scale_BP1 * y_scale_BQ1.mT
    return cosines_BPQ.to(torch.promote_types(x_BPD.dtype, y_BQD.dtype))


def _cosines_gradients(
    x_BPD: torch.Tensor,
    partners: Sequence[torch.Tensor],
    scales: Sequence[tuple[torch.Tensor, torch.Tensor]],
    found: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    needed: Sequence[bool],
    x_gradient: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of the positions, added in place to `x_gradient`, and of each partner, if `needed`."""
    # d cos / d x = y / (|x| |y|) - cos x / |x|^2, and the same for y.
    (x_scale_BP1, x_free_BP1), *of_partners = scales
    along_BP1: torch.Tensor | float = 0.0
    across: list[tuple[torch.Tensor, torch.Tensor]] = []
    partners_gradients: list[torch.Tensor | None] = []
    for y_BQD, (y_scale_BQ1, y_free_BQ1), cosines_BPQ, gradient_BPQ, is_needed in zip(
        partners, of_partners, found, gradients, needed[1:], strict=True
    ):
        along_BPQ = gradient_BPQ * cosines_BPQ
        along_BP1 = along_BP1 + along_BPQ.sum(dim=-1, keepdim=True)
        across_BPQ = (gradient_BPQ * x_scale_BP1 * y_scale_BQ1.mT).to(x_BPD.dtype)
        across.append((across_BPQ, y_BQD.to(x_BPD.dtype)))
        if not is_needed:
            partners_gradients.append(None)
            continue
        along_BQ1, local_BPD = along_BPQ.sum(dim=-2)[..., None], x_BPD
        if y_BQD.ndim == 2:
            along_BQ1, across_BPQ, local_BPD = along_BQ1.sum(dim=0), across_BPQ.flatten(0, 1), x_BPD.flatten(0, 1)
        along_BQ1 = along_BQ1 * y_scale_BQ1.square() * y_free_BQ1
        partners_gradients.append(_add_product(y_BQD * -along_BQ1.to(y_BQD.dtype), across_BPQ.mT, local_BPD))
    if not needed[0]:
        return None, *partners_gradients
    own_BP1 = -(along_BP1 * x_scale_BP1.square() * x_free_BP1).to(x_BPD.dtype)
    x_gradient = x_BPD * own_BP1 if x_gradient is None else x_gradient.addcmul_(x_BPD, own_BP1)
    for across_BPQ, y_BQD in across:
        x_gradient = _add_product(x_gradient, across_BPQ, y_BQD)
    return x_gradient, *partners_gradients


def _add_product(sum_BPD: torch.Tensor, x_BPQ: torch.Tensor, y_BQD: torch.Tensor) -> torch.Tensor:
    """`sum + x @ y`, in place in `sum`; `y` may be one matrix for the whole batch."""
    if sum_BPD.dtype != y_BQD.dtype:  # float32 weights under bfloat16 autocast
        return sum_BPD + x_BPQ @ y_BQD
    if y_BQD.ndim == 3:
        return sum_BPD.baddbmm_(x_BPQ, y_BQD)
    sum_BPD.flatten(0, -2).addmm_(x_BPQ.flatten(0, -2), y_BQD)
    return sum_BPD


class _Cosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BPD: torch.Tensor, y_BQD: torch.Tensor) -> torch.Tensor:
        x_scale, y_scale = _scale(x_BPD), _scale(y_BQD)
        cosines_BPQ = _cosines(x_BPD, y_BQD, x_scale[0], y_scale[0])
        ctx.save_for_backward(x_BPD, y_BQD, cosines_BPQ, *x_scale, *y_scale)
        return cosines_BPQ

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_BPQ: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_BPD, y_BQD, cosines_BPQ, *scales = ctx.saved_tensors
        scales = scales[:2], scales[2:]
        return _cosines_gradients(x_BPD, [y_BQD], scales, [cosines_BPQ], [gradient_BPQ], ctx.needs_input_grad)


def selection_weights(
    cosines_BPQ: torch.Tensor, mask_BP: torch.Tensor | None, partner_mask_BQ: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """`[selection]`: weights `(B, P, Q)`, which sum to 1, or to 0 if no position exists."""
    scores_BPQ = temperature * cosines_BPQ.to(torch.promote_types(cosines_BPQ.dtype, torch.float32))
    exists_BPQ = None
    if mask_BP is not None:
        exists_BPQ = mask_BP[:, :, None].expand_as(scores_BPQ)
    if partner_mask_BQ is not None:
        exists_BPQ = partner_mask_BQ[:, None] if exists_BPQ is None else exists_BPQ & partner_mask_BQ[:, None]
    if exists_BPQ is not None:
        scores_BPQ = scores_BPQ.masked_fill(~exists_BPQ, torch.finfo(scores_BPQ.dtype).min)
    weights_BPQ = scores_BPQ.flatten(1).softmax(dim=1).view_as(scores_BPQ)
    if exists_BPQ is not None:  # no positions to select, or an empty partner
        weights_BPQ = weights_BPQ * exists_BPQ.to(weights_BPQ.dtype)
    return weights_BPQ


def _masked_largest(x_BPQ: torch.Tensor, mask_BP: torch.Tensor | None, least: float) -> torch.Tensor:
    return (x_BPQ if mask_BP is None else x_BPQ.masked_fill(~mask_BP[..., None], least)).amax(dim=1)


def largest_cosines(cosines_BPQ: torch.Tensor, mask_BP: torch.Tensor | None) -> torch.Tensor:
    """The largest cosine of each of the partner's positions over all positions, `(B, Q)`; -1 without positions."""
    return _masked_largest(cosines_BPQ, mask_BP, -1.0)


def _largest_gradient(
    gradient_BQ: torch.Tensor, largest_BQ: torch.Tensor, x_BPQ: torch.Tensor, mask_BP: torch.Tensor | None
) -> torch.Tensor:
    """The gradient of the maximum over the positions, divided among ties as by `amax`."""
    share_BPQ = torch.eq(x_BPQ, largest_BQ[:, None], out=torch.empty_like(x_BPQ))
    if mask_BP is not None:
        share_BPQ = share_BPQ.mul_(mask_BP[..., None])
    return share_BPQ.mul_((gradient_BQ / share_BPQ.sum(dim=1).clamp(min=1)).to(x_BPQ.dtype)[:, None])


class _Largest(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BPD: torch.Tensor, mask_BP: torch.Tensor | None) -> torch.Tensor:
        largest_BD = _masked_largest(x_BPD, mask_BP, torch.finfo(x_BPD.dtype).min)
        ctx.save_for_backward(x_BPD, mask_BP, largest_BD)
        return largest_BD

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_BD: torch.Tensor) -> tuple[torch.Tensor, None]:
        x_BPD, mask_BP, largest_BD = ctx.saved_tensors
        return _largest_gradient(gradient_BD, largest_BD, x_BPD, mask_BP), None


def _select(
    local_BPD: torch.Tensor,
    mask_BP: torch.Tensor | None,
    temperature: float,
    found: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor | None],
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor | None, ...]]:
    """The results of `selected`, from the cosines with each partner and its mask, and tensors for the gradient."""
    weights = [
        selection_weights(cosines_BPQ, mask_BP, partner_mask_BQ, temperature)
        for cosines_BPQ, partner_mask_BQ in zip(found, masks, strict=True)
    ]
    shares_BVP = torch.stack([weights_BPQ.sum(dim=-1) for weights_BPQ in weights], dim=1)
    largest_BD = _masked_largest(local_BPD, mask_BP, torch.finfo(local_BPD.dtype).min)
    answers_BQ = largest_cosines(found[-1], mask_BP)
    results = shares_BVP.to(local_BPD.dtype) @ local_BPD, largest_BD, answers_BQ
    return results, (local_BPD, mask_BP, shares_BVP, largest_BD, answers_BQ, *found, *weights)


def _select_gradients(
    saved: Sequence[torch.Tensor],
    temperature: float,
    gradient_BVD: torch.Tensor | None,
    largest_gradient_BD: torch.Tensor | None,
    answers_gradient_BQ: torch.Tensor | None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The gradients of the cosines, and of the positions except through the cosines."""
    local_BPD, mask_BP, shares_BVP, largest_BD, answers_BQ, *rest = saved
    found, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    if largest_gradient_BD is None:
        gradient_BPD = torch.zeros_like(local_BPD)
    else:
        gradient_BPD = _largest_gradient(largest_gradient_BD, largest_BD, local_BPD, mask_BP)
    if gradient_BVD is None:
        gradients = [torch.zeros_like(cosines_BPQ) for cosines_BPQ in found]
    else:
        gradient_BVD = gradient_BVD.to(local_BPD.dtype)  # under autocast, the type of the sums may differ
        gradient_BPD = _add_product(gradient_BPD, shares_BVP.to(local_BPD.dtype).mT, gradient_BVD)
        # Through the softmax over all pairs of positions: all weights of a position count equally.
        turned_BVP = (gradient_BVD @ local_BPD.mT).to(shares_BVP.dtype)
        turned_BVP = turned_BVP - (turned_BVP * shares_BVP).sum(dim=-1, keepdim=True)
        gradients = [
            (temperature * turned_BP[..., None] * weights_BPQ).to(cosines_BPQ.dtype)
            for turned_BP, weights_BPQ, cosines_BPQ in zip(turned_BVP.unbind(dim=1), weights, found, strict=True)
        ]
    if answers_gradient_BQ is not None:
        gradients[-1] += _largest_gradient(answers_gradient_BQ, answers_BQ, found[-1], mask_BP)
    return gradients, gradient_BPD


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        local_BPD: torch.Tensor,
        mask_BP: torch.Tensor | None,
        temperature: float,
        masks: Sequence[torch.Tensor | None],
        *partners: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        scale, *scales = (_scale(positions) for positions in (local_BPD, *partners))
        found = [_cosines(local_BPD, y, scale[0], y_scale) for y, (y_scale, _) in zip(partners, scales, strict=True)]
        results, saved = _select(local_BPD, mask_BP, temperature, found, masks)
        ctx.save_for_backward(*partners, *scale, *(tensor for pair in scales for tensor in pair), *saved)
        ctx.temperature, ctx.count = temperature, len(partners)
        ctx.set_materialize_grads(False)  # avoids a pass over the positions for zeros
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx, *result_gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        partners, saved = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[3 * ctx.count + 2 :]
        scales = _in_pairs(ctx.saved_tensors[ctx.count : 3 * ctx.count + 2])
        local_BPD, found = saved[0], saved[5 : 5 + ctx.count]
        gradients, gradient_BPD = _select_gradients(saved, ctx.temperature, *result_gradients)
        needed = ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]
        of_local, *rest = _cosines_gradients(local_BPD, partners, scales, found, gradients, needed, gradient_BPD)
        return of_local, None, None, None, *rest


class _SelectedByEachOther(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x_BPD: torch.Tensor,
        y_BQD: torch.Tensor,
        x_concepts_CD: torch.Tensor,
        y_concepts_CD: torch.Tensor,
        x_mask_BP: torch.Tensor | None,
        y_mask_BQ: torch.Tensor | None,
        temperatures: tuple[float, float],
    ) -> tuple[torch.Tensor, ...]:
        tensors = (x_BPD, y_BQD, x_concepts_CD, y_concepts_CD)
        (x_scale, _), (y_scale, _), (x_concepts_scale, _), (y_concepts_scale, _) = scales = [*map(_scale, tensors)]
        between_BPQ = _cosines(x_BPD, y_BQD, x_scale, y_scale)
        x_found = [between_BPQ, _cosines(x_BPD, x_concepts_CD, x_scale, x_concepts_scale)]
        y_found = [between_BPQ.mT, _cosines(y_BQD, y_concepts_CD, y_scale, y_concepts_scale)]
        x_results, x_saved = _select(x_BPD, x_mask_BP, temperatures[0], x_found, [y_mask_BQ, None])
        y_results, y_saved = _select(y_BQD, y_mask_BQ, temperatures[1], y_found, [x_mask_BP, None])
        ctx.save_for_backward(*tensors[2:], *(tensor for pair in scales for tensor in pair), *x_saved, *y_saved)
        ctx.temperatures = temperatures
        ctx.set_materialize_grads(False)
        return *x_results, *y_results

    @staticmethod
    @once_differentiable
    def backward(ctx, *result_gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x_concepts_CD, y_concepts_CD, *rest = ctx.saved_tensors
        x_scale, y_scale, x_concepts_scale, y_concepts_scale = _in_pairs(rest[:8])
        x_saved, y_saved = rest[8:17], rest[17:]
        of_x, x_gradient = _select_gradients(x_saved, ctx.temperatures[0], *result_gradients[:3])
        of_y, y_gradient = _select_gradients(y_saved, ctx.temperatures[1], *result_gradients[3:])
        between_BPQ = of_x[0] + of_y[0].mT  # both towers use the same cosines
        of_x_positions, _, of_x_concepts = _cosines_gradients(
            x_saved[0],
            [y_saved[0], x_concepts_CD],
            [x_scale, y_scale, x_concepts_scale],
            x_saved[5:7],
            [between_BPQ, of_x[1]],
            (ctx.needs_input_grad[0], False, ctx.needs_input_grad[2]),
            x_gradient,
        )
        of_y_positions, _, of_y_concepts = _cosines_gradients(
            y_saved[0],
            [x_saved[0], y_concepts_CD],
            [y_scale, x_scale, y_concepts_scale],
            y_saved[5:7],
            [between_BPQ.mT, of_y[1]],
            (ctx.needs_input_grad[1], False, ctx.needs_input_grad[3]),
            y_gradient,
        )
        return of_x_positions, of_y_positions, of_x_concepts, of_y_concepts, None, None, None


def _in_pairs(tensors: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def cosines(x_BPD: torch.Tensor, y_BQD: torch.Tensor) -> torch.Tensor:
    """Cosine of every position with every position of its partner, `(B, P, Q)`; 0 if either is zero.

    The partner's positions may be `(Q, D)` for the whole batch.
    """
    return _Cosines.apply(x_BPD, y_BQD)


def largest(x_BPD: torch.Tensor, mask_BP: torch.Tensor | None = None) -> torch.Tensor:
    """The maximum of each feature over the existing positions, `(B, D)`; the least number of the type without any."""
    return _Largest.apply(x_BPD, mask_BP)


def selected(
    local_BPD: torch.Tensor,
    mask_BP: torch.Tensor | None,
    temperature: float,
    *partners: tuple[torch.Tensor, torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`[selection]` by V partners `(B, Q, D)` or concepts `(Q, D)`, each with its mask, in one pass.

    Returns:
        The selected sums, `(B, V, D)`; `largest`, `(B, D)`; and the `largest_cosines` of the last partner, `(B, Q)`.
    """
    tensors, masks = zip(*partners, strict=True)
    return _Selected.apply(local_BPD, mask_BP, temperature, masks, *tensors)


def selected_by_each_other(
    x: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, float],
    y: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, float],
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """`selected` of both modalities, each by the other and then by its own concepts; both share one table of cosines.

    Args:
        x, y: Positions of each modality, `(B, P, D)` and `(B, Q, D)`, their mask, its concepts, and its temperature.
    """
    (x_BPD, x_mask_BP, x_concepts_CD, x_temperature), (y_BQD, y_mask_BQ, y_concepts_CD, y_temperature) = x, y
    temperatures = x_temperature, y_temperature
    results = _SelectedByEachOther.apply(x_BPD, y_BQD, x_concepts_CD, y_concepts_CD, x_mask_BP, y_mask_BQ, temperatures)
    return results[:3], results[3:]
