"""`MTEBEncoder`: a model as MTEB runs it, on tasks of texts and images.

Shape suffixes: N items, Q queries, D documents, K hash bits.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cmfah_hf.errors import QueryError
from cmfah_hf.evaluation.mteb.library import import_mteb
from cmfah_hf.models.model_files import is_folder
from cmfah_hf.retrieval.base import METRICS
from cmfah_hf.retrieval.codes import round_for_aqd, sign
from cmfah_hf.retrieval.loading import load_torch_encoder

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_meta import ModelMeta
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader

# Name of the owner of models in folders, since MTEB names a model owner/name.
LOCAL = "local"


class MTEBEncoder:
    """Codes of texts and images for `mteb.evaluate`, of which a dot product ranks as a search does.

    Texts are expanded by the word graph of the model, as in a search. An item with a text and an image has the mean of
    the codes that each side has with the other.

    By AQD, queries are continuous codes and documents are signs; the items of tasks without queries and documents are
    continuous codes. By Hamming distance, all are signs; MTEB ranks the many equal scores by the ids of the documents.

    Args:
        model_name: A folder or a Hub id.
        revision: The commit, branch or tag on the Hub.
        device: The device to encode on. None: an accelerator if there is one.
        metric: `"aqd"` or `"hamming"`.
        source: The folder or Hub id, if `model_name` is another name for it.
        trust_remote_code: Whether the code of an encoder that the model names may run.

    Attributes:
        mteb_model_meta: What MTEB records of the model. Its revision is the commit of a model on the Hub, else the
            fingerprint of the model.

    Raises:
        CheckpointError: If the model cannot be loaded.
        CMFAHError: If mteb is not installed.
    """

    mteb_model_meta: "ModelMeta"

    def __init__(
        self,
        model_name: str | os.PathLike,
        revision: str | None = None,
        *,
        device: str | torch.device | None = None,
        metric: str = "aqd",
        source: str | os.PathLike | None = None,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ):
        if metric not in METRICS:
            raise QueryError(f"There is no ranking {metric!r}; choose {' or '.join(METRICS)}.")
        import_mteb()
        place = os.fspath(source or model_name)
        options = {"trust_remote_code": trust_remote_code, "revision": None if is_folder(place) else revision}
        given = {name: value for name, value in options.items() if value is not None}
        self.encoder, found = load_torch_encoder(place, given, device=device)
        self.metric = metric
        self.mteb_model_meta = self._meta(place, found.get("revision"))

    def encode(
        self,
        inputs: "DataLoader[BatchedInput]",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: "PromptType | None" = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """The codes `(N, K)`, float32, of the items of a task.

        Args:
            inputs: Batches with `text`, `image`, or both.
            task_metadata: The task.
            hf_split: The split of its data.
            hf_subset: The subset of its data.
            prompt_type: `"query"`, `"document"` or None.
            kwargs: `batch_size`; others are ignored.
        """
        role = None if prompt_type is None else str(getattr(prompt_type, "value", prompt_type))
        batch_size = int(kwargs.get("batch_size") or 32)
        parts = [np.empty((0, self.encoder.hash_bits), np.float32)]
        parts += [self._values(batch, batch_size) for batch in inputs]
        values_NK = np.concatenate(parts)
        if self.metric == "hamming" or role == "document":
            return sign(values_NK).astype(np.float32)
        return round_for_aqd(values_NK)

    def _values(self, batch: Any, batch_size: int) -> np.ndarray:
        """The continuous codes of a batch."""
        texts, images = batch.get("text"), batch.get("image")
        if texts is not None and images is not None:
            sides = self.encoder.encode_pairs(images, texts, batch_size)
            return (sides[0] + sides[1]) / 2
        if images is not None:
            return self.encoder.encode_images(images, batch_size)
        if texts is not None:
            return self.encoder.encode_texts(texts, batch_size)
        raise QueryError(f"A batch has {', '.join(map(str, batch))}, and neither texts nor images; take another task.")

    def similarity(self, embeddings1: "Array", embeddings2: "Array") -> torch.Tensor:
        """The scores `(Q, D)`, larger for nearer ones: by Hamming distance, `K` less twice the distance."""
        return torch.atleast_2d(torch.as_tensor(embeddings1)) @ torch.atleast_2d(torch.as_tensor(embeddings2)).mT

    def similarity_pairwise(self, embeddings1: "Array", embeddings2: "Array") -> torch.Tensor:
        """The scores `(N,)` of the items of two lists at the same places."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)

    def _meta(self, place: str, commit: str | None) -> "ModelMeta":
        from mteb.models.model_meta import ModelMeta

        model, processor = self.encoder.model, self.encoder.processor
        is_local = is_folder(place)
        # A name by which the cache of results can hold it, and which does not tell where it is.
        name = f"{LOCAL}/{Path(place).resolve().name}" if is_local else place
        tensors: Iterable[torch.Tensor] = list(model.parameters())
        embeddings = getattr(model.get_input_embeddings(), "weight", None)
        length = processor.tokenizer.model_max_length
        return ModelMeta(
            loader=_FolderLoader(place) if is_local else type(self),
            name=name,
            revision=commit or self.encoder.fingerprint,
            release_date=None,
            languages=None,
            n_parameters=sum(tensor.numel() for tensor in tensors),
            n_embedding_parameters=0 if embeddings is None else embeddings.numel(),
            memory_usage_mb=sum(tensor.nbytes for tensor in tensors) / 2**20,
            max_tokens=math.inf if processor.word_level else length,
            embed_dim=model.config.hash_bits,
            license=None,
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch", "Transformers", "Sentence Transformers", "safetensors"],
            reference=None if is_local else f"https://huggingface.co/{name}",
            similarity_fn_name="dot",  # type: ignore[arg-type]  # mteb makes a ScoringFunction of it
            use_instructions=False,
            training_datasets=None,
            adapted_from=model.config.encoder_source,
            modalities=["image", "text"],
            experiment_kwargs=None if self.metric == "aqd" else {"metric": self.metric},
        )


class _FolderLoader:
    """Loads a model from its folder, of which MTEB only knows the name. Equal folders are equal loaders."""

    __name__ = "MTEBEncoder"  # by which MTEB records it

    def __init__(self, source: str):
        self.source = source

    def __call__(self, model_name: str, revision: str | None = None, **kwargs: Any) -> MTEBEncoder:
        return MTEBEncoder(model_name, revision, source=self.source, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _FolderLoader) and other.source == self.source

    def __hash__(self) -> int:
        return hash(self.source)
