"""A plot of the attention of a trained model, for its card."""

from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from cmfah_hf.data import load_image_text
from cmfah_hf.data.images import decode_image, decoding_off
from cmfah_hf.errors import ImageError
from cmfah_hf.evaluation.attention import attention_of_words
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.training.data.streams import PairStream
from cmfah_hf.training.settings.arguments import DataArguments

ATTENTION_NAME = "attention.png"
# Query pairs that are searched for one with few words, and the maximum number of words drawn.
_CANDIDATES, _MOST_WORDS = 100, 6


def draw_attention(
    model: CMFAHModel, processor: CMFAHProcessor, queries: Any, data: DataArguments, folder: Path
) -> Path | None:
    """Plots the attention of the words of one query pair as `attention.png` in a folder.

    If the queries hold regions instead of images, the images are read from the data set by the arguments `data`.

    Returns:
        None without anything to plot: no attention, a stream, a data set without images, or no pair with two words that
        the model knows and a readable image.
    """
    if model.config.attention == "none" or model.config.image_feature_dim or isinstance(queries, PairStream):
        return None
    if "image" not in queries.column_names:
        queries = load_image_text(data.dataset, split=data.query_split, **data.columns)
    texts = list(islice(queries["text"], _CANDIDATES))
    known = {row: len(dict.fromkeys(processor.known_words(text))) for row, text in enumerate(texts)}
    fitting = sorted((row for row, words in known.items() if words >= 2), key=known.__getitem__)
    raw = decoding_off(queries)
    readable = ((row, image) for row in fitting if (image := _image_of(raw[row])) is not None)
    if (found := next(readable, None)) is None:
        return None
    row, image = found
    words = list(dict.fromkeys(processor.known_words(texts[row])))[:_MOST_WORDS]
    from cmfah_hf.evaluation.plots import plot_attention

    was_training = model.training
    names, weights_RW, grid, seen = attention_of_words(model.eval(), processor, image, " ".join(words))
    model.train(was_training)
    return plot_attention(image, weights_RW, names, folder / ATTENTION_NAME, region_grid=grid, seen=seen)


def _image_of(row: dict[str, Any]) -> Image.Image | None:
    """The image of a row; None if it is damaged, which the run has already reported."""
    try:
        return decode_image(row["image"])
    except ImageError:
        return None
