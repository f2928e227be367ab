"""DCMH: the likelihood of pairwise similarities, against the values of all training pairs.

Shape suffixes: N training pairs, B pairs of a batch, K hash bits. Equations are cited by their tags in
`docs/method.md`.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch.nn.functional import softplus

from cmfah_hf.methods.base import Batch, FeatureObjective, Losses, ObjectiveConfig, Paper, TrainingState
from cmfah_hf.methods.losses import added, similarity_between
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.methods.registry import register_method
from cmfah_hf.models.codes import sign

# Tables of `TrainingState`: F and G, the values of all training pairs, and their labels.
IMAGES, TEXTS, LABELS = "image_values", "text_values", "all_labels"


@strict
@dataclass
class DCMHObjectiveConfig(ObjectiveConfig):
    """Settings of DCMH's objective.

    Args:
        quantization_weight (`float`, defaults to 1):
            gamma of `[dcmh]`.
        balance_weight (`float`, defaults to 1):
            eta of `[dcmh]`.
    """

    quantization_weight: float | int = 1.0
    balance_weight: float | int = 1.0


def pairwise_likelihood(values_BK: torch.Tensor, others_NK: torch.Tensor, similar_BN: torch.Tensor) -> torch.Tensor:
    """The negative log-likelihood of similarities, summed over all pairs: a scalar, `[pairwise-likelihood]`."""
    theta_BN = values_BK @ others_NK.mT / 2
    return (softplus(theta_BN) - similar_BN * theta_BN).sum()


@register_method("dcmh")
class DCMHObjective(FeatureObjective):
    """DCMH's objective, `[dcmh]`, with terms `likelihood`, `quantization` and `balance`.

    A batch is compared with the values of all training pairs, which change with each batch; without numbered pairs,
    with those of the batch. Both networks take their step on the same batch, where the paper's take turns.
    """

    settings_class = DCMHObjectiveConfig
    settings: DCMHObjectiveConfig
    labels = "needs"
    paper = Paper.from_bibtex("""@inproceedings{jiang2017dcmh,
  title     = {Deep Cross-Modal Hashing},
  author    = {Jiang, Qing-Yuan and Li, Wu-Jun},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2017},
  doi       = {10.1109/CVPR.2017.348}
}""")

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """The terms over the pairs of the batch and all training pairs, divided by the numbers of both."""
        values, labels, rows_B = outputs.logits, batch["labels"], batch.get("row")
        if rows_B is None or IMAGES not in state.tables:
            stored, labels_N = (values[0].detach(), values[1].detach()), labels
            rows_B = torch.arange(len(labels), device=labels.device)
        else:
            images_NK, texts_NK, labels_N = (state.tables[name].to(labels.device) for name in (IMAGES, TEXTS, LABELS))
            stored = images_NK, texts_NK
        similar_BN = (similarity_between(labels, labels_N)[0] > 0).to(values[0].dtype)
        codes_BK = sign(stored[0][rows_B] + stored[1][rows_B]).to(values[0].dtype)
        sums = [
            other_NK.sum(dim=0) - other_NK[rows_B].sum(dim=0) + own_BK.sum(dim=0)
            for own_BK, other_NK in zip(values, stored, strict=True)
        ]
        terms = {
            "likelihood": added(
                pairwise_likelihood(own_BK, other_NK, similar_BN)
                for own_BK, other_NK in zip(values, reversed(stored), strict=True)
            ),
            "quantization": added((codes_BK - own_BK).square().sum() for own_BK in values),
            "balance": added(sum_K.square().sum() for sum_K in sums),
        }
        count = len(labels) * len(labels_N)
        terms = {name: value / count for name, value in terms.items()}
        if self.training and IMAGES in state.tables and "row" in batch:
            for name, own_BK in zip((IMAGES, TEXTS), values, strict=True):
                # A new table: the graph of this loss holds the old one.
                state.tables[name] = state.tables[name].index_copy(0, rows_B.cpu(), own_BK.detach().float().cpu())
        weights = {
            "likelihood": 1.0,
            "quantization": self.settings.quantization_weight,
            "balance": self.settings.balance_weight,
        }
        return Losses.weighted(terms, weights)

    def on_train_begin(self, state: TrainingState) -> None:
        """F and G of the new networks, and the labels."""
        if state.encode is None:
            return
        pairs = state.encode_all()
        state.tables |= {IMAGES: pairs.image_logits, TEXTS: pairs.text_logits, LABELS: pairs.labels}
