"""`OnnxTextReader`: texts to `input_ids` and `attention_mask` as the processor of a model makes them.

Shape suffixes: N texts, W tokens.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from cmfah_hf.errors import CheckpointError
from cmfah_hf.models.model_files import ModelFileError, read_object
from cmfah_hf.models.text_reading import TextReader
from cmfah_hf.models.tokenization_cmfah import SPECIAL_TOKENS, UNKNOWN_TOKEN
from cmfah_hf.models.tokenizer_files import SavedTokenizer, read_backbone_tokenizer, read_word_tokenizer
from cmfah_hf.models.word_rules import rules_of
from cmfah_hf.retrieval.onnx.files import TextSettings


def saved_tokenizer(tokenizer: Path, config: Path, word_level: bool) -> SavedTokenizer:
    """The tokenizer in `tokenizer.json`, with the settings of `tokenizer_config.json`.

    Raises:
        CheckpointError: If a file is damaged.
    """
    read = read_word_tokenizer if word_level else read_backbone_tokenizer
    try:
        return read(tokenizer, read_object(config))
    except ModelFileError as error:
        raise CheckpointError(str(error)) from error


class OnnxTextReader(TextReader):
    """Reads texts by the tokenizer of a model and the settings of its ONNX files.

    Args:
        tokenizer: The tokenizer.
        settings: The settings.
        where: Their file, for errors.

    Raises:
        CheckpointError: If the tokenizer is not the one of the settings, or a library for its words is missing.
    """

    def __init__(self, tokenizer: SavedTokenizer, settings: TextSettings, where: str | Path):
        fits = (tokenizer.pad_token_id, tokenizer.padding_side) == (settings.pad_token_id, settings.padding_side)
        if not fits or (tokenizer.max_length, tokenizer.digest) != (settings.max_length, settings.tokenizer):
            raise CheckpointError(
                f"{where}: the tokenizer of this model is not the one that its ONNX files were made with; make them "
                "again with `cmfah export onnx MODEL`."
            )
        self.word_level, self.unknown_words = settings.word_level, settings.unknown_words
        try:
            self.word_rules = rules_of(settings.word_rules, where)
        except ModelFileError as error:
            raise CheckpointError(str(error)) from error
        self._settings, self._tokenizer = settings, tokenizer.backend
        if settings.max_length is not None:
            self._tokenizer.enable_truncation(settings.max_length)

    @classmethod
    def load(cls, tokenizer: Path, config: Path, settings: TextSettings, where: str | Path) -> "OnnxTextReader":
        """Reads `tokenizer.json` and `tokenizer_config.json`.

        Raises:
            CheckpointError: If a file is damaged, or as the class does.
        """
        return cls(saved_tokenizer(tokenizer, config, settings.word_level), settings, where)

    def tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """`input_ids` and `attention_mask` `(N, W)`, int64, padded to the longest text, with at least one column."""
        settings = self._settings
        texts = [settings.prompt + text for text in texts]
        if self._prepares_texts:
            texts = [self._prepared(text) for text in texts]
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        width = max([1, *map(len, rows)])
        if settings.padding == "max_length" and settings.max_length is not None:
            width = settings.max_length
        ids_NW = np.full((len(rows), width), settings.pad_token_id, np.int64)
        mask_NW = np.zeros_like(ids_NW)
        for number, row in enumerate(rows):
            own = slice(0, len(row)) if settings.padding_side == "right" else slice(width - len(row), width)
            ids_NW[number, own], mask_NW[number, own] = row, 1
        return ids_NW, mask_NW

    def _knows(self, word: str) -> bool:
        return self._tokenizer.token_to_id(word) not in (None, self._tokenizer.token_to_id(UNKNOWN_TOKEN))

    def _vocabulary(self) -> Collection[str]:
        return self._tokenizer.get_vocab().keys() - set(SPECIAL_TOKENS)

    def _has_tokens(self, text: str) -> bool:
        return bool(self._tokenizer.encode(text, add_special_tokens=False).ids)
