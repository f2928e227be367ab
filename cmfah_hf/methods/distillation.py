"""Distillation: cosines of codes towards those of the vectors of a dual encoder, without labels.

Shape suffixes: B pairs of a batch, U items of both modalities together (images first), E width of the encoder's
vectors, K hash bits.
"""

import torch

from cmfah_hf.methods.losses import cosine_matrix


@torch.no_grad()
def vector_similarity(image_BE: torch.Tensor, text_BE: torch.Tensor, neighbors_share: float = 0.0) -> torch.Tensor:
    """The targets of `[distillation]`: similarity of all images and texts of a batch, `(U, U)` in -1..1.

    Each modality is centered by its mean over the batch, because images and texts lie in different places.
    `neighbors_share` is that of the similarity of neighborhoods: the cosine of two rows of the similarity.
    """
    wide = torch.promote_types(image_BE.dtype, torch.float32)
    centered = [vectors_BE.to(wide) - vectors_BE.to(wide).mean(dim=0) for vectors_BE in (image_BE, text_BE)]
    both_UE = torch.cat(centered)
    similarity_UU = cosine_matrix(both_UE, both_UE)
    if neighbors_share:
        neighborhoods_UU = cosine_matrix(similarity_UU, similarity_UU)
        similarity_UU = torch.lerp(similarity_UU, neighborhoods_UU, neighbors_share)
    return similarity_UU


def distillation_loss(
    image_hash_BK: torch.Tensor, text_hash_BK: torch.Tensor, similarity_UU: torch.Tensor
) -> torch.Tensor:
    """`[distillation]`: mean squared difference of the cosines of codes from `vector_similarity`.

    Images and texts are compared together. Items are not compared with themselves or with their partners.
    """
    both_UK = torch.cat([image_hash_BK, text_hash_BK])
    number_U = torch.arange(len(both_UK), device=both_UK.device) % len(image_hash_BK)
    others_UU = number_U[:, None] != number_U[None, :]
    error_UU = (cosine_matrix(both_UK, both_UK) - similarity_UU.to(both_UK.dtype)).square()
    return (error_UU * others_UU).sum() / others_UU.sum().clamp(min=1)
