"""Label co-occurrence graph, and label features from two graph convolutions over it.

Shape suffixes: C classes, E width of word vectors, H hidden width, D feature width.
"""

import numpy as np
import torch
from torch import nn


def conditional_probabilities(counts_CC: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Conditional probabilities `P[i, j] = count(i, j) / count(i)` of label j given label i, `[label-graph]`.

    Args:
        counts_CC: The number of items with both labels, and on the diagonal with each label.
        dtype: The type of the result.

    Returns:
        `(C, C)`, ones on the diagonal; rows and columns of unused labels are zeros.
    """
    counts_CC = counts_CC.to(dtype)
    return counts_CC / counts_CC.diagonal()[:, None].clamp(min=1)


def label_edges(counts_CC: torch.Tensor, threshold: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """`(C, C)` boolean, edges from label i to another label j where `P[i, j] >= threshold`, `[label-graph]`."""
    # Includes shares that equal the threshold up to rounding: 2 of 5 is 0.4.
    edges_CC = conditional_probabilities(counts_CC, dtype) >= threshold - 1e-6
    return edges_CC & ~torch.eye(len(counts_CC), dtype=torch.bool, device=counts_CC.device)


def label_adjacency(
    counts_CC: torch.Tensor, threshold: float, share: float, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Normalized adjacency of the graph convolutions, `[label-graph]`.

    The neighbors of a label share the weight `share` equally, and the label has the rest. Each entry is divided by the
    square roots of the row sums of its two labels. A label without neighbors only has a self-loop.
    """
    edges_CC = label_edges(counts_CC, threshold, dtype).to(dtype)
    neighbors_C1 = edges_CC.sum(dim=1, keepdim=True)
    weights_CC = share * edges_CC / neighbors_C1.clamp(min=1)
    weights_CC = weights_CC + (1 - share) * torch.eye(len(edges_CC), dtype=edges_CC.dtype, device=edges_CC.device)
    root_C = weights_CC.sum(dim=1).rsqrt()
    return root_C[:, None] * weights_CC * root_C[None, :]


class LabelGraph(nn.Module):
    """Label features `G` `(C, D)` from word vectors of the label names, by two graph convolutions, `[label-graph]`.

    The counts and the vectors are buffers, saved with the weights. Before `fill` is called, no labels co-occur, and the
    vectors are `first_vectors`.

    Args:
        num_labels: C.
        word_dim: E, width of the labels' vectors.
        hidden_size: D, width of label features and of the hidden layer.
        threshold, share: tau and p.
    """

    counts: torch.Tensor
    vectors: torch.Tensor

    def __init__(self, num_labels: int, word_dim: int, hidden_size: int, threshold: float, share: float):
        super().__init__()
        self.threshold, self.share = threshold, share
        self.register_buffer("counts", torch.zeros(num_labels, num_labels, dtype=torch.long))
        # On the meta device, the vectors are loaded later.
        on_meta = self.counts.device.type == "meta"
        vectors_CE = torch.empty(num_labels, word_dim) if on_meta else self.first_vectors(num_labels, word_dim)
        self.register_buffer("vectors", vectors_CE)
        self.convolution_in = nn.Linear(word_dim, hidden_size, bias=False)
        self.convolution_out = nn.Linear(hidden_size, hidden_size, bias=False)

    @staticmethod
    def first_vectors(num_labels: int, word_dim: int) -> torch.Tensor:
        """Random distinct vectors `(C, E)`, equal in all models."""
        drawn_CE = np.random.default_rng(0).standard_normal((num_labels, word_dim))
        return torch.tensor(drawn_CE, dtype=torch.get_default_dtype())

    @torch.no_grad()
    def fill(self, counts_CC: torch.Tensor, vectors_CE: torch.Tensor) -> None:
        """Sets the counts of the training labels, as in `conditional_probabilities`, and the vectors of the labels.

        Raises:
            ValueError: If the shapes do not fit the classes, or the counts are inconsistent.
        """
        for name, given, kept in (("counts", counts_CC, self.counts), ("vectors", vectors_CE, self.vectors)):
            if given.shape != kept.shape:
                raise ValueError(f"The {name} of the labels are {tuple(given.shape)}, not {tuple(kept.shape)}.")
        diagonal_C = counts_CC.diagonal()
        most_CC = torch.minimum(diagonal_C[:, None], diagonal_C[None, :])
        if not torch.equal(counts_CC, counts_CC.T) or bool(((counts_CC < 0) | (counts_CC > most_CC)).any()):
            raise ValueError(
                "The counts of the labels are not symmetric, or two labels occur together more often than either "
                "occurs; count each item once."
            )
        self.counts.copy_(counts_CC)
        self.vectors.copy_(vectors_CE)

    def forward(self) -> torch.Tensor:
        """`G`, `(C, D)`."""
        dtype = torch.promote_types(self.vectors.dtype, torch.float32)
        adjacency_CC = label_adjacency(self.counts, self.threshold, self.share, dtype).to(self.vectors.dtype)
        hidden_CH = nn.functional.leaky_relu(adjacency_CC @ self.convolution_in(self.vectors), 0.2)
        return adjacency_CC @ self.convolution_out(hidden_CH)
