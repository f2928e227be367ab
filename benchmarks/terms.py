"""Searches for images with one class and without another, by several ways to avoid the second; see docs/method.md.

    python benchmarks/terms.py
    python benchmarks/terms.py --model MODEL --data FOLDER --split query

Every ordered pair of classes (A, B) with ten images of A and B, and ten of A without B, is a query of two words, "A"
and not "B"; the latter images are relevant. By default the bundled model of scenes searches 1,500 scenes that it has
not seen, for the choice (`--seed 11`) or the report (`--seed 12`).

Shapes: `N` images, `Q` queries, `K` bits, `C` classes.
"""

import argparse
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cmfah_hf import CrossMediaRetriever
from cmfah_hf.data import load_image_text, make_scenes
from cmfah_hf.evaluation.levels import score_levels
from cmfah_hf.evaluation.metrics import expected_average_precision, precision_at_k
from cmfah_hf.retrieval.codes import pack, unpack

LEAST, DEPTH = 10, 20
MODEL = Path(__file__).parents[1] / "spaces" / "cmfah-search" / "model"
SCENES, FIRST_SCENE = 1500, 900_000

Ways = dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]


def ways_to_avoid(center_K: np.ndarray) -> Ways:
    """The code of "A but not B" from those of A and B; `center_K` is the mean code of the words."""
    ways: Ways = {"only A": lambda a, b: a}
    for weight in (0.25, 0.5, 0.75, 1.0):
        ways[f"A - {weight:g} B"] = lambda a, b, weight=weight: a - weight * b  # type: ignore[misc]
        ways[f"A - {weight:g} (B - mean)"] = lambda a, b, weight=weight: a - weight * (b - center_K)  # type: ignore[misc]
    ways["A without its part along B"] = lambda a, b: a - max(0.0, a @ b / (b @ b)) * b
    return ways


def figures(codes_QK: np.ndarray, items_NK: np.ndarray, relevant_QN: np.ndarray, avoided_QN: np.ndarray) -> list[float]:
    """MAP, the precision of the first answers, and the share of B among them: expected over the order of ties."""
    sums = np.zeros(3)
    for code_K, relevant_N, avoided_N in zip(codes_QK, relevant_QN, avoided_QN, strict=True):
        n, r = score_levels(items_NK @ code_K, relevant_N)
        _, with_b = score_levels(items_NK @ code_K, avoided_N)
        sums += (
            expected_average_precision(n[None], r[None])[0],
            *precision_at_k(np.stack([n, n]), np.stack([r, with_b]), [DEPTH])[:, 0],
        )
    return (sums / len(codes_QK)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--data", help="Images with labels. Default: scenes.")
    parser.add_argument("--split", default="query")
    parser.add_argument("--seed", type=int, default=12, help="Of the scenes.")
    own = parser.parse_args()
    retriever = CrossMediaRetriever.from_pretrained(own.model)
    data = (
        load_image_text(own.data, split=own.split)
        if own.data
        else make_scenes(SCENES, seed=own.seed, start=FIRST_SCENE)
    )
    names = sorted({name for labels in data["labels"] for name in labels})
    has_CN = np.array([[name in labels for labels in data["labels"]] for name in names])
    words_CK = retriever.encode_texts(names)
    items_NK = unpack(pack(retriever.encode_images(data["image"]))).astype(np.float32)
    pairs = [
        (a, b)
        for a, b in permutations(range(len(names)), 2)
        if min((has_CN[a] & has_CN[b]).sum(), (has_CN[a] & ~has_CN[b]).sum()) >= LEAST
    ]
    sought, avoided = np.array(pairs).T
    relevant_QN, avoided_QN = has_CN[sought] & ~has_CN[avoided], has_CN[avoided]
    rows = {}
    for name, combine in ways_to_avoid(words_CK.mean(axis=0)).items():
        codes_QK = np.array([combine(words_CK[a], words_CK[b]) for a, b in pairs])
        signs_QK = np.where(codes_QK >= 0, np.float32(1), np.float32(-1))
        rows[name] = [figures(codes, items_NK, relevant_QN, avoided_QN) for codes in (codes_QK, signs_QK)]
    columns = ["MAP", f"precision at {DEPTH}", f"share of B at {DEPTH}"]
    table = Table("query", *(f"{ranking}: {column}" for ranking in ("AQD", "Hamming") for column in columns))
    for name, by_ranking in rows.items():
        table.add_row(name, *(f"{value:.3f}" for values in by_ranking for value in values))
    console = Console(width=160)
    console.print(f"{len(data)} images, {len(pairs)} pairs of classes")
    console.print(table)


if __name__ == "__main__":
    main()
