"""Options of reading and encoding images."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageOptions:
    """Options of reading and encoding images.

    Attributes:
        workers: Threads that read, decode and resize images while the model encodes others. None: one for each
            available processor, at most 8.
        fast_decoding: Decode JPEGs of at least six times the size that the model needs at a half, a quarter or an
            eighth of their size; about one bit of a hundred differs, as after saving a JPEG again.
        half: Encode in bfloat16 where PyTorch's autocast does, for GPUs; the weights and so the fingerprint stay, and
            a few bits of a hundred differ.
    """

    workers: int | None = None
    fast_decoding: bool = False
    half: bool = False
