"""`CrossMediaRetriever`: a model, its processor, its word graph and two indexes, for search in a few calls.

Shape suffixes: N items, Q queries, K hash bits.
"""

import logging
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cmfah_hf.errors import DataError, QueryError
from cmfah_hf.retrieval.base import BaseHashIndex, Metric
from cmfah_hf.retrieval.calibration import Calibration
from cmfah_hf.retrieval.delegation import DelegatingEncoder
from cmfah_hf.retrieval.encoder import BACKENDS, Backend, ImageTextEncoder
from cmfah_hf.retrieval.image_options import ImageOptions
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.items import Items, values_of_source
from cmfah_hf.retrieval.model_source import find_indexes, load_calibration
from cmfah_hf.retrieval.preparation import read_if_sound
from cmfah_hf.retrieval.probabilities import check_min_score, with_probabilities
from cmfah_hf.retrieval.queries import have_text, query_values
from cmfah_hf.retrieval.results import SearchResults
from cmfah_hf.retrieval.same_model import check_same_model
from cmfah_hf.retrieval.terms import Term

if TYPE_CHECKING:
    import torch

    from cmfah_hf.expansion import GraphExpander
    from cmfah_hf.models import CMFAHModel, CMFAHProcessor

logger = logging.getLogger(__name__)

Modality = Literal["images", "texts"]


