"""DJSRH: cosines of codes reconstruct a joint affinity of the features of both modalities, without labels.

Shape suffixes: B pairs of a batch, E width of features, K hash bits. Equations are cited by their tags in
`docs/method.md`.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch.nn.functional import mse_loss

from cmfah_hf.methods.base import Batch, Losses, ObjectiveConfig, Paper, TrainingState
from cmfah_hf.methods.deep.epochs import EpochObjective
from cmfah_hf.methods.losses import cosine_matrix
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.methods.registry import register_method
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.ranges import POSITIVE, SHARE_OR_ALL


@strict
@dataclass
class DJSRHObjectiveConfig(ObjectiveConfig):
    """Settings of DJSRH's objective. Defaults are the paper's for MIRFlickr.

    Args:
        image_share (`float`, defaults to 0.9):
            beta of `[djsrh]`: the share of the images' cosines in the affinity, from 0 to 1; the texts' have the rest.
        neighbor_share (`float`, defaults to 0.4):
            eta of `[djsrh]`: the share of affinities by common neighbors, from 0 to 1.
        target_scale (`float`, defaults to 1.5):
            mu of `[djsrh]`: multiplies the affinity; above 0.
        intra_weight (`float`, defaults to 0.1):
            lambda of `[djsrh]`: weight of the codes within each modality, relative to those across.
    """

    image_share: float | int = 0.9
    neighbor_share: float | int = 0.4
    target_scale: float | int = 1.5
    intra_weight: float | int = 0.1

    ranges = {**dict.fromkeys(("image_share", "neighbor_share"), SHARE_OR_ALL), "target_scale": POSITIVE}


def joint_affinity(
    image_vectors_BE: torch.Tensor, text_vectors_BE: torch.Tensor, image_share: float, neighbor_share: float
) -> torch.Tensor:
    """The joint affinity `(B, B)` of a batch, `[djsrh]`, before its scale; the lengths of the vectors do not matter."""
    image_BB, text_BB = (
        2 * cosine_matrix(vectors_BE, vectors_BE) - 1 for vectors_BE in (image_vectors_BE, text_vectors_BE)
    )
    mixed_BB = image_share * image_BB + (1 - image_share) * text_BB
    return (1 - neighbor_share) * mixed_BB + neighbor_share * (mixed_BB @ mixed_BB.mT) / len(mixed_BB)


@register_method("djsrh")
class DJSRHObjective(EpochObjective):
    """DJSRH's objective, `[djsrh]`, with terms `inter` and `intra`, the latter summed over both modalities.

    The codes become steeper with each epoch. Trained towers encode without this factor, which changes no sign.
    """

    settings_class = DJSRHObjectiveConfig
    settings: DJSRHObjectiveConfig
    labels = "refuses"
    paper = Paper.from_bibtex("""@inproceedings{su2019djsrh,
  title     = {Deep Joint-Semantics Reconstructing Hashing for Large-Scale Unsupervised Cross-Modal Retrieval},
  author    = {Su, Shupeng and Zhong, Zhisheng and Zhang, Chao},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2019},
  doi       = {10.1109/ICCV.2019.00312}
}""")

    def __init__(self, config: CMFAHConfig, settings: DJSRHObjectiveConfig):
        super().__init__(config, settings)
        self.post_init()

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """The terms over the pairs of the batch; its labels are not read."""
        settings, dtype = self.settings, torch.promote_types(outputs.logits[0].dtype, torch.float32)
        image_BE, text_BE = (vectors_BE.detach().to(dtype) for vectors_BE in outputs.vectors)
        target_BB = settings.target_scale * joint_affinity(
            image_BE, text_BE, settings.image_share, settings.neighbor_share
        )
        steepness = (self.epochs.finished + 1).to(dtype).sqrt()
        image_BK, text_BK = ((steepness * logits_BK.to(dtype)).tanh() for logits_BK in outputs.logits)
        terms = {
            "inter": mse_loss(cosine_matrix(image_BK, text_BK), target_BB),
            "intra": mse_loss(cosine_matrix(image_BK, image_BK), target_BB)
            + mse_loss(cosine_matrix(text_BK, text_BK), target_BB),
        }
        return Losses.weighted(terms, {"inter": 1.0, "intra": settings.intra_weight})
