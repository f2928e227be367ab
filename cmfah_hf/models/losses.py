"""The terms of CMFAH's loss, each a pure function of tensors, and how they make one.

Shape suffixes: A anchors, N candidates, B pairs of the batch, D feature width, K hash bits, C classes.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from .configuration_cmfah import CMFAHConfig
from .outputs_cmfah import CMFAHLosses, CMFAHTowerOutput

# Above what float16 can hold as a reciprocal, below any length that a feature has.
EPSILON = 1e-6


def cosine_matrix(x_AD: torch.Tensor, y_ND: torch.Tensor) -> torch.Tensor:
    """Cosine of every row of `x_AD` with every row of `y_ND`: `(A, N)`; 0 where a row is zero."""
    return nn.functional.normalize(x_AD, dim=-1, eps=EPSILON) @ nn.functional.normalize(y_ND, dim=-1, eps=EPSILON).mT


def relevance(labels_BC: torch.Tensor, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """How alike the pairs of a batch are, by what is known of them, and of which of them anything is known.

    Args:
        labels_BC: Multi-hot labels, or weights of tags: how alike two pairs are is the cosine of their rows, and of a
            row of zeros nothing is known. Or `(B,)`, whole numbers: pairs with the same number are one, others are
            nothing to each other.
        dtype: Of the result.

    Returns:
        `(B, B)` in 0..1, and `(B,)` boolean.
    """
    if labels_BC.dim() == 1:
        return (labels_BC[:, None] == labels_BC[None, :]).to(dtype), torch.ones_like(labels_BC, dtype=torch.bool)
    labels_BC = labels_BC.to(dtype)
    return cosine_matrix(labels_BC, labels_BC), labels_BC.sum(dim=1) > 0


def triplet_masks(
    labels_BC: torch.Tensor, within: bool, positive_overlap: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Who is a positive and who a negative of whom in a batch.

    Positives are those that are more alike than `positive_overlap`; with multi-hot labels and 0, those that share at
    least one class. Negatives are all others. Of a pair without labels nothing is known, so it is nobody's positive or
    negative.

    Args:
        labels_BC: Labels, tags or numbers of the batch, as in `relevance`.
        within: Whether anchors and candidates are of one modality, where nobody is its own positive. Across the
            modalities, item `i` of one is the partner of item `i` of the other, hence its positive.
        positive_overlap: From 0 to below 1.

    Returns:
        Two boolean `(B, B)` masks.
    """
    overlap_BB, known_B = relevance(labels_BC)
    known_BB = known_B[:, None] & known_B[None, :]
    share_BB = overlap_BB > positive_overlap
    if within:
        share_BB = share_BB & ~torch.eye(len(labels_BC), dtype=torch.bool, device=labels_BC.device)
        known_BB = known_BB & ~torch.eye(len(labels_BC), dtype=torch.bool, device=labels_BC.device)
    return share_BB, known_BB & ~share_BB


def _sorted(x_AN: torch.Tensor) -> torch.Tensor:
    # NumPy's sort has the processor's wide registers for it, and takes a tenth of the time of PyTorch's there.
    return x_AN.sort().values if x_AN.device.type != "cpu" else torch.from_numpy(np.sort(x_AN.numpy()))


def triplet_hinge(
    similarity_AN: torch.Tensor, positive_AN: torch.Tensor, negative_AN: torch.Tensor, margin: float
) -> torch.Tensor:
    """Mean of `max(0, margin + s(a, n) - s(a, p))` over all triplets of anchor, positive and negative.

    `[intra]`, `[inter]`. Every triplet of the batch counts. Written out it is a sum over A x N x N; but it only adds up
    cosines, each as often as triplets with it violate the margin. How often that is, a binary search among the anchor's
    sorted negatives tells for a positive, and one among its sorted positives for a negative. These counts are the
    gradient too. Value and gradient are those of the cubic form.

    Args:
        similarity_AN: Cosines of anchors with candidates; any dimensions before these two are apart from each other.
        positive_AN: Boolean; true where the candidate is a positive of the anchor.
        negative_AN: Boolean; true where the candidate is a negative of the anchor.
        margin: The hinge's margin, in cosine.

    Returns:
        A scalar, or one for each of the dimensions before; 0 where the batch holds no triplet.
    """
    similarity_AN = similarity_AN.float() if similarity_AN.dtype in (torch.float16, torch.bfloat16) else similarity_AN
    constant_AN = similarity_AN.detach().contiguous()
    threshold_AN = constant_AN - margin
    # Non-negatives sort below every threshold and non-positives' thresholds above every cosine, so none is counted.
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
    """J3 of `[intra]`, `[quantisation]`: the mean squared distance of the hash values from their codes of -1 and +1."""
    return nn.functional.mse_loss(hash_BK, codes_BK.to(hash_BK.dtype))


