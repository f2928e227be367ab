"""Class proxies: one learned direction in the space of codes for each class.

Shape suffixes: B items of a batch, C classes, K hash bits.
"""

import torch
from torch import nn

from cmfah_hf.methods.losses import cosine_matrix


class ClassProxies(nn.Module):
    """The proxies `(C, K)`, shared by images and texts."""

    def __init__(self, num_labels: int, hash_bits: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_labels, hash_bits))

    def forward(self, hash_BK: torch.Tensor) -> torch.Tensor:
        """The cosines of codes and proxies, `(B, C)`."""
        return cosine_matrix(hash_BK, self.weight)


def proxy_loss(cosines_BC: torch.Tensor, labels_BC: torch.Tensor, margin: float) -> torch.Tensor:
    """`[proxies]`: codes towards the proxies of their classes, and below a cosine of `margin` to all others.

    Each side is a mean over its items and classes, of cosines of codes and proxies. Unlabeled items are left out.
    """
    present_BC = labels_BC > 0
    absent_BC = ~present_BC & present_BC.any(dim=1, keepdim=True)
    near = ((1 - cosines_BC) * present_BC).sum() / present_BC.sum().clamp(min=1)
    far = ((cosines_BC - margin).clamp(min=0) * absent_BC).sum() / absent_BC.sum().clamp(min=1)
    return near + far
