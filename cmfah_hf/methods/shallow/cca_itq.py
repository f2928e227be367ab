"""CCA-ITQ: canonical correlations of both modalities, rotated by iterative quantization.

Shapes: `N` pairs, `D` and `E` widths of image and text features, `K` bits.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cmfah_hf.errors import DataError
from cmfah_hf.methods.base import Paper
from cmfah_hf.methods.closed_form.projections import whitening
from cmfah_hf.methods.closed_form.rotations import itq_rotation, signs
from cmfah_hf.methods.shallow.hasher import CenteredPairs, ShallowHasher
from cmfah_hf.methods.shallow.maps import FeatureMap


@dataclass(kw_only=True)
class CCAITQ(ShallowHasher):
    """`[cca-itq]`: the canonical directions of images and texts, then one rotation of both by ITQ.

    Args:
        bits, seed: As in `ShallowHasher`; at most the smaller rank. The seed is that of the first rotation.
        ridge: Added to both covariances, as a share of their mean variance.
        rounds: Of ITQ.
    """

    name: ClassVar[str] = "cca-itq"
    supervised: ClassVar[bool] = False
    positive: ClassVar[tuple[str, ...]] = ("bits", "ridge", "rounds")
    paper: ClassVar[Paper] = Paper.from_bibtex("""@inproceedings{gong2011itq,
  title     = {Iterative Quantization: A Procrustean Approach to Learning Binary Codes},
  author    = {Gong, Yunchao and Lazebnik, Svetlana},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2011},
  doi       = {10.1109/CVPR.2011.5995432}
}""")

    ridge: float = 1e-4
    rounds: int = 50

    def _fit(self, pairs: CenteredPairs) -> np.ndarray:
        (images_ND, texts_ND), means = pairs.features, pairs.means
        image_DD, of_images = whitening(images_ND.T @ images_ND, self.ridge)
        text_EE, of_texts = whitening(texts_ND.T @ texts_ND, self.ridge)
        if self.bits > (most := min(of_images, of_texts)):
            raise DataError(f"bits is {self.bits}, and CCA has at most {most} directions here, the smaller rank.")
        left_DR, _, right_RE = np.linalg.svd(image_DD.T @ (images_ND.T @ texts_ND) @ text_EE, full_matrices=False)
        image_DK = image_DD @ left_DR[:, : self.bits]
        text_EK = text_EE @ right_RE[: self.bits].T
        both_2NK = np.concatenate([images_ND @ image_DK, texts_ND @ text_EK])
        rotation_KK, _ = itq_rotation(both_2NK, self.rounds, self.seed)
        image_DK, text_EK = image_DK @ rotation_KK, text_EK @ rotation_KK
        self.image_map_, self.text_map_ = FeatureMap(means[0], image_DK), FeatureMap(means[1], text_EK)
        return signs(images_ND @ image_DK)
