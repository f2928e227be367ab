"""Regions of a frozen backbone, computed once and kept on disk.

A frozen backbone computes the same regions in every epoch and takes nearly all of the time. With its regions on disk,
an epoch on a CPU takes seconds.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from cmfah_hf.data.file_state import digest_of
from cmfah_hf.data.images import decode_image, decoding_off
from cmfah_hf.data.internals import fingerprint_of
from cmfah_hf.errors import DataError, ImageError
from cmfah_hf.models import CMFAHImageModel, CMFAHProcessor
from cmfah_hf.training.data.kept_tables import image_states, kept_folder, kept_table
from cmfah_hf.training.data.region_shards import keep_streamed_regions

logger = logging.getLogger(__name__)


class RegionExtractor:
    """A stage for `datasets.map(batched=True)`: from `image` to `region_features`, float16 `(R, C)` in each row.

    With `mirrored=True` it adds `region_features_mirrored`, the regions of the mirror image. For an unreadable image,
    the regions are zeros and `readable` is False. Only the backbone of the image tower is used.
    """

    def __init__(self, image_model: CMFAHImageModel, processor: CMFAHProcessor, mirrored: bool = False):
        self.embeddings = image_model.embeddings
        self.processor = processor
        self.mirrored = mirrored

    def fingerprint(self) -> str:
        """A digest of the weights of the backbone and the preprocessing of the images."""
        preparation = self.processor.image_processor.to_dict()
        used = ("size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        # As JSON, which is equal for a new processor and a loaded one.
        digest = hashlib.sha256(json.dumps([*(preparation.get(name) for name in used), self.mirrored]).encode())
        for name, tensor in self.embeddings.backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).data)
        return digest.hexdigest()

    @torch.inference_mode()
    def regions(self, pixel_values: torch.Tensor) -> np.ndarray:
        """`(B, R, C)`, float16, of `(B, 3, H, W)`."""
        self.embeddings.eval()
        device = self.embeddings.projection.weight.device
        regions_BRC = self.embeddings.extract_regions(pixel_values.to(device)).float()
        largest = torch.finfo(torch.float16).max
        return regions_BRC.clamp(-largest, largest).half().cpu().numpy()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        images, readable = [], []
        for number, value in enumerate(batch["image"]):
            try:
                images.append(decode_image(value, name=str(batch["id"][number]) if "id" in batch else None))
                readable.append(True)
            except ImageError as error:
                logger.warning("Left out: %s", error)
                readable.append(False)
        size = self.processor.image_processor.size
        pixel_values = torch.zeros(len(readable), 3, size["height"], size["width"])
        if images:
            pixel_values[torch.tensor(readable)] = self.processor(images=images, return_tensors="pt")["pixel_values"]
        columns = {"region_features": self.regions(pixel_values), "readable": readable}
        if self.mirrored:
            columns["region_features_mirrored"] = self.regions(pixel_values.flip(-1))
        return columns


def keep_regions(
    dataset: datasets.Dataset | datasets.IterableDataset,
    image_model: CMFAHImageModel,
    processor: CMFAHProcessor,
    mirrored: bool = False,
    batch_size: int = 16,
    num_processes: int = 1,
    process_index: int = 0,
) -> datasets.Dataset | datasets.IterableDataset:
    """The data set with a column `region_features` (and `region_features_mirrored`), without unreadable rows.

    The columns are kept in the cache of `datasets`, and later calls with the same images, backbone and preprocessing
    read them from there. 49 regions of 512 channels take 50 kB per image. If image files have changed or files of the
    cache are damaged, the regions are computed again, with a warning that names the file.

    A stream is read once, and its regions are kept in files that are streamed in turn, without the images. They may be
    larger than memory, but not than the disk. If that pass is interrupted, the next call resumes it.

    Args:
        dataset: A data set or stream with a column `image`.
        image_model: The image tower with its backbone's weights.
        processor: The model's processor.
        mirrored: Whether to keep the regions of the mirror images too.
        batch_size: Images in a batch of the backbone.
        num_processes, process_index: The number of processes that share the shards of a stream, and the index of this
            one.

    Raises:
        DataError: If no image can be read.
    """
    extractor = RegionExtractor(image_model, processor, mirrored)
    size = processor.image_processor.size
    num_regions, channels = extractor.regions(torch.zeros(1, 3, size["height"], size["width"])).shape[1:]
    columns = {name: datasets.Array2D((num_regions, channels), "float16") for name in _region_columns(mirrored)}
    if isinstance(dataset, datasets.IterableDataset):
        return keep_streamed_regions(dataset, extractor, columns, batch_size, num_processes, process_index)
    raw = decoding_off(dataset)
    states = image_states(raw)
    # The key includes the states: a source that is changed back finds its regions again.
    key = f"{fingerprint_of(dataset)} {digest_of(states)} {extractor.fingerprint()}"
    added = datasets.Features({**columns, "readable": datasets.Value("bool")})

    def make(file: Path) -> None:
        raw.map(
            extractor,
            cache_file_name=str(file),
            load_from_cache_file=False,
            batched=True,
            batch_size=batch_size,
            remove_columns=raw.column_names,
            features=added,
            new_fingerprint=file.parent.name[:32],
            desc="Regions of the images",
        )

    folder = kept_folder("regions", key)
    regions = kept_table(folder, added, len(raw), make, states, dict.fromkeys(columns, (num_regions, channels)))
    raw = datasets.concatenate_datasets([raw, regions], axis=1)
    readable = np.asarray(raw["readable"])
    if not readable.any():
        raise DataError(f"None of the {len(raw)} images can be read; see the warnings above.")
    if not readable.all():
        logger.warning("Left out %d of %d images, because they cannot be read.", np.sum(~readable), len(raw))
        raw = raw.select(np.flatnonzero(readable))
    raw = raw.remove_columns("readable").cast_column("image", dataset.features["image"])
    # In this format a batch of regions is read in milliseconds, as lists in seconds. The type prevents NumPy from
    # converting them to float32 row by row.
    return raw.with_format("numpy", columns=_region_columns(mirrored), output_all_columns=True, dtype=np.float16)


def _region_columns(mirrored: bool) -> list[str]:
    return ["region_features", "region_features_mirrored"] if mirrored else ["region_features"]
