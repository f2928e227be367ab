"""Compression: a model of the codes of a pretrained dual encoder, fitted to unlabeled images without training.

Shape suffixes: N images, E width of the encoder's vectors, K bits.
"""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from cmfah_hf.atomic import atomic_folder, check_replaceable, write_text
from cmfah_hf.data import resolve_data_path
from cmfah_hf.data.images import decoding_off
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError, DataError, ImageError
from cmfah_hf.evaluation.calibration import fit_calibration
from cmfah_hf.evaluation.cosine_counts import CodedPairs
from cmfah_hf.expansion.corpus import iterate_file, text_of, without_surrogates
from cmfah_hf.methods.closed_form import Choice, CodeFitter
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
from cmfah_hf.retrieval.calibration import CALIBRATION_NAME
from cmfah_hf.retrieval.folders import folder_index_path
from cmfah_hf.retrieval.folders.filling import records_of_folder
from cmfah_hf.retrieval.folders.reading import read_path
from cmfah_hf.retrieval.image_options import ImageOptions
from cmfah_hf.retrieval.items import batches_of, progress_bar, values_of_source
from cmfah_hf.retrieval.model_source import IMAGES_INDEX
from cmfah_hf.retrieval.preparation import ImagePreparation, PreparedBatch, Size, read_if_sound
from cmfah_hf.retrieval.storage.folder_records import FileRecord
from cmfah_hf.retrieval.torch_encoder import TorchPixels
from cmfah_hf.training.data.data_source import source_of
from cmfah_hf.training.dual_encoders import (
    TEXTS_AT_ONCE,
    as_array,
    fill_head,
    first_text,
    load_dual_encoder,
    text_vectors,
    vectors_of_pixels,
    width_of,
)
from cmfah_hf.training.encoder_sources import encoder_facts
from cmfah_hf.training.evaluate import split_figures
from cmfah_hf.training.phrases import PHRASES

logger = logging.getLogger(__name__)

_Row = tuple[str, dict[str, Any]]

RESULT_NAME = "metrics.json"
# Files in the folder of a compressed model: its own, and those of its card, its ONNX export and its pushes.
_OF_A_MODEL = ("*.json", "*.safetensors", "*.py", "*.txt", "*.md", "*.index", "onnx", ".git*", ".cache", ".*.lock")
# Images whose codes are computed at once from their kept vectors.
_PORTION = 10_000
# Unreadable images that warnings name; the others are counted, and all of them are in the result.
_MOST_NAMED = 10
# Below it, the center of the texts of a file depends too much on which ones they are.
_FEW_TEXTS = 100


@dataclass
class Compression:
    """The result of a compression.

    Attributes:
        images: Images that were encoded.
        texts: Texts that came with them and were used.
        other_texts: Texts that do not belong to the images.
        left_out: For each image that could not be read, the reason.
        skipped: Numbers of files that are no images, by ending or reason.
        choice: The chosen code, and the comparison of all candidates.
        index: The index of the images, next to the model.
    """

    images: int = 0
    texts: int = 0
    other_texts: int = 0
    left_out: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    choice: Choice | None = None
    index: Path | None = None

    def figures(self) -> dict[str, Any]:
        """The figures as they are saved in `metrics.json`, without names of files."""
        choice = self.choice
        assert choice is not None
        return {
            "code": choice.projection.name,
            "bits": choice.projection.bits,
            "rank": choice.projection.rank,
            "images": self.images,
            "texts": self.texts,
            "other_texts": self.other_texts,
            "held_out": choice.held_out,
            "by_partner": choice.by_partner,
            "left_out": len(self.left_out),
            "candidates": [asdict(candidate) for candidate in choice.candidates],
            "centers": [asdict(center) for center in choice.centers],
        }


