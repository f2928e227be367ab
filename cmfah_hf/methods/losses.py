"""Loss terms as pure functions of tensors, and their sums over both views.

Shape suffixes: A anchors, N candidates, B pairs of the batch, D feature width, K hash bits, C classes.
"""

import operator
from collections.abc import Callable, Iterable
from functools import reduce

import numpy as np
import torch
from torch import nn

from cmfah_hf.methods.outputs import View
from cmfah_hf.models.codes import sign
from cmfah_hf.models.fused_cmfah import EPSILON


def cosine_matrix(x_AD: torch.Tensor, y_ND: torch.Tensor) -> torch.Tensor:
    """Cosine of every row of `x_AD` with every row of `y_ND`, `(A, N)`; 0 for zero rows."""
    return nn.functional.normalize(x_AD, dim=-1, eps=EPSILON) @ nn.functional.normalize(y_ND, dim=-1, eps=EPSILON).mT


def added(values: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of one or more tensors, from left to right."""
    return reduce(operator.add, values)


def similarity_between(
    labels_AC: torch.Tensor, others_NC: torch.Tensor, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Similarity of all pairs of two groups, and masks of their labeled pairs.

    Args:
        labels_AC, others_NC: Multi-hot labels, or weights of tags: the similarity of two pairs is the cosine of their
            rows, and a row of zeros is an unlabeled pair. Or `(A,)` and `(N,)`, integers: the similarity is 1 for equal
            numbers, else 0.
        dtype: The type of the similarity.

    Returns:
        `(A, N)` in 0..1, and `(A,)` and `(N,)` boolean.
    """
    if labels_AC.dim() == 1:
        equal_AN = (labels_AC[:, None] == others_NC[None, :]).to(dtype)
        known_A, known_N = (torch.ones_like(labels, dtype=torch.bool) for labels in (labels_AC, others_NC))
        return equal_AN, known_A, known_N
    cosines_AN = cosine_matrix(labels_AC.to(dtype), others_NC.to(dtype))
    return cosines_AN, labels_AC.sum(dim=1) > 0, others_NC.sum(dim=1) > 0


def pairwise_similarity(
    labels_BC: torch.Tensor, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """The similarity `(B, B)` of the pairs of a batch, and the mask `(B,)` of labeled ones: `similarity_between`."""
    overlap_BB, known_B, _ = similarity_between(labels_BC, labels_BC, dtype)
    return overlap_BB, known_B


def triplet_masks(
    labels_BC: torch.Tensor, within: bool, positive_overlap: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive and negative masks for triplet mining.

    Positives are more similar than `positive_overlap`; with multi-hot labels and 0, they share at least one class. All
    others are negatives. Unlabeled pairs are neither.

    Args:
        labels_BC: Labels, tags or numbers of the batch, as in `pairwise_similarity`.
        within: Whether anchors and candidates are of one modality, in which no item is its own positive. Across
            modalities, item `i` of one is the partner of item `i` of the other, and therefore its positive.
        positive_overlap: From 0 to below 1.

    Returns:
        Two boolean `(B, B)` masks.
    """
    overlap_BB, known_B = pairwise_similarity(labels_BC)
    known_BB = known_B[:, None] & known_B[None, :]
    share_BB = overlap_BB > positive_overlap
    if within:
        share_BB = share_BB & ~torch.eye(len(labels_BC), dtype=torch.bool, device=labels_BC.device)
        known_BB = known_BB & ~torch.eye(len(labels_BC), dtype=torch.bool, device=labels_BC.device)
    return share_BB, known_BB & ~share_BB


def _sorted(x_AN: torch.Tensor) -> torch.Tensor:
    # On a CPU, NumPy's vectorized sort takes a tenth of the time of PyTorch's.
    return x_AN.sort().values if x_AN.device.type != "cpu" else torch.from_numpy(np.sort(x_AN.numpy()))


def triplet_hinge(
    similarity_AN: torch.Tensor, positive_AN: torch.Tensor, negative_AN: torch.Tensor, margin: float
) -> torch.Tensor:
    """Mean of `max(0, margin + s(a, n) - s(a, p))` over all triplets of anchor, positive and negative.

    `[intra]`, `[inter]`. The sum over A x N x N triplets is a sum of cosines, each times the number of its triplets
    that violate the margin. A binary search finds this number: for a positive among the anchor's sorted negatives, for
    a negative among its sorted positives. The numbers are also the gradient. Value and gradient equal those of the
    cubic form.

    Args:
        similarity_AN: Cosines of anchors with candidates; leading dimensions are batch dimensions.
        positive_AN, negative_AN: Boolean masks of the positives and negatives of each anchor.
        margin: The margin of the hinge, in cosine.

    Returns:
        A scalar, or one per leading dimension; 0 without triplets.
    """
    similarity_AN = similarity_AN.float() if similarity_AN.dtype in (torch.float16, torch.bfloat16) else similarity_AN
    constant_AN = similarity_AN.detach().contiguous()
    threshold_AN = constant_AN - margin
    # All but negatives sort below every threshold, all but positives above every cosine: none is counted.
    negatives_AN = _sorted(constant_AN.masked_fill(~negative_AN, -torch.inf))
    thresholds_AN = _sorted(threshold_AN.masked_fill(~positive_AN, torch.inf))
    above_AN = constant_AN.shape[-1] - torch.searchsorted(negatives_AN, threshold_AN, right=True, out_int32=True)
    below_AN = torch.searchsorted(thresholds_AN, constant_AN, out_int32=True)
    violations_AN = above_AN * positive_AN
    slope_AN = (below_AN * negative_AN - violations_AN).to(constant_AN.dtype)
    margins = margin * violations_AN.sum(dim=(-2, -1)).to(constant_AN.dtype)
    hinge = (similarity_AN * slope_AN).sum(dim=(-2, -1)) + margins
    triplets = (positive_AN.sum(dim=-1) * negative_AN.sum(dim=-1)).sum(dim=-1)
    return hinge / triplets.clamp(min=1)


def quantization_loss(hash_BK: torch.Tensor, codes_BK: torch.Tensor) -> torch.Tensor:
    """J3 of `[intra]`, `[quantisation]`: mean squared distance of continuous codes from binary codes of -1 and +1."""
    return nn.functional.mse_loss(hash_BK, codes_BK.to(hash_BK.dtype))


def label_guidance_loss(logits_BC: torch.Tensor, labels_BC: torch.Tensor, positive_weight: float = 1.0) -> torch.Tensor:
    """`[label-guidance]`: binary cross-entropy of the classes.

    A present class has `positive_weight` times the weight of an absent one. Unlabeled pairs are left out.
    """
    labeled_B1 = (labels_BC.sum(dim=1, keepdim=True) > 0).to(logits_BC.dtype)
    loss_BC = nn.functional.binary_cross_entropy_with_logits(
        logits_BC, labels_BC.to(logits_BC.dtype), reduction="none", pos_weight=logits_BC.new_tensor(positive_weight)
    )
    return (loss_BC * labeled_B1).sum() / (labeled_B1.sum() * logits_BC.shape[1]).clamp(min=1)


def label_similarity_loss(
    image_hash_BK: torch.Tensor, text_hash_BK: torch.Tensor, labels_BC: torch.Tensor
) -> torch.Tensor:
    """`[label-similarity]`: mean squared error between cosines of continuous codes and cosines of label vectors.

    The weight is 1 across modalities and 1/2 within each; an item is not compared with itself. Unlabeled pairs are left
    out. `labels_BC` may also be tags or numbers, as in `pairwise_similarity`.
    """
    target_BB, known_B = pairwise_similarity(labels_BC, image_hash_BK.dtype)
    known_BB = (known_B[:, None] & known_B[None, :]).to(target_BB.dtype)
    others_BB = known_BB * (1 - torch.eye(len(labels_BC), dtype=target_BB.dtype, device=target_BB.device))

    def error(x_BK: torch.Tensor, y_BK: torch.Tensor, weight_BB: torch.Tensor) -> torch.Tensor:
        return ((cosine_matrix(x_BK, y_BK) - target_BB).square() * weight_BB).sum() / weight_BB.sum().clamp(min=1)

    within = error(image_hash_BK, image_hash_BK, others_BB) + error(text_hash_BK, text_hash_BK, others_BB)
    return error(image_hash_BK, text_hash_BK, known_BB) + within / 2


def orthogonality_loss(cosines_AN: torch.Tensor, unrelated_AN: torch.Tensor, hash_bits: int) -> torch.Tensor:
    """`[orthogonality]`: mean and mean square of the cosines of unrelated codes, towards those of random codes.

    Args:
        cosines_AN: Cosines of continuous codes.
        unrelated_AN: Boolean mask of the pairs that count.
        hash_bits: K. Random directions have cosines with the mean 0 and the mean square `1 / K`.

    Returns:
        A scalar; 0 without unrelated pairs.
    """
    count = unrelated_AN.sum().clamp(min=1)
    mean = (cosines_AN * unrelated_AN).sum() / count
    mean_square = (cosines_AN.square() * unrelated_AN).sum() / count
    return mean.square() + (mean_square - 1 / hash_bits).clamp(min=0)


def code_buffer_loss(
    hash_BK: torch.Tensor, codes_NK: torch.Tensor, similar_BN: torch.Tensor, known_BN: torch.Tensor
) -> torch.Tensor:
    """`[code-buffer]`: negative log-likelihood of the similarity of a batch and all training pairs.

    `hash_BK` are continuous codes, `codes_NK` of -1 and +1, both masks boolean; pairs that are not known are left out.
    """
    theta_BN = hash_BK @ codes_NK.to(hash_BK.dtype).mT / 2
    loss_BN = nn.functional.softplus(theta_BN) - similar_BN * theta_BN
    return (loss_BN * known_BN).sum() / known_BN.sum().clamp(min=1)


def pair_losses(
    image: View,
    text: View,
    labels_BC: torch.Tensor,
    codes_BK: torch.Tensor,
    margin: float,
    positive_overlap: float = 0.0,
    triplets: bool = True,
) -> dict[str, torch.Tensor]:
    """`[intra]`, `[inter]` and `[label-similarity]` of one view, each summed over modalities or directions.

    Without `triplets`, the four hinges are not computed.
    """
    losses = {
        "quantization": quantization_loss(image.hash_values, codes_BK) + quantization_loss(text.hash_values, codes_BK),
        "similarity": label_similarity_loss(image.hash_values, text.hash_values, labels_BC),
    }
    if not triplets:
        return losses
    within, across = (triplet_masks(labels_BC, within, positive_overlap) for within in (True, False))
    # All four combinations at once, as in `_cosines_of_both`.
    positive_22BB, negative_22BB = (
        torch.stack([one_BB, other_BB, other_BB, one_BB]).unflatten(0, (2, 2))
        for one_BB, other_BB in zip(within, across, strict=True)
    )
    feature_22BB = _cosines_of_both(image.features, text.features)
    hash_22BB = _cosines_of_both(image.hash_values, text.hash_values)
    feature_22 = triplet_hinge(feature_22BB, positive_22BB, negative_22BB, margin)
    hash_22 = triplet_hinge(hash_22BB, positive_22BB, negative_22BB, margin)
    return {
        "intra_feature": feature_22[0, 0] + feature_22[1, 1],
        "intra_hash": hash_22[0, 0] + hash_22[1, 1],
        "inter_feature": feature_22[0, 1] + feature_22[1, 0],
        "inter_hash": hash_22[0, 1] + hash_22[1, 0],
        **losses,
    }


def _cosines_of_both(image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
    """`(2, 2, B, B)`: images with images, images with texts, texts with images, texts with texts."""
    both_ND = torch.cat([image_BD, text_BD])
    return cosine_matrix(both_ND, both_ND).unflatten(1, (2, -1)).unflatten(0, (2, -1)).transpose(1, 2)


def views_losses(
    unimodal: tuple[View, View],
    cross_modal: tuple[View, View] | None,
    codes_BK: torch.Tensor | None,
    cross_modal_weight: float,
    terms_of: Callable[[View, View, torch.Tensor], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """The sums of the terms of both views of a batch.

    Both views are trained towards the code of the pair, so the cross-modal view teaches the unimodal one.

    Args:
        unimodal, cross_modal: Image and text outputs of each view; the cross-modal view may be None.
        codes_BK: `(B, K)`, `B` of `[algorithm-1]`. None: `sgn(H_v + H_t)` of the cross-modal view, if it exists.
        cross_modal_weight: The weight of the terms of the cross-modal view; with 0 they are not computed.
        terms_of: From image, text and codes of a view to its terms.
    """
    if codes_BK is None:
        image, text = unimodal if cross_modal is None else cross_modal
        codes_BK = sign(image.hash_values + text.hash_values).detach()
    views = [(1.0, unimodal)]
    if cross_modal is not None and cross_modal_weight > 0:
        views.append((cross_modal_weight, cross_modal))
    totals: dict[str, torch.Tensor] = {}
    for weight, (image, text) in views:
        for name, value in terms_of(image, text, codes_BK).items():
            totals[name] = totals[name] + weight * value if name in totals else weight * value
    return totals
