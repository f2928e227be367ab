"""Cross-modal retrieval as a task of `transformers.pipeline`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Pipeline

from .codes import AQD_STEP, sign
from .image_inputs import open_image
from .modeling_cmfah import CMFAHModel
from .processing_cmfah import CMFAHProcessor

TASK = "cross-modal-retrieval"
METRICS = ("aqd", "hamming")


class CrossModalRetrievalPipeline(Pipeline):
    r"""
    Computes codes of images and texts, and ranks candidates by their distance to a query.

    An item is a text, a Pillow image, `{"text": ...}` or `{"image": ...}` with an image or its path. A query is an
    item; if its mapping has `candidates`, items of either kind, these are ranked. A list holds several queries. Every
    item is encoded alone, and texts are not expanded as in training: `CrossMediaRetriever` expands them, and searches
    many items.

    Args:
        metric (`str`, defaults to `"aqd"`):
            `"aqd"`: ranks candidates by `<z_q, B_x>`, largest first, `[aqd]`. `"hamming"`: by the number of different
            bits, smallest first.
        top_k (`int`, *optional*):
            The number of candidates to return. None: all.
        batch_size (`int`, defaults to 32):
            Items encoded at once.

    Returns:
        For each query `hash_values`, `(K,)` in (-1, 1), and `code`, their signs as -1 and +1, int8. With candidates
        also `ranking`, a list of `{"index": ..., "score": ...}`, nearest first, ties in the given order.

    Raises:
        ValueError: If a query is not an item, an image cannot be read, a text has no known word, or the metric is
            unknown.

    Example:

    ```python
    >>> from transformers import pipeline

    >>> pipe = pipeline("cross-modal-retrieval", model="owner/name", trust_remote_code=True)
    >>> pipe("a dog on the beach")["code"]
    >>> pipe({"image": "beach.jpg", "candidates": ["a dog on the beach", "a street at night"]})["ranking"]
    ```"""

    model: CMFAHModel
    processor: CMFAHProcessor
    # transformers declares them as None.
    _load_processor = True  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]

    def __call__(self, inputs: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        if batch_size is not None:  # the parent would batch queries, whose candidates differ
            kwargs["items_at_once"] = batch_size
        return super().__call__(inputs, *args, **kwargs)

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

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """The query and its candidates, if any, each as `("text", str)` or `("image", image)`."""
        candidates = None
        if isinstance(input_, Mapping) and "candidates" in input_:
            candidates = input_["candidates"]
            input_ = {name: value for name, value in input_.items() if name != "candidates"}
            if isinstance(candidates, (str, Mapping)) or not hasattr(candidates, "__iter__"):
                raise ValueError(f"candidates is a {type(candidates).__name__}; give a list of texts and images.")
            candidates = [_item(candidate) for candidate in candidates]
        kind, value = _item(input_)
        if kind == "text" and not self.processor.has_known_tokens(value):
            raise ValueError(
                f"No word of {value!r} is among the {len(self.processor.tokenizer):,} that this model knows; use other "
                "words."
            )
        return {"query": (kind, value), "candidates": candidates}

    def _forward(  # type: ignore[override]  # the parent accepts any dictionary
        self, input_tensors: dict[str, Any], items_at_once: int = 32
    ) -> dict[str, Any]:
        candidates = input_tensors["candidates"]
        encoded = None
        if candidates is not None:
            encoded = torch.empty(len(candidates), self.model.config.hash_bits)
            for kind in ("text", "image"):
                places = [place for place, (its_kind, _) in enumerate(candidates) if its_kind == kind]
                for start in range(0, len(places), items_at_once):
                    part = places[start : start + items_at_once]
                    encoded[part] = self._encode(kind, [candidates[place][1] for place in part])
        kind, value = input_tensors["query"]
        return {"query": self._encode(kind, [value])[0], "candidates": encoded}

    def _encode(self, kind: str, values: list[Any]) -> torch.Tensor:
        """Continuous codes `(N, K)`, float32."""
        if kind == "text":
            inputs = self.processor(text=values, return_tensors="pt").to(self.device)
            return self.model.get_text_hash(**inputs).float().cpu()
        inputs = self.processor(images=values, return_tensors="pt").to(self.device, self.model.dtype)
        return self.model.get_image_hash(**inputs).float().cpu()

    def postprocess(  # type: ignore[override]  # the outputs are those of `_forward`
        self, model_outputs: dict[str, Any], metric: str = "aqd", top_k: int | None = None
    ) -> dict[str, Any]:
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
        return "image", open_image(value)
    if isinstance(value, Mapping) and len(value) == 1:
        (kind, inner), *_ = value.items()
        if kind == "text" and isinstance(inner, str):
            return kind, inner
        if kind == "image" and isinstance(inner, Image.Image):
            return _item(inner)
        if kind == "image" and isinstance(inner, (str, Path)):
            return kind, open_image(Path(inner))
    what = f"a mapping of {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
    raise ValueError(
        f"An item is a text, a Pillow image, {{'text': ...}} or {{'image': ...}} with an image or its path, "
        f"and not {what}."
    )


__all__ = ["CrossModalRetrievalPipeline"]