class CrossMediaRetriever(DelegatingEncoder):
    """Encodes images and texts separately, and finds the nearest of those that were added.

    Args:
        model: The towers.
        processor: Their processor.
        expander: The graph that expanded the model's training texts; it expands queries too.
        device: The device to encode on. None: an accelerator if there is one.
        any_model: Accept indexes whose codes another model made, by their fingerprint. Only for codes that are known
            to fit, such as those of the same weights in another precision. Likewise for a calibration.
        image_options: Options of reading and encoding images.

    Attributes:
        calibration: The maps from scores to probabilities; None without one. That of another model is not used.

    Example:

    ```python
    >>> retriever = CrossMediaRetriever.from_pretrained("path/to/checkpoint")
    >>> retriever.add_images(["beach.jpg", "street.jpg"])  # returns those that could not be read
    []
    >>> results = retriever.search(text="a dog on the beach", k=1)
    >>> results.ids.tolist(), results.scores.tolist()
    ([['beach.jpg']], [[31.5]])
    ```"""

    def __init__(
        self,
        model: "CMFAHModel",
        processor: "CMFAHProcessor",
        expander: "GraphExpander | None" = None,
        device: "str | torch.device | None" = None,
        any_model: bool = False,
        image_options: ImageOptions | None = None,
    ):
        from cmfah_hf.retrieval.torch_encoder import TorchEncoder  # torch takes seconds to import

        self._begin(TorchEncoder(model, processor, expander, device, image_options), any_model)

    def _begin(self, encoder: ImageTextEncoder, any_model: bool) -> None:
        super().__init__(encoder)
        self.any_model = any_model
        self.calibration: Calibration | None = None
        self._indexes: dict[Modality, BaseHashIndex] = {}

    @classmethod
    def of_encoder(cls, encoder: ImageTextEncoder, any_model: bool = False) -> "CrossMediaRetriever":
        """A retriever that encodes by any `ImageTextEncoder`, with empty indexes."""
        retriever = cls.__new__(cls)
        retriever._begin(encoder, any_model)
        return retriever

    @classmethod
    def from_pretrained(
        cls,
        repo_or_folder: str | Path,
        device: "str | torch.device | None" = None,
        index: bool = False,
        any_model: bool = False,
        calibration: bool = True,
        image_options: ImageOptions | None = None,
        texts_only: bool = False,
        backend: Backend = "torch",
        precision: str = "fp32",
        **kwargs: Any,
    ) -> "CrossMediaRetriever":
        """Loads the output folder of a training run, or what was pushed to the Hub from there.

        Args:
            repo_or_folder: A folder or a Hub id.
            device: As for the class.
            index: Also load the indexes that were pushed with the model (`images.index`, `texts.index`).
            any_model, image_options: As for the class.
            calibration: Also load the calibration, if the model has one (`calibration.json`).
            texts_only: Only texts will be encoded. Once the fingerprint of the files is known from an earlier
                loading, the tower of images is left out, which takes less time and memory.
            backend: `"torch"`, or `"onnx"`: ONNX Runtime encodes by the files in `onnx/` of the model, on the CPU,
                without torch and transformers. `cmfah export onnx` makes these files.
            precision: With `backend="onnx"`, which of the files: `"fp32"`, `"fp16"` or `"int8"`. The codes of the
                latter two differ in some bits from those of the model in PyTorch (docs/search.md, Backends).
            **kwargs: For `from_pretrained`, such as `revision`, `token` or `dtype`; with ONNX, only where on the Hub.

        Raises:
            CheckpointError: If the folder holds no model of this package, a part is missing or damaged, or the Hub has
                no such model or cannot be reached; with ONNX, also if ONNX Runtime is not installed.
            HashIndexError: If `index` is set and there is no index, or it is damaged, of another width, or of another
                model.
            QueryError: If the backend is unknown, or does not take an option.
        """
        source = str(repo_or_folder)
        if backend not in BACKENDS:
            raise QueryError(f"backend is {backend!r:.40}; choose {' or '.join(BACKENDS)}.")
        encoder: ImageTextEncoder
        if backend == "onnx":
            from cmfah_hf.retrieval.onnx.loading import load_onnx_encoder

            encoder, kwargs = load_onnx_encoder(source, kwargs, precision, device, image_options)
        else:
            from cmfah_hf.retrieval.loading import load_torch_encoder  # torch takes seconds to import

            if precision != "fp32":
                raise QueryError(f"precision={precision!r:.40} is for backend='onnx'; with torch, give a dtype.")
            encoder, kwargs = load_torch_encoder(source, kwargs, texts_only, device, image_options)
        retriever = cls.of_encoder(encoder, any_model)
        retriever.calibration = load_calibration(source, kwargs) if calibration else None
        for name, path in find_indexes(source, kwargs).items() if index else ():
            setattr(retriever, name, retriever.load_index(path, mmap=True))
        return retriever

    @property
    def images(self) -> HashIndex:
        """The index of images. Any `BaseHashIndex` of this model can be set; with `any_model`, of another one too."""
        return self._index("images")

    @images.setter
    def images(self, index: BaseHashIndex) -> None:
        self._indexes["images"] = self._checked(index, "The index of images")

    @property
    def texts(self) -> HashIndex:
        """The index of texts, likewise."""
        return self._index("texts")

    @texts.setter
    def texts(self, index: BaseHashIndex) -> None:
        self._indexes["texts"] = self._checked(index, "The index of texts")

    def load_index(self, path: str | Path, mmap: bool = False) -> HashIndex:
        """Loads an index file for this model.

        Args:
            path: The file.
            mmap: As for `HashIndex.load`.

        Raises:
            HashIndexError: If the file is missing or damaged, or holds codes of another width or of another model.
        """
        index = HashIndex.load(path, mmap=mmap, bits=self.hash_bits)
        self._checked(index, str(path))
        return index

    def _index(self, modality: Modality) -> HashIndex:
        if modality not in self._indexes:
            self._indexes[modality] = HashIndex(self.hash_bits)
        index = self._checked(self._indexes[modality], f"The index of {modality}")  # the weights may have changed
        return cast(HashIndex, index)  # a caller that sets another class saves it by its own methods

    def _checked(self, index: BaseHashIndex, name: str) -> BaseHashIndex:
        if not len(index):
            index.model = self.fingerprint
        if not self.any_model:
            check_same_model(index.model, self.fingerprint, name)
        return index

    def add_images(
        self,
        images: Any,
        ids: Sequence[int] | Sequence[str] | None = None,
        batch_size: int = 32,
        progress: bool = False,
        column: str = "image",
        metadata: Any = None,
    ) -> list[str]:
        """Encodes images and adds them to the index `images`. Images that cannot be read are left out and reported.

        Args:
            images: A data set or a stream, or an iterable of paths, bytes or Pillow images.
            ids: One id for each image. None: the data set's column `id`, the paths as given, or consecutive numbers,
                which count unreadable images too.
            batch_size: Images encoded at once.
            progress: Show a progress bar.
            column: The data set's column of images.
            metadata: For a data set, the names of the columns to keep; otherwise columns as `HashIndex.add` takes them.

        Returns:
            For each image that was left out, the reason.

        Raises:
            DataError: If the data set lacks a column.
            HashIndexError: If the numbers of ids and images differ, or an id exists already.
        """
        if not hasattr(images, "column_names"):
            images = list(images)
            if ids is None and all(isinstance(image, (str, Path)) for image in images):
                ids = [str(image) for image in images]
        left_out: list[str] = []
        items = Items(images, column, ids, metadata, "images")
        batches = items.batches(batch_size, False, self.images.next_id)
        with self.encoding(batches, read_if_sound, items.total, progress) as encoded:
            for batch, codes_NK in encoded:
                readable = [position for position, error in enumerate(batch.notes) if error is None]
                for error in filter(None, batch.notes):
                    logger.warning("Left out: %s", error)
                    left_out.append(str(error))
                if codes_NK is not None:
                    self.images.add(codes_NK, *batch.items.at(readable))
        return left_out

    def add_texts(
        self,
        texts: Any,
        ids: Sequence[int] | Sequence[str] | None = None,
        batch_size: int = 256,
        progress: bool = False,
        column: str = "text",
        metadata: Any = None,
    ) -> None:
        """Encodes texts and adds them to the index `texts`.

        Args:
            texts: A data set or a stream, or an iterable of texts.
            ids: One id for each text. None: the data set's column `id`, or consecutive numbers.
            batch_size: Texts encoded at once.
            progress: Show a progress bar.
            column: The data set's column of texts, or of lists of words.
            metadata: For a data set, the names of the columns to keep; otherwise columns as `HashIndex.add` takes them.

        Raises:
            DataError: If the data set lacks a column.
            HashIndexError: If the numbers of ids and texts differ, or an id exists already.
        """
        items = Items(texts, column, ids, metadata, "texts")
        for batch in items.batches(batch_size, progress, self.texts.next_id):
            joined = [value if isinstance(value, str) else " ".join(value or ()) for value in batch.values]
            self.texts.add(self.encode_texts(joined, batch_size), batch.ids, batch.metadata)

    def add_source(
        self,
        source: str | Path,
        split: str | None = None,
        what: str = "images",
        batch_size: int = 32,
        progress: bool = False,
        metadata: Sequence[str] = (),
        prefix: str = "",
        hidden: bool = False,
        skipped: MutableMapping[str, int] | None = None,
    ) -> list[str]:
        """Adds all images, or all texts, of a data set, of a folder of images without metadata, or of one file.

        Args:
            source: An image, a folder of images, or whatever `load_image_text` takes.
            split: One split. None: all; if there are several, the ids are such as `train/cat.jpg`.
            what: `"images"` or `"texts"`.
            batch_size: Items encoded at once.
            progress: Show a progress bar.
            metadata: The columns of the data set to keep as metadata, such as `text` or `labels`.
            prefix: A prefix of all ids.
            hidden: Also take hidden files and thumbnails below a folder of images.
            skipped: A mapping to which the numbers of skipped files of such a folder are added, by ending or reason.

        Returns:
            For each image that was left out, the reason.

        Raises:
            DataError: If the source cannot be used, or lacks a column.
        """
        total = 0
        left_out: list[str] = []
        for values, ids in values_of_source(source, split, what, metadata, prefix, hidden, skipped):
            total += len(ids)
            if what == "images":
                kept = metadata or None
                left_out += self.add_images(values, ids, batch_size, progress, metadata=kept)
            else:
                self.add_texts(values, ids, batch_size, progress, metadata=metadata)
        if len(left_out) == total:
            raise DataError(f"{source}: none of its {total} images can be read; see the warnings above.")
        return left_out

    def search(
        self,
        text: str | Sequence[str] | None = None,
        image: Any = None,
        k: int = 10,
        target: str | None = None,
        metric: Metric = "aqd",
        where: Any = None,
        exact: bool = True,
        image_weight: float = 0.5,
        terms: Sequence[Term] | Sequence[Sequence[Term]] | None = None,
        unique: int | None = None,
        min_score: float | None = None,
    ) -> SearchResults:
        """The nearest items of one or several queries: texts, images, or mixtures of both.

        Args:
            text: A text, or a list of texts.
            image: An image (a path, bytes, an open file, a Pillow image), or a list of images. With `text`, each image
                forms a mixed query with its text, or all with the only one.
            k: The number of answers.
            target: The index to search, `"images"` or `"texts"`. None: images if there are any, else texts.
            metric: `"aqd"`, by `<z_q, B_x>` of `[aqd]`, or `"hamming"`.
            where: A condition on the metadata, as for `HashIndex.search`.
            exact: False: search only the codes near the query, as `HashIndex.search` does.
            image_weight: `w` of a mixed query, whose continuous codes are `w z_image + (1 - w) z_text`.
            terms: In place of `text` and `image`, one query of several weighted terms, or a list of such (`[terms]`).
            unique: Fold near-duplicates, as `HashIndex.search` does.
            min_score: Keep only answers with a probability of at least this, 0 to 1, which may be none. It needs a
                calibration. The probabilities of a mixed query are those of a text with its direction.

        Raises:
            QueryError: If there is nothing to search with, the numbers of texts and images differ, the weight or
                `min_score` is not in 0..1, the model knows no word of a text (or of all texts of `terms`), terms cancel
                out, or the model has no calibration for `min_score`.
            ImageError: If an image cannot be read.
            HashIndexError: If the index is empty.
        """
        if target not in (None, "images", "texts"):
            raise QueryError(f"target is {target!r}; choose 'images' or 'texts'.")
        finds_texts = target == "texts" or (target is None and not len(self.images))
        way = f"{'t' if have_text(text, terms) else 'i'}2{'t' if finds_texts else 'i'}"
        check_min_score(self, min_score, metric, way)
        hash_values_QK = query_values(self, text, image, image_weight, terms)
        index = self.texts if finds_texts else self.images
        results = index.search(hash_values_QK, k=k, metric=metric, where=where, exact=exact, unique=unique)
        return with_probabilities(self, results, hash_values_QK, metric, way, len(index), min_score)
