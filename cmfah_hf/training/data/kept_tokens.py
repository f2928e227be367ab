"""Tokens of a frozen text encoder, computed once in a run and kept in memory.

Shape suffixes: B texts, W tokens, N tokens of all texts, C channels of the encoder.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from cmfah_hf.data.collator import captions_in, expanded
from cmfah_hf.models import CMFAHProcessor, CMFAHTextModel

logger = logging.getLogger(__name__)

_MOST_BYTES = 4 * 2**30
_TEXTS_AT_ONCE = 64
_ROWS = 1_000


class TokenTable:
    """The tokens of distinct texts, `(N, C)` float16 on the CPU. Called with texts, it returns their batch.

    Args:
        tokens_NC: The tokens of all texts, one text after the other; with a dual encoder, those of each text begin with
            its vector.
        spans: The first row of each text and the row after its last one.
        has_vectors: Whether the tokens begin with vectors.

    Returns (of a call):
        `token_features` `(B, W, C)`, or `(B, 1 + W, C)` with vectors, and `attention_mask` `(B, W)`.

    Raises:
        KeyError: If it does not hold a text.
    """

    def __init__(self, tokens_NC: torch.Tensor, spans: dict[str, tuple[int, int]], has_vectors: bool = False):
        self.tokens_NC = tokens_NC
        self.spans = spans
        self.has_vectors = has_vectors

    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        spans = [self.spans[text] for text in texts]
        leading = int(self.has_vectors)
        columns = max((end - start for start, end in spans), default=0)
        columns = max(columns, leading + 1)  # attention needs a column even if no text has a token
        features_BWC = self.tokens_NC.new_zeros(len(texts), columns, self.tokens_NC.shape[1])
        mask_BW = torch.zeros(len(texts), columns - leading, dtype=torch.long)
        for place, (start, end) in enumerate(spans):
            features_BWC[place, : end - start] = self.tokens_NC[start:end]
            mask_BW[place, : end - start - leading] = 1
        return {"token_features": features_BWC, "attention_mask": mask_BW}


def texts_to_read(pairs: Any, text_column: str, expander: Any) -> Iterator[str]:
    """The texts of a data set in the form that `PairCollator` reads them, all captions of each row included."""
    column = text_column if text_column in pairs.column_names else "text"
    columns = [name for name in (column, "captions") if name in pairs.column_names]
    for portion in pairs.select_columns(columns).with_format(None).iter(_ROWS):
        rows = [dict(zip(portion, values, strict=True)) for values in zip(*portion.values(), strict=True)]
        yield from (str(row[column]) for row in rows if not captions_in(row))
        captions = [caption for row in rows for caption in captions_in(row)]
        yield from expanded(captions, expander, text_column) if captions else ()


@torch.no_grad()
def keep_tokens(text_model: CMFAHTextModel, processor: CMFAHProcessor, texts: Iterable[str]) -> TokenTable | None:
    """The tokens of texts by a frozen text encoder; None if they would take more than 4 GiB.

    Texts of similar lengths are encoded together, always in the same order, so that a resumed run has the same tokens.

    Args:
        text_model: The text tower, with its encoder's weights.
        processor: The model's processor.
        texts: The texts, repetitions included.
    """
    distinct = sorted(set(texts))
    if not distinct:
        return None
    encoder = text_model.embeddings
    was_training = text_model.training
    text_model.eval()
    counts = [len(ids) for ids in processor.tokenizer(distinct, truncation=True)["input_ids"]]
    has_vectors = encoder.pooled_dim is not None
    channels = max(encoder.channels, encoder.pooled_dim or 0)
    size = (
        2 * channels * ((0 if encoder.keeps_one else sum(counts)) + (has_vectors or encoder.keeps_one) * len(distinct))
    )
    if size > _MOST_BYTES:
        logger.info("The tokens of %d texts take %.1f GiB and are not kept.", len(distinct), size / 2**30)
        return None
    most = torch.finfo(torch.float16).max
    parts, spans, start = [], {}, 0
    order = sorted(range(len(distinct)), key=counts.__getitem__)
    for first in range(0, len(order), _TEXTS_AT_ONCE):
        read = [distinct[place] for place in order[first : first + _TEXTS_AT_ONCE]]
        inputs = processor(text=read, return_tensors="pt").to(text_model.device)
        tokens_BWC, mask_BW = encoder.extract_tokens(inputs["input_ids"], inputs["attention_mask"])
        tokens_BWC, mask_BW = tokens_BWC.float().clamp(-most, most).half().cpu(), mask_BW.cpu()
        if has_vectors:
            mask_BW = torch.nn.functional.pad(mask_BW, (1, 0), value=True)
        for text, tokens_WC, mask_W in zip(read, tokens_BWC, mask_BW, strict=True):
            parts.append(tokens_WC[mask_W])
            spans[text] = (start, start + len(parts[-1]))
            start += len(parts[-1])
    text_model.train(was_training)
    return TokenTable(torch.cat(parts), spans, has_vectors)
