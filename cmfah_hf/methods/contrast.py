"""Supervised contrastive losses, and a queue of codes of earlier batches.

Shape suffixes: A anchors, N candidates, B pairs of the batch, Q pairs of the queue, D feature width, K hash bits,
C classes.
"""

from typing import NamedTuple

import torch
from torch import nn

from cmfah_hf.methods.losses import added, cosine_matrix, pairwise_similarity


class EarlierPairs(NamedTuple):
    """Detached continuous codes `(Q, K)` of both modalities and labels `(Q, C)` of pairs of earlier batches."""

    image_hash: torch.Tensor
    text_hash: torch.Tensor
    labels: torch.Tensor


class ContrastQueue(nn.Module):
    """A ring buffer of the last Q training pairs: each batch replaces the oldest pairs, `[contrastive]`.

    Its buffers are saved with the weights, so a resumed run contrasts with the same pairs. Unused rows have no labels,
    and unlabeled pairs are not contrasted.
    """

    image_hash: torch.Tensor
    text_hash: torch.Tensor
    labels: torch.Tensor
    place: torch.Tensor

    def __init__(self, size: int, hash_bits: int, num_labels: int):
        super().__init__()
        self.register_buffer("image_hash", torch.zeros(size, hash_bits))
        self.register_buffer("text_hash", torch.zeros(size, hash_bits))
        self.register_buffer("labels", torch.zeros(size, num_labels))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @property
    def pairs(self) -> EarlierPairs:
        # Copies, because `push` may write into the buffers before the backward pass.
        return EarlierPairs(self.image_hash.clone(), self.text_hash.clone(), self.labels.clone())

    @torch.no_grad()
    def push(self, image_hash_BK: torch.Tensor, text_hash_BK: torch.Tensor, labels_BC: torch.Tensor) -> None:
        """Appends a batch, or only its last pairs if it is larger than the queue."""
        size = len(self.labels)
        new = min(len(labels_BC), size)
        places = (self.place + torch.arange(new, device=self.place.device)) % size
        for kept, given in ((self.image_hash, image_hash_BK), (self.text_hash, text_hash_BK), (self.labels, labels_BC)):
            kept[places] = given[len(given) - new :].detach().to(kept.dtype)
        self.place.copy_((self.place + new) % size)


def contrastive_loss(
    cosines_AN: torch.Tensor, overlap_AN: torch.Tensor, comparable_AN: torch.Tensor, temperature: float
) -> torch.Tensor:
    """`[contrastive]`: the mean of `-sum_j w_ij log softmax_j(cos_ij / temperature)` over anchors i with a positive.

    The rows of `w` are those of the overlap, scaled to the sum 1.

    Args:
        cosines_AN: Cosines of anchors with candidates.
        overlap_AN: Similarity by labels, 0 or more.
        comparable_AN: Boolean mask of an anchor's candidates, positives and negatives.
        temperature: Above 0.

    Returns:
        A scalar; 0 if no anchor has a positive.
    """
    half = cosines_AN.dtype in (torch.float16, torch.bfloat16)
    scores_AN = (cosines_AN.float() if half else cosines_AN) / temperature
    # Finite, so that an anchor without candidates gives zeros instead of NaN.
    scores_AN = scores_AN.masked_fill(~comparable_AN, torch.finfo(scores_AN.dtype).min)
    weights_AN = (overlap_AN * comparable_AN).to(scores_AN.dtype)
    total_A1 = weights_AN.sum(dim=1, keepdim=True)
    has_positive_A1 = total_A1 > 0
    weights_AN = weights_AN / torch.where(has_positive_A1, total_A1, 1)
    surprise_AN = -scores_AN.log_softmax(dim=1).masked_fill(~comparable_AN, 0.0)
    return (weights_AN * surprise_AN).sum() / has_positive_A1.sum().clamp(min=1)


def _overlap(
    labels_BC: torch.Tensor, earlier: torch.Tensor | None, threshold: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity of the batch's pairs with those of the batch and the queue, and a mask of comparable ones."""
    overlap_BN, known_B = pairwise_similarity(labels_BC, dtype)
    known_N = known_B
    if earlier is not None:
        overlap_BN = torch.cat([overlap_BN, cosine_matrix(labels_BC.to(dtype), earlier.to(dtype))], dim=1)
        known_N = torch.cat([known_B, earlier.sum(dim=1) > 0])
    return overlap_BN * (overlap_BN > threshold), known_B[:, None] & known_N[None, :]


def contrast_losses(
    image_hash_BK: torch.Tensor,
    text_hash_BK: torch.Tensor,
    labels_BC: torch.Tensor,
    temperature: float,
    cross: bool = True,
    intra: bool = True,
    positive_overlap: float = 0.0,
    earlier: EarlierPairs | None = None,
) -> dict[str, torch.Tensor]:
    """`[contrastive]` on continuous codes: `cross_contrast`, both directions, and `intra_contrast`, both modalities.

    Positives are more similar than `positive_overlap`, and are weighted by their similarity. Within a modality, an item
    is not compared with itself. Unlabeled pairs are left out.

    Args:
        image_hash_BK, text_hash_BK: Codes of one view of the batch.
        labels_BC: Labels, tags or numbers of the batch, as in `pairwise_similarity`.
        temperature: Above 0.
        cross, intra: Whether to compute each term.
        positive_overlap: From 0 to below 1.
        earlier: Further candidates, for which all labels must be multi-hot.
    """
    dtype = torch.promote_types(image_hash_BK.dtype, torch.float32)
    overlap_BN, comparable_BN = _overlap(
        labels_BC, None if earlier is None else earlier.labels, positive_overlap, dtype
    )
    images_NK, texts_NK = image_hash_BK, text_hash_BK
    if earlier is not None:
        images_NK = torch.cat([images_NK, earlier.image_hash.to(images_NK.dtype)])
        texts_NK = torch.cat([texts_NK, earlier.text_hash.to(texts_NK.dtype)])
    terms = {}
    if cross:
        terms["cross_contrast"] = added(
            contrastive_loss(cosine_matrix(anchors_BK, candidates_NK), overlap_BN, comparable_BN, temperature)
            for anchors_BK, candidates_NK in ((image_hash_BK, texts_NK), (text_hash_BK, images_NK))
        )
    if intra:
        itself_BN = torch.eye(*comparable_BN.shape, dtype=torch.bool, device=comparable_BN.device)
        terms["intra_contrast"] = added(
            contrastive_loss(
                cosine_matrix(anchors_BK, candidates_NK), overlap_BN, comparable_BN & ~itself_BN, temperature
            )
            for anchors_BK, candidates_NK in ((image_hash_BK, images_NK), (text_hash_BK, texts_NK))
        )
    return terms


def pair_contrast_loss(image_hash_BK: torch.Tensor, text_hash_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """`[pair-contrast]`: InfoNCE of continuous codes in both directions; only the partner is a positive."""
    cosines_BB = cosine_matrix(image_hash_BK, text_hash_BK)
    partner_BB = torch.eye(len(cosines_BB), dtype=cosines_BB.dtype, device=cosines_BB.device)
    all_BB = torch.ones_like(partner_BB, dtype=torch.bool)
    return added(contrastive_loss(each_BB, partner_BB, all_BB, temperature) for each_BB in (cosines_BB, cosines_BB.mT))


def graph_logits(features_BD: torch.Tensor, label_features_CD: torch.Tensor, temperature: float) -> torch.Tensor:
    """`[graph-guidance]`: `cos(F, G) / temperature`, `(B, C)`; positive for classes of the item."""
    return cosine_matrix(features_BD, label_features_CD) / temperature
