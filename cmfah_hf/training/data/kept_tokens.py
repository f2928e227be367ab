"""Tokens of a frozen text encoder, computed once and kept on disk.

Shape suffixes: B texts, W tokens, N tokens of all texts, C channels of the encoder, T distinct texts.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cmfah_hf.atomic import ANYTHING, atomic_folder, locked, sha256_of
from cmfah_hf.data.collator import captions_in, expanded
from cmfah_hf.errors import DataError
from cmfah_hf.models import CMFAHProcessor, CMFAHTextModel
from cmfah_hf.models.text_encoder import CMFAHTextEncoder
from cmfah_hf.training.data.kept_tables import NOTE_NAME, WAIT_S, Note, add_weights, kept_folder

logger = logging.getLogger(__name__)

_MOST_BYTES = 4 * 2**30
_TEXTS_AT_ONCE = 64
_ROWS = 1_000
_FILE_NAME = "tokens.safetensors"


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

    def with_texts_of(self, other: "TokenTable") -> "TokenTable":
        """A table of the texts of both, by the same encoder."""
        offset = len(self.tokens_NC)
        added = {text: (start + offset, end + offset) for text, (start, end) in other.spans.items()}
        return TokenTable(torch.cat([self.tokens_NC, other.tokens_NC]), {**added, **self.spans}, self.has_vectors)


def texts_to_read(pairs: Any, text_column: str, expander: Any) -> Iterator[str]:
    """The texts of a data set in the form that `PairCollator` reads them, all captions of each row included."""
    column = text_column if text_column in pairs.column_names else "text"
    columns = [name for name in (column, "captions") if name in pairs.column_names]
    for portion in pairs.select_columns(columns).with_format(None).iter(_ROWS):
        rows = [dict(zip(portion, values, strict=True)) for values in zip(*portion.values(), strict=True)]
        yield from (str(row[column]) for row in rows if not captions_in(row))
        captions = [caption for row in rows for caption in captions_in(row)]
        yield from expanded(captions, expander, text_column) if captions else ()


def keep_tokens(text_model: CMFAHTextModel, processor: CMFAHProcessor, texts: Iterable[str]) -> TokenTable | None:
    """The tokens of texts by a frozen text encoder; None if they would take more than 4 GiB.

    They are kept in the cache of `datasets`, and later calls with the same texts and encoder read them from there; if
    their file is damaged, they are computed again, with a warning that names it.

    Args:
        text_model: The text tower, with its encoder's weights.
        processor: The model's processor.
        texts: The texts, repetitions included.

    Raises:
        DataError: If the file cannot be written.
    """
    distinct = sorted(set(texts))
    if not distinct:
        return None
    encoder = text_model.embeddings
    ids: list[list[int]] = processor.tokenizer(distinct, truncation=True)["input_ids"]
    has_vectors = encoder.pooled_dim is not None
    channels = max(encoder.channels, encoder.pooled_dim or 0)
    rows = len(distinct) if encoder.keeps_one else sum(map(len, ids)) + has_vectors * len(distinct)
    if (size := 2 * channels * rows) > _MOST_BYTES:
        logger.info("The tokens of %d texts take %.1f GiB and are not kept.", len(distinct), size / 2**30)
        return None
    folder = kept_folder("tokens", _key(encoder, ids))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.work"), DataError, WAIT_S):
        kept = _read(folder, channels, len(distinct)) if folder.exists() else None
        if kept is None:
            kept = _encode(text_model, processor, distinct, [len(own) for own in ids])
            with atomic_folder(folder, DataError, ANYTHING) as temporary:
                save_file(dict(zip(("tokens", "spans"), kept, strict=True)), temporary / _FILE_NAME)
                note = Note(len(distinct), len(distinct), sha256_of(temporary / _FILE_NAME))
                note.write(temporary / NOTE_NAME)
    tokens_NC, spans_T2 = kept
    spans = {text: (start, end) for text, (start, end) in zip(distinct, spans_T2.tolist(), strict=True)}
    return TokenTable(tokens_NC, spans, has_vectors)


def _key(encoder: CMFAHTextEncoder, ids: Sequence[Sequence[int]]) -> str:
    """A digest of what the tokens are computed from: the weights, and what the encoder reads of the texts."""
    read = [type(encoder).__name__, str(encoder.config.text_backbone_config), str(encoder.config.dual_encoder_config)]
    digest = hashlib.sha256(json.dumps([*read, ids]).encode())
    backbone: Any = encoder.backbone
    add_weights(digest, backbone)
    return digest.hexdigest()


def _read(folder: Path, channels: int, texts: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Kept tokens `(N, C)` and their spans `(T, 2)`; None with a warning if their file is damaged."""
    file = folder / _FILE_NAME
    try:
        if not file.is_file() or sha256_of(file) != Note.read_from(folder / NOTE_NAME).sha256:
            raise DataError(f"{file} is damaged, its checksum is another")
        kept = load_file(file)
        tokens_NC, spans_T2 = kept["tokens"], kept["spans"]
        if (tokens_NC.shape[1], spans_T2.shape) != (channels, (texts, 2)):
            raise DataError(f"{file} is damaged, its tokens have other shapes")
    except (DataError, SafetensorError, KeyError, IndexError) as error:
        logger.warning("%s; the tokens are computed again.", str(error).rstrip("."))
        return None
    return tokens_NC, spans_T2


@torch.no_grad()
def _encode(
    text_model: CMFAHTextModel, processor: CMFAHProcessor, texts: Sequence[str], counts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens `(N, C)` of texts, float16, and their spans `(T, 2)`.

    Texts of similar lengths are encoded together, always in the same order, so that the tokens are always the same.

    Args:
        text_model, processor, texts: As in `keep_tokens`; the texts are distinct.
        counts: The number of tokens of each text.
    """
    encoder = text_model.embeddings
    was_training = text_model.training
    text_model.eval()
    most = torch.finfo(torch.float16).max
    parts, start = [], 0
    spans_T2 = torch.zeros(len(texts), 2, dtype=torch.long)
    order = sorted(range(len(texts)), key=counts.__getitem__)
    for first in range(0, len(order), _TEXTS_AT_ONCE):
        places = order[first : first + _TEXTS_AT_ONCE]
        inputs = processor(text=[texts[place] for place in places], return_tensors="pt").to(text_model.device)
        tokens_BWC, mask_BW = encoder.extract_tokens(inputs["input_ids"], inputs["attention_mask"])
        tokens_BWC, mask_BW = tokens_BWC.float().clamp(-most, most).half().cpu(), mask_BW.cpu()
        if encoder.pooled_dim is not None:
            mask_BW = torch.nn.functional.pad(mask_BW, (1, 0), value=True)
        for place, tokens_WC, mask_W in zip(places, tokens_BWC, mask_BW, strict=True):
            parts.append(tokens_WC[mask_W])
            spans_T2[place] = torch.tensor([start, start + len(parts[-1])])
            start += len(parts[-1])
    text_model.train(was_training)
    return torch.cat(parts), spans_T2
