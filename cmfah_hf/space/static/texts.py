"""Text data of the static page: vocabulary and word graph of the model, or an encoder's own tokenizer.

Shapes: V words of the graph.
"""

import json
from typing import Any

import numpy as np

from cmfah_hf.errors import CheckpointError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.expansion.walks import num_hops
from cmfah_hf.models import CMFAHProcessor
from cmfah_hf.models.word_rules import fold
from cmfah_hf.retrieval import CrossMediaRetriever

WORDS, GRAPH = "data/words.json", "data/graph.bin"
TOKENIZER, TOKENIZER_CONFIG = "model/tokenizer.json", "model/tokenizer_config.json"

# Characters among which all that are folded are.
_FOLDED = (*range(0x0590, 0x0700),)
# Normalizers that the page's tokenizer only approximates.
_APPROXIMATED = frozenset({"Nmt", "Precompiled"})


def text_files(retriever: CrossMediaRetriever, source: str) -> dict[str, bytes]:
    """The files that texts need, by path in the page's folder.

    Args:
        retriever: The model.
        source: Its name in errors.

    Raises:
        CheckpointError: If the page cannot read texts as the model does.
    """
    if retriever.expander is not None:
        _check_expander(retriever.expander, source)
    processor = retriever.processor
    if not processor.word_level:
        return _encoder_files(processor, source)
    if processor.word_rules.segmenter != "none":
        raise CheckpointError(
            f"{source}: finds words with ICU's dictionaries, of which each browser has others; search it with "
            "`cmfah space`."
        )
    vocabulary = [word for word, _ in sorted(processor.tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    content: dict[str, Any] = {"vocabulary": vocabulary, "sorted": None, "folding": None, "graph": None}
    if processor.unknown_words == "similar":
        content["sorted"] = sorted(set(vocabulary[2:]))
    if processor.word_rules.fold_marks:
        content["folding"] = _folding()
    files = {}
    if retriever.expander is not None:
        content["graph"], files[GRAPH] = _graph(retriever.expander)
    return {WORDS: _json(content), **files}


def _folding() -> dict[str, str]:
    """The replacement of each Arabic and Hebrew character that is folded."""
    folded = {chr(code): fold(chr(code)) for code in _FOLDED}
    return {letter: read for letter, read in folded.items() if read != letter}


def _check_expander(expander: GraphExpander, source: str) -> None:
    problem = None
    if expander.knowledge is not None:
        problem = "words of an encyclopedia"
    elif expander.mode != "closed_form":
        problem = "sampled walks"
    elif expander.graph.tokenizer != "words":
        problem = f"the words of the tokenizer {expander.graph.tokenizer!r:.40}"
    if problem is not None:
        raise CheckpointError(
            f"{source}: expands queries by {problem}, which the static page does not; search it with `cmfah space`."
        )


def _graph(expander: GraphExpander) -> tuple[dict[str, Any], bytes]:
    """The word graph: settings, and its arrays one after the other, those of 8 bytes first."""
    graph, transitions_VV = expander.graph, expander.transitions
    words = graph.vocabulary
    alphabet_V = np.empty(len(words), np.int32)
    alphabet_V[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words), dtype=np.int32)
    weighted = expander.word_weights == "idf"
    weights_V = np.log((1 + graph.num_images) / (1 + graph.counts)) + 1.0 if weighted else np.empty(0)
    settings = {
        "words": words,
        "hops": num_hops(expander.walk_length),
        "top_k": expander.top_k,
        "min_share": expander.min_probability,
        "edges": int(transitions_VV.nnz),
        "weighted": weighted,
    }
    arrays = [transitions_VV.data.astype("<f8"), weights_V.astype("<f8")]
    arrays += [part.astype("<i4") for part in (transitions_VV.indices, transitions_VV.indptr, alphabet_V)]
    return settings, b"".join(array.tobytes() for array in arrays)


def _encoder_files(processor: CMFAHProcessor, source: str) -> dict[str, bytes]:
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    found = sorted(_types(tokenizer.get("normalizer")) & _APPROXIMATED)
    if found:
        raise CheckpointError(
            f"{source}: its tokenizer normalizes texts by {found[0]}, which browsers only approximate; search it with "
            "`cmfah space`."
        )
    # Padding and length are settings of the page, and a special token in a text is a word of it.
    special = [token for token in tokenizer["added_tokens"] if token["special"]]
    others = [token for token in tokenizer["added_tokens"] if not token["special"]]
    tokenizer |= {"truncation": None, "padding": None, "added_tokens": others}
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary |= {token["content"]: token["id"] for token in special}
    names = ("unk_token", "pad_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")
    options = {name: str(token) for name in names if (token := getattr(processor.tokenizer, name)) is not None}
    return {TOKENIZER: _json(tokenizer), TOKENIZER_CONFIG: _json(options)}


def _types(part: Any) -> set[str]:
    """The types of a part of a tokenizer, and of all parts within it."""
    if isinstance(part, list):
        return set().union(*map(_types, part))
    if not isinstance(part, dict):
        return set()
    return {str(part.get("type"))}.union(*map(_types, part.values()))


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
