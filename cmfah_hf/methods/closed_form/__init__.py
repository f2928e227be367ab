"""Codes without training: closed-form projections and rotations of the vectors of a frozen dual encoder."""

from cmfah_hf.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Candidate": "choice",
        "Choice": "choice",
        "CodeFitter": "choice",
        "HashProjection": "projections",
        "Moments": "moments",
        "PairMoments": "moments",
        "Reservoir": "vectors",
        "cca_projection": "projections",
        "itq_rotation": "rotations",
        "pca_projection": "projections",
        "random_frames": "rotations",
        "random_rotation": "rotations",
        "shared_projection": "projections",
        "unit_vectors": "vectors",
    },
)