def label_guidance_loss(logits_BC: torch.Tensor, labels_BC: torch.Tensor, positive_weight: float = 1.0) -> torch.Tensor:
    """`[label-guidance]`: binary cross-entropy of the classes read off the hash values.

    A present class counts `positive_weight` times as much as an absent one. Pairs without any label teach nothing.
    """
    labelled_B1 = (labels_BC.sum(dim=1, keepdim=True) > 0).to(logits_BC.dtype)
    loss_BC = nn.functional.binary_cross_entropy_with_logits(
        logits_BC, labels_BC.to(logits_BC.dtype), reduction="none", pos_weight=logits_BC.new_tensor(positive_weight)
    )
    return (loss_BC * labelled_B1).sum() / (labelled_B1.sum() * logits_BC.shape[1]).clamp(min=1)


def label_similarity_loss(
    image_hash_BK: torch.Tensor, text_hash_BK: torch.Tensor, labels_BC: torch.Tensor
) -> torch.Tensor:
    """`[label-similarity]`: cosines of hash values against cosines of label vectors, mean squared.

    Across the modalities in full, within each by half; an item is not compared with itself. Unlabelled pairs teach
    nothing. In the place of labels there may be tags or numbers, as in `relevance`.
    """
    target_BB, known_B = relevance(labels_BC, image_hash_BK.dtype)
    known_BB = (known_B[:, None] & known_B[None, :]).to(target_BB.dtype)
    others_BB = known_BB * (1 - torch.eye(len(labels_BC), dtype=target_BB.dtype, device=target_BB.device))

    def error(x_BK: torch.Tensor, y_BK: torch.Tensor, weight_BB: torch.Tensor) -> torch.Tensor:
        return ((cosine_matrix(x_BK, y_BK) - target_BB).square() * weight_BB).sum() / weight_BB.sum().clamp(min=1)

    within = error(image_hash_BK, image_hash_BK, others_BB) + error(text_hash_BK, text_hash_BK, others_BB)
    return error(image_hash_BK, text_hash_BK, known_BB) + within / 2


def sign(hash_BK: torch.Tensor) -> torch.Tensor:
    """-1 or +1 a bit, with `sgn(0) = +1`, `[hash]`."""
    return torch.where(hash_BK >= 0, 1.0, -1.0).to(hash_BK.dtype)


def pair_losses(
    image: CMFAHTowerOutput,
    text: CMFAHTowerOutput,
    labels_BC: torch.Tensor,
    codes_BK: torch.Tensor,
    margin: float,
    positive_overlap: float = 0.0,
    triplets: bool = True,
) -> CMFAHLosses:
    """`[intra]`, `[inter]` and `[label-similarity]` of one view, each summed over modalities or directions.

    Without `triplets` the four hinges are left out, and not computed.
    """
    losses = CMFAHLosses(
        quantization=quantization_loss(image.hash_values, codes_BK) + quantization_loss(text.hash_values, codes_BK),
        similarity=label_similarity_loss(image.hash_values, text.hash_values, labels_BC),
    )
    if not triplets:
        return losses
    within, across = (triplet_masks(labels_BC, within, positive_overlap) for within in (True, False))
    # Four at once: images among themselves, images to texts, texts to images, texts among themselves.
    positive_22BB, negative_22BB = (
        torch.stack([one_BB, other_BB, other_BB, one_BB]).unflatten(0, (2, 2))
        for one_BB, other_BB in zip(within, across, strict=True)
    )
    feature_22BB = _cosines_of_both(image.features, text.features)
    hash_22BB = _cosines_of_both(image.hash_values, text.hash_values)
    feature_22 = triplet_hinge(feature_22BB, positive_22BB, negative_22BB, margin)
    hash_22 = triplet_hinge(hash_22BB, positive_22BB, negative_22BB, margin)
    return CMFAHLosses(
        intra_feature=feature_22[0, 0] + feature_22[1, 1],
        intra_hash=hash_22[0, 0] + hash_22[1, 1],
        inter_feature=feature_22[0, 1] + feature_22[1, 0],
        inter_hash=hash_22[0, 1] + hash_22[1, 0],
        **losses,
    )


