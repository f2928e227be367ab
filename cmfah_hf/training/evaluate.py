"""A model's figures on a data set: encode queries and database, then measure."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from cmfah_hf.data.collator import PairCollator
from cmfah_hf.errors import QueryError
from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.models import CMFAHModel, CMFAHProcessor

PROTOCOLS = ("single", "paired")


@torch.inference_mode()
def encode_pairs(
    model: CMFAHModel, processor: CMFAHProcessor, pairs: Any, text_column: str, protocol: str = "single", batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The hash values `(N, K)` of all pictures and of all texts of a data set.

    Args:
        model: The towers.
        processor: Their processor.
        pairs: Rows as `PairCollator` reads them.
        text_column: The column that the texts are read from.
        protocol: `"single"`: each modality is encoded alone, as a query arrives. `"paired"`: with its partner, which
            tells each query its answer; only for comparing with publications that do so.
        batch_size: Pairs encoded at once.

    Raises:
        QueryError: If there is no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise QueryError(f"There is no protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}.")
    was_training = model.training
    model.eval()
    image_hashes, text_hashes = [], []
    for batch in DataLoader(pairs, batch_size=batch_size, collate_fn=PairCollator(processor, [], text_column)):
        batch = {name: values.to(model.device) for name, values in batch.items() if name not in ("labels", "row")}
        if protocol == "single":
            image_hash = model.get_image_hash(batch.get("pixel_values"), batch.get("region_features"))
            text_hash = model.get_text_hash(batch["input_ids"], batch["attention_mask"])
        else:
            outputs = model(**batch)
            image_hash, text_hash = outputs.image_hash, outputs.text_hash
        image_hashes.append(image_hash.float().cpu().numpy())
        text_hashes.append(text_hash.float().cpu().numpy())
    model.train(was_training)
    return np.concatenate(image_hashes), np.concatenate(text_hashes)


def evaluate_pairs(
    model: CMFAHModel,
    processor: CMFAHProcessor,
    queries: Any,
    database: Any,
    text_column: str = "text",
    protocol: str = "single",
    evaluator: RetrievalEvaluator | None = None,
    plots: Path | None = None,
) -> dict[str, float]:
    """The figures of `RetrievalEvaluator` for pairs of a data set.

    Args:
        model: The towers.
        processor: Their processor.
        queries: The query pairs, with labels.
        database: The pairs that are searched, with labels.
        text_column: The column that the texts are read from.
        protocol: As in `encode_pairs`.
        evaluator: Which figures. None: all of the default.
        plots: A folder for the precision-recall and precision@k curves as PNG.

    Raises:
        QueryError: If there is no such protocol, or queries or database have no labels.
    """
    for name, pairs in (("queries", queries), ("database", database)):
        if "labels" not in pairs.column_names:
            raise QueryError(f"The {name} have no labels, and without them nothing is relevant to anything; add labels.")
    evaluator = evaluator or RetrievalEvaluator()
    hashes = [
        *encode_pairs(model, processor, queries, text_column, protocol),
        *encode_pairs(model, processor, database, text_column, protocol),
    ]
    labels = [list(pairs["labels"]) for pairs in (queries, database)]
    if plots is not None:
        from cmfah_hf.evaluation.plots import plot_precision_at_k, plot_precision_recall

        plots.mkdir(parents=True, exist_ok=True)
        curves = evaluator.curves(*hashes, *labels)
        plot_precision_recall(curves, plots / "precision_recall.png")
        plot_precision_at_k(curves, plots / "precision_at_k.png")
    return evaluator(*hashes, *labels)
