"""Retrieval as a task of `transformers.pipeline`, for wherever the model has travelled to."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import Pipeline

from .codes import AQD_STEP, sign

TASK = "cross-modal-retrieval"
METRICS = ("aqd", "hamming")


class CrossModalRetrievalPipeline(Pipeline):
    r"""
    The hash values of a picture or of a text, and the order of candidates by how near they are to it.

    An item is a string, which is a text, a Pillow picture, `{"text": ...}` or `{"image": ...}` with a picture or its
    path. A query is an item; with `candidates` in its mapping, items of either kind, these are ranked. A list is of
    queries. Every item is encoded alone, and a text as it stands: the words that an expander adds in training are added
    by `CrossMediaRetriever`, which is also what searches many items.

    Args:
        metric (`str`, defaults to `"aqd"`):
            `"aqd"`: candidates by `<z_q, B_x>`, most first, `[aqd]`. `"hamming"`: by how many bits differ, fewest
            first.
        top_k (`int`, *optional*):
            How many candidates to give. None: all.
        batch_size (`int`, defaults to 32):
            Items encoded at once.

    Returns:
        For each query `hash_values`, `(K,)` in (-1, 1), and `code`, their signs as -1 and +1, int8. With candidates
        also `ranking`, the nearest first, equal ones in the order given: a list of `{"index": ..., "score": ...}`.

    Raises:
        ValueError: If a query is none of these, a picture cannot be read, no word of a text is known, or there is no
            such metric.

    Example:

    ```python
    >>> from transformers import pipeline

    >>> pipe = pipeline("cross-modal-retrieval", model="owner/name", trust_remote_code=True)
    >>> pipe("a dog on the beach")["code"]
    >>> pipe({"image": "beach.jpg", "candidates": ["a dog on the beach", "a street at night"]})["ranking"]
    ```"""

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __call__(self, inputs: Any, batch_size: int | None = None, **kwargs: Any):
        if batch_size is not None:  # the parent's would put queries with different candidates into one batch
            kwargs["items_at_once"] = batch_size
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, metric=None, top_k=None, items_at_once=None, **unknown):
        if unknown:
            raise ValueError(f"This pipeline has no setting {sorted(unknown)[0]!r}; it has metric, top_k, batch_size.")
        if metric is not None and metric not in METRICS:
            raise ValueError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}.")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}; give 1 or more, or None for all candidates.")
        forward = {"items_at_once": items_at_once} if items_at_once is not None else {}
        post = {name: value for name, value in (("metric", metric), ("top_k", top_k)) if value is not None}
        return {}, forward, post

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        """The query, and the candidates where there are any, each as `("text", str)` or `("image", picture)`."""
        candidates = None
        if isinstance(inputs, Mapping) and "candidates" in inputs:
            candidates = inputs["candidates"]
            inputs = {name: value for name, value in inputs.items() if name != "candidates"}
            if isinstance(candidates, (str, Mapping)) or not hasattr(candidates, "__iter__"):
                raise ValueError(f"candidates is a {type(candidates).__name__}; give a list of texts and pictures.")
            candidates = [_item(candidate) for candidate in candidates]
        kind, value = _item(inputs)
        if kind == "text" and not self.processor.has_known_tokens(value):
            raise ValueError(
                f"No word of {value!r} is among the {len(self.processor.tokenizer):,} that this model knows; use other "
                "words."
            )
        return {"query": (kind, value), "candidates": candidates}

    def _forward(self, model_inputs: dict[str, Any], items_at_once: int = 32) -> dict[str, Any]:
        candidates = model_inputs["candidates"]
        encoded = None
        if candidates is not None:
            encoded = torch.empty(len(candidates), self.model.config.hash_bits)
            for kind in ("text", "image"):
                places = [place for place, (its_kind, _) in enumerate(candidates) if its_kind == kind]
                for part in _parts(places, items_at_once):
                    encoded[part] = self._encode(kind, [candidates[place][1] for place in part])
        kind, value = model_inputs["query"]
        return {"query": self._encode(kind, [value])[0], "candidates": encoded}

    def _encode(self, kind: str, values: list[Any]) -> torch.Tensor:
        """Hash values `(N, K)`, float32."""
        if kind == "text":
            inputs = self.processor(text=values, return_tensors="pt").to(self.device)
            return self.model.get_text_hash(inputs["input_ids"], inputs["attention_mask"]).float().cpu()
        pixel_values = self.processor(images=values, return_tensors="pt")["pixel_values"]
        return self.model.get_image_hash(pixel_values.to(self.device, self.model.dtype)).float().cpu()

    def postprocess(self, model_outputs: dict[str, Any], metric: str = "aqd", top_k: int | None = None):
        query_K, candidates_NK = model_outputs["query"], model_outputs["candidates"]
        code_K = sign(query_K)
        found = {"hash_values": query_K.numpy(), "code": code_K.to(torch.int8).numpy()}
        if candidates_NK is None:
            return found
        signs_NK = sign(candidates_NK)
        if metric == "aqd":
            scores_N = signs_NK @ (torch.round(query_K / AQD_STEP) * AQD_STEP)
            order_N = torch.argsort(scores_N, descending=True, stable=True)
        else:
            scores_N = (signs_NK != code_K).sum(dim=1)
            order_N = torch.argsort(scores_N, stable=True)
        ranking = [{"index": place, "score": scores_N[place].item()} for place in order_N.tolist()[:top_k]]
        return {**found, "ranking": ranking}


def _item(value: Any) -> tuple[str, Any]:
    if isinstance(value, str):
        return "text", value
    if isinstance(value, Image.Image):
        return "image", ImageOps.exif_transpose(value)
    if isinstance(value, Mapping) and len(value) == 1:
        (kind, inner), *_ = value.items()
        if kind == "text" and isinstance(inner, str):
            return kind, inner
        if kind == "image" and isinstance(inner, Image.Image):
            return _item(inner)
        if kind == "image" and isinstance(inner, (str, Path)):
            return _item(_open(inner))
    what = f"a mapping of {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
    raise ValueError(
        f"An item is a text, a Pillow picture, {{'text': ...}} or {{'image': ...}} with a picture or its path, "
        f"and not {what}."
    )


def _open(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a picture that can be read ({error}).") from error


def _parts(places: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


__all__ = ["CrossModalRetrievalPipeline"]