def compress(
    encoder: str,
    source: str | os.PathLike,
    output: str | os.PathLike,
    bits: int = 64,
    *,
    split: str | None = None,
    texts: str | os.PathLike | None = None,
    use_texts: bool = True,
    link: bool | None = None,
    trust_remote_code: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Compression:
    """Fits codes to a dual encoder on unlabeled images, and saves them as a model with an index of the images.

    With texts of at least 100 of the images, a fifth of these pairs is held out and calibrates the model: the
    probability that an image is that of a text.

    Images are read once, in batches; their vectors wait in a temporary file, so memory does not depend on their number.

    Args:
        encoder: A folder or Hub id of a dual encoder, such as a CLIP. An id may have a revision, `NAME@REVISION`.
        source: A folder of images, a file, or whatever `load_image_text` takes.
        output: The folder of the new model, which replaces an earlier compressed one.
        bits: `K`.
        split: One split of a data set. None: all.
        texts: A file of texts like those that will be searched for, which need not belong to the images: `.txt`, a line
            each, or `.jsonl` or `.parquet` with a column `text`.
        use_texts: Whether to fit with the texts of a data set too, if it has any.
        link: Whether the model names the encoder by its commit on the Hub instead of holding its weights. None: if it
            is from the Hub.
        trust_remote_code: Whether code of the encoder's own on the Hub may run.
        batch_size: Images encoded at once.
        seed: Seed of samples and rotations.
        progress: Show a progress bar.

    Raises:
        CheckpointError: If the encoder is no dual encoder, or cannot be loaded, or the output holds anything else.
        DataError: If there are fewer than two readable images, or all are equal, or a file of texts has none.
    """
    if bits < 8 or bits % 8:
        raise CheckpointError(f"bits is {bits}; a code is stored in whole bytes, so give a multiple of 8.")
    _check_output(output)
    model, processor = load_dual_encoder(encoder, bits, link, trust_remote_code)
    # Before the images, whose vectors a failure of the Hub would lose.
    facts = encoder_facts(encoder, "images and texts", dual=True)
    fitter, done = CodeFitter(width_of(model), seed=seed), Compression()
    if texts is not None:
        done.other_texts = _add_texts(fitter, model, processor, resolve_data_path(texts), progress)
    with tempfile.TemporaryFile() as vectors:
        reading = _Reading(model, processor, fitter, vectors, done, use_texts)
        reading.read(os.fspath(source), split, batch_size, progress)
        if not reading.ids:
            raise DataError(f"{source}: none of its {len(done.left_out)} images can be read; see the warnings above.")
        phrases = None if done.texts or done.other_texts else text_vectors(model, processor, list(PHRASES))
        choice = done.choice = fitter.fit(bits, phrases=phrases)
        if choice.projection.rank < bits:
            logger.warning(
                "The images span %d dimensions, so the %d bits repeat themselves; give more images, or fewer bits.",
                choice.projection.rank,
                bits,
            )
        fill_head(model, choice.projection)
        with atomic_folder(output, CheckpointError, _OF_A_MODEL) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            content = json.dumps({"encoders": [facts], "compression": done.figures()}, indent=2)
            (folder / RESULT_NAME).write_text(content + "\n", encoding="utf-8")
            index = reading.index()
            index.save(folder / IMAGES_INDEX)
            if choice.held_out_codes is not None:
                calibration = fit_calibration(str(index.model), bits, CodedPairs(*choice.held_out_codes))
                if calibration is not None:
                    calibration.save(folder / CALIBRATION_NAME)
    if reading.records:  # `cmfah search --images` finds the folder already indexed
        index.folders = records_of_folder(os.fspath(source), reading.records)
        index.save(folder_index_path(str(index.model), resolve_data_path(source)), overwrite=True)
    done.index = Path(output) / IMAGES_INDEX
    return done


def _check_output(output: str | os.PathLike) -> None:
    """Refuses a folder that holds anything but an earlier compressed model, before any image is encoded."""
    check_replaceable(output, _OF_A_MODEL, CheckpointError)
    folder = Path(output)
    if folder.is_dir() and any(folder.iterdir()) and _figures_in(folder) is None:
        raise CheckpointError(f"{output} holds something other than a compressed model; name another folder.")


def _figures_in(folder: Path) -> dict[str, Any] | None:
    """The figures of the compressed model in a folder; None if there is no such model."""
    path = folder / RESULT_NAME
    content = read_json(path, CheckpointError) if path.exists() else None
    return content if isinstance(content, dict) and "compression" in content else None


@dataclass
class _Reading:
    """One pass over the images: their vectors go to the fitter, and wait in a file for the index.

    Attributes:
        ids: The ids of the readable images.
        records: The states of all files of a folder without metadata, by which its index is kept in step; empty for
            data sets and single files.
    """

    model: CMFAHModel
    processor: CMFAHProcessor
    fitter: CodeFitter
    vectors: IO[bytes]
    done: Compression
    use_texts: bool
    ids: list[str] = field(default_factory=list)
    records: dict[str, FileRecord] = field(default_factory=dict)

    def read(self, source: str, split: str | None, batch_size: int, progress: bool) -> None:
        """Reads a source; the arguments are those of `compress`."""
        is_folder_of_images = resolve_data_path(source).is_dir()
        for values, ids in values_of_source(source, split, "images", (), "", False, self.done.skipped):
            is_data_set = hasattr(values, "column_names")
            rows = decoding_off(values) if is_data_set else [{"image": path} for path in values]
            read = self._read_file if is_folder_of_images and not is_data_set else _read_row
            places = batches_of(range(len(ids)), batch_size, "Images", False)
            batches = ([(ids[place], rows[place]) for place in own] for own in places)
            preparation = ImagePreparation(TorchPixels(self.processor, self.model.device), ImageOptions())
            bar = progress_bar(len(ids), "Images", progress)
            with preparation.prepared(batches, read) as prepared, bar as shown:
                for batch in prepared:
                    self._add(batch)
                    shown.update(len(batch.items))
            self.records = {item_id: self.records[item_id] for item_id in ids if item_id in self.records}  # in order
        if unreadable := len(self.done.left_out):
            named = f"; the first {_MOST_NAMED} are named above" if unreadable > _MOST_NAMED else ""
            whole = unreadable + self.done.images
            logger.warning("Left out %d of %d images, because they cannot be read%s.", unreadable, whole, named)

    def _add(self, batch: PreparedBatch[list[_Row], ImageError | None]) -> None:
        for error in filter(None, batch.notes):
            self.done.left_out.append(str(error))
            if len(self.done.left_out) <= _MOST_NAMED:
                logger.warning("Left out: %s", error)
        if batch.pixel_values is None:
            return
        sound = [row for row, error in zip(batch.items, batch.notes, strict=True) if error is None]
        vectors_NE = vectors_of_pixels(self.model, batch.pixel_values)
        self.vectors.write(vectors_NE.tobytes())
        self.ids += [item_id for item_id, _ in sound]
        self._fit(vectors_NE, [first_text(row, "text") if self.use_texts else "" for _, row in sound])
        self.done.images += len(sound)

    def _read_file(self, named: _Row, least: Size | None) -> tuple[ImageError | None, Image.Image | None]:
        """The image of a file, whose state is recorded."""
        item_id, row = named
        reading = read_path(row["image"], least)
        if reading.sha256 is not None:
            self.records[item_id] = reading.file.record(reading.sha256, reading.problem)
        if reading.image is None:
            return ImageError(f"{row['image']}: {reading.problem}"), None
        return None, reading.image

    def _fit(self, vectors_NE: np.ndarray, texts: list[str]) -> None:
        """Gives images to the fitter, with their texts if they have any."""
        told = np.array([bool(text.strip()) for text in texts])
        if told.any():
            text_NE = text_vectors(self.model, self.processor, [text for text in texts if text.strip()])
            self.fitter.add_pairs(vectors_NE[told], text_NE)
            self.done.texts += int(told.sum())
        if not told.all():
            self.fitter.add_images(vectors_NE[~told])

    def index(self) -> HashIndex:
        """The index of all images, by the fitted head, in portions."""
        index = HashIndex(self.model.config.hash_bits)
        index.model = CrossMediaRetriever(self.model, self.processor).fingerprint
        head, width = self.model.image_model.hash_head.vectors, width_of(self.model)
        self.vectors.seek(0)
        for start in range(0, len(self.ids), _PORTION):
            part = slice(start, start + _PORTION)
            content = self.vectors.read(len(self.ids[part]) * width * np.dtype(np.float32).itemsize)
            vectors_NE = torch.from_numpy(np.frombuffer(content, np.float32).reshape(-1, width).copy())
            with torch.inference_mode():
                values_NK = head(vectors_NE.to(self.model.device)).tanh()
            index.add(as_array(values_NK), self.ids[part])
        return index


def _read_row(named: _Row, least: Size | None) -> tuple[ImageError | None, Image.Image | None]:
    """The image of a row of a data set, or of a single file."""
    item_id, row = named
    return read_if_sound((row["image"], None if isinstance(row["image"], Path) else item_id), least)


def save_figures(model: str, dataset: str, figures: Mapping[str, float]) -> Path:
    """Adds figures of `evaluate_folder` to the `metrics.json` of a compressed model, for its card and search page.

    Raises:
        CheckpointError: If the folder has no compressed model; one that was trained holds the figures of its run.
    """
    path = Path(model, RESULT_NAME)
    content = _figures_in(path.parent)
    if content is None:
        raise CheckpointError(
            f"{path} is not that of a compressed model, and a trained one has the figures of its run; leave out --save."
        )
    by_labels, of_pairs = split_figures(figures)
    measured = {"pairs": of_pairs} | ({"query": by_labels} if "queries" in by_labels else {})
    content |= {"source": source_of(dataset, {}), **measured}
    write_text(path, json.dumps(content, indent=2) + "\n", CheckpointError)
    return path


def _add_texts(fitter: CodeFitter, model: CMFAHModel, processor: CMFAHProcessor, path: Path, progress: bool) -> int:
    """Gives the texts of a file to the fitter, and returns their number."""
    texts = (without_surrogates(text_of(value, where)).strip() for where, value, _ in iterate_file(path))
    count = 0
    for batch in batches_of(filter(None, texts), TEXTS_AT_ONCE, "Texts", progress):
        fitter.add_texts(text_vectors(model, processor, batch))
        count += len(batch)
    if not count:
        raise DataError(f"{path} has no text; write one on each line.")
    if count < _FEW_TEXTS:
        message = "%s has only %d texts, too few for a good estimate of their center; give %d or more."
        logger.warning(message, path, count, _FEW_TEXTS)
    return count