def _cosines_of_both(image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
    """`(2, 2, B, B)`: images with images, images with texts, texts with images, texts with texts."""
    both_ND = torch.cat([image_BD, text_BD])
    return cosine_matrix(both_ND, both_ND).unflatten(1, (2, -1)).unflatten(0, (2, -1)).transpose(1, 2)


def views_losses(
    config: CMFAHConfig,
    alone: tuple[CMFAHTowerOutput, CMFAHTowerOutput],
    paired: tuple[CMFAHTowerOutput, CMFAHTowerOutput] | None,
    labels_BC: torch.Tensor,
    codes_BK: torch.Tensor | None,
    extra: Callable[[CMFAHTowerOutput, CMFAHTowerOutput], dict[str, torch.Tensor]] | None = None,
    kind: type[CMFAHLosses] = CMFAHLosses,
) -> CMFAHLosses:
    """The terms of both views of a batch, the paired one `paired_weight` times.

    Both aim at one code, that of the pair: so the pair teaches the single.

    Args:
        config: Names the margin, the variant, the paired view's weight, and whether any triplet weighs at all.
        alone, paired: Image and text of each view; without attention the two are one. None: a batch that is seen alone.
        labels_BC: `(B, C)`, multi-hot, or what else `relevance` takes.
        codes_BK: `(B, K)`, `B` of `[algorithm-1]`. None: `sgn(H_v + H_t)` of the paired view, where there is one.
        extra: Further terms of a view, by name.
        kind: What the terms are given back as.
    """
    triplets = any(
        (config.intra_feature_weight, config.intra_hash_weight, config.inter_feature_weight, config.inter_hash_weight)
    )
    if codes_BK is None:
        image, text = alone if paired is None else paired
        codes_BK = sign(image.hash_values + text.hash_values).detach()
    views = [(1.0, alone)]
    if paired is not None and config.attention != "none" and config.paired_weight > 0:
        views.append((config.paired_weight, paired))
    totals: dict[str, torch.Tensor] = {}
    for weight, (image, text) in views:
        terms = {
            **pair_losses(image, text, labels_BC, codes_BK, config.margin, config.positive_overlap, triplets),
            **(extra(image, text) if extra else {}),
        }
        for name, value in terms.items():
            totals[name] = totals.get(name, 0.0) + weight * value
    return kind(**totals)


def weighted_total(
    losses: CMFAHLosses, config: CMFAHConfig, further_weights: Mapping[str, float] | None = None
) -> torch.Tensor:
    """L_gen - L_adv: the terms that are there, each times its weight; `[adversarial]` is what the towers maximise.

    `further_weights` are those of terms that CMFAH has not, by name.
    """
    weights = {
        **(further_weights or {}),
        "intra_feature": config.intra_feature_weight,
        "intra_hash": config.intra_hash_weight,
        "quantization": config.quantization_weight,
        "inter_feature": config.inter_feature_weight,
        "inter_hash": config.inter_hash_weight,
        "similarity": config.similarity_weight,
        "label": config.label_weight,
        "concept": config.concept_weight,
        "adversarial": -config.adversarial_weight,
    }
    return sum(weights[name] * value for name, value in losses.items())
