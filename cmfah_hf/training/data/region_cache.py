"""The regions of a frozen backbone, computed once and kept.

A frozen backbone gives the same regions in every epoch, and it is nearly all of the work: with its regions kept on
disk, an epoch on a CPU takes seconds.
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
from cmfah_hf.errors import DataError, ImageError
from cmfah_hf.models import CMFAHImageModel, CMFAHProcessor
from cmfah_hf.training.data.datasets_internals import fingerprint
from cmfah_hf.training.data.kept_tables import image_states, kept_folder, kept_table
from cmfah_hf.training.data.region_shards import keep_streamed_regions

logger = logging.getLogger(__name__)


class RegionExtractor:
    """A stage for `datasets.map(batched=True)`: pictures in, `region_features` out, float16 `(R, C)` a row.

    With `mirrored=True` it gives `region_features_mirrored` too, the regions of the picture's mirror image. A picture
    that cannot be read gives zeros and `readable` false.

    Args:
        image_model: The image tower; only its backbone is used.
        processor: The model's processor.
        mirrored: Whether to see every picture's mirror image as well.
    """

    def __init__(self, image_model: CMFAHImageModel, processor: CMFAHProcessor, mirrored: bool = False):
        self.embeddings = image_model.embeddings
        self.processor = processor
        self.mirrored = mirrored

    def fingerprint(self) -> str:
        """Changes with the backbone's weights and with the pictures' preparation, and with nothing else."""
        preparation = self.processor.image_processor.to_dict()
        used = ("size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        # As JSON, which says the same of a processor that was just made and of one that was loaded.
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
        pictures, readable = [], []
        for number, value in enumerate(batch["image"]):
            try:
                pictures.append(decode_image(value, name=str(batch["id"][number]) if "id" in batch else None))
                readable.append(True)
            except ImageError as error:
                logger.warning("Left out: %s", error)
                readable.append(False)
        size = self.processor.image_processor.size
        pixel_values = torch.zeros(len(readable), 3, size["height"], size["width"])
        if pictures:
            pixel_values[torch.tensor(readable)] = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
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
    """The data set with the columns `region_features` (and `region_features_mirrored`), without unreadable rows.

    They are kept in the cache of `datasets`: a second call with the same pictures, backbone and preparation, in this
    process or a later one, reads them from there. 49 regions of 512 channels take 50 kB a picture. Image files that
    have changed and a cache that was damaged are computed anew, with a warning that names the file.

    A stream is read once, and its regions are kept in files that stream in their turn, without its pictures: larger
    than memory, but not than the disk. If that pass breaks off, the next call goes on from there.

    Args:
        dataset: A data set or stream with a column `image`.
        image_model: The image tower with its backbone's weights.
        processor: The model's processor.
        mirrored: Whether to keep the regions of the mirror images too.
        batch_size: Pictures that pass the backbone at once.
        num_processes, process_index: Of a stream: how many processes share its shards, and which of them this is.

    Raises:
        DataError: If not one picture can be read.
    """
    extractor = RegionExtractor(image_model, processor, mirrored)
    size = processor.image_processor.size
    num_regions, channels = extractor.regions(torch.zeros(1, 3, size["height"], size["width"])).shape[1:]
    columns = {name: datasets.Array2D((num_regions, channels), "float16") for name in _region_columns(mirrored)}
    if isinstance(dataset, datasets.IterableDataset):
        return keep_streamed_regions(dataset, extractor, columns, batch_size, num_processes, process_index)
    raw = decoding_off(dataset)
    states = image_states(raw)
    # The states are in the key as well as in the note: a source that changes to and fro finds its regions again.
    key = f"{fingerprint(dataset)} {digest_of(states)} {extractor.fingerprint()}"
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
            desc="Regions of the pictures",
        )

    folder = kept_folder("regions", key)
    regions = kept_table(folder, added, len(raw), make, states, dict.fromkeys(columns, (num_regions, channels)))
    raw = datasets.concatenate_datasets([raw, regions], axis=1)
    readable = np.asarray(raw["readable"])
    if not readable.any():
        raise DataError(f"None of the {len(raw)} pictures can be read; see the warnings above.")
    if not readable.all():
        logger.warning("Left out %d of %d pictures, because they cannot be read.", np.sum(~readable), len(raw))
        raw = raw.select(np.flatnonzero(readable))
    raw = raw.remove_columns("readable").cast_column("image", dataset.features["image"])
    # In this format a batch of regions is read in milliseconds; as lists it takes seconds. Unless told otherwise, it
    # would make float32 of them, a row at a time.
    return raw.with_format("numpy", columns=_region_columns(mirrored), output_all_columns=True, dtype=np.float16)


def _region_columns(mirrored: bool) -> list[str]:
    return ["region_features", "region_features_mirrored"] if mirrored else ["region_features"]
