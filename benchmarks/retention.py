"""Retrieval by codes without training, compared with the float vectors of a dual encoder and with other codes of them.

    python benchmarks/retention.py --encoder FOLDER_OR_ID --output runs/retention
    python benchmarks/retention.py --output runs/retention --split validation
    python benchmarks/retention.py --encoder runs/clip/encoder --output runs/retention --trained runs/clip-models

Without `--encoder` and without the environment variable CMFAH_DUAL_ENCODER, the small CLIP of small_clip.py is trained
first. Codes are fitted on unlabeled scenes; texts and images of other scenes rank each other. `--trained` names a
folder with models that were trained from the encoder, such as that of `cmfah experiment run`. Writes `retention.json`,
`retention-map.png`, `retention-recall-10.png`, and the vectors, which a second run with the same encoder reads.

Shapes: `N` scenes, `Q` queries (all scenes of one modality), `E` width of the vectors, `K` bits.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from rich.console import Console
from rich.table import Table

from cmfah_hf.atomic import sha256_of, write_text
from cmfah_hf.data.scenes import make_scenes
from cmfah_hf.errors import CMFAHError
from cmfah_hf.evaluation.levels import score_levels
from cmfah_hf.evaluation.metrics import expected_average_precision, first_relevant_rank, hit_rate_at_k, ndcg_at_k
from cmfah_hf.experiments.figures import plot_results
from cmfah_hf.experiments.report import document_of, summarize
from cmfah_hf.experiments.results import Result
from cmfah_hf.hub.model_folder import METRICS_NAME
from cmfah_hf.methods.closed_form import Choice, CodeFitter, random_rotation, unit_vectors
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training.dual_encoders import load_dual_encoder, text_vectors
from cmfah_hf.training.encoder_sources import located
from cmfah_hf.training.phrases import PHRASES

BITS = (16, 32, 64, 128, 256)
DEPTHS = (1, 5, 10)
# Seeds of the scenes; the small CLIP is trained on those of seed 0 and tried on those of seed 1.
FITTED, VALIDATION, TEST, OTHER_TEXTS = 2, 3, 4, 5
HELD_OUT, OTHERS = 1_000, 200
METRICS = ("map", *(f"recall@{k}" for k in DEPTHS), "median_rank", "ndcg@10")
WITH_TEXTS, UNPAIRED, IMAGES_ONLY = "ours, images and texts", "ours, images and 200 other texts", "ours, images only"
# The codes of images only, of this length, with centers of texts that were not chosen.
CENTERS_AT = 64
BY_PHRASES, BY_IMAGES = f"{IMAGES_ONLY}, mean of phrases", f"{IMAGES_ONLY}, mean of images"
TRAINED = "ours, trained without labels"
SIGNS, ROTATED, PRODUCT, FLOAT = "signs of all dimensions", "random rotation", "product quantization", "float"
# Share of the float figure that the codes fitted with texts should keep, mean of both directions.
TARGETS = {
    (32, "aqd", "map"): 0.98,
    (64, "hamming", "map"): 0.98,
    (64, "aqd", "map"): 1.0,
    (64, "aqd", "recall@10"): 0.97,
    (128, "aqd", "recall@10"): 1.0,
    (128, "hamming", "recall@10"): 0.96,
}


@dataclass(frozen=True)
class Scenes:
    """Vectors of images and texts, `(N, E)` of unit length, and which scenes share a class, `(N, N)` bool."""

    images: np.ndarray
    texts: np.ndarray
    relevant: np.ndarray
    seed: int


@dataclass(frozen=True)
class Row:
    """The scores of one method, `(Q, N)` by direction, larger is nearer."""

    title: str
    bits: int | None
    ranking: str
    scores: Mapping[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default=os.environ.get("CMFAH_DUAL_ENCODER"), help="folder or id on the Hub")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=list(BITS))
    parser.add_argument("--scenes", type=int, default=4_000, help="scenes to fit codes on")
    parser.add_argument("--trained", type=Path, help="folder with models that were trained from the encoder")
    parser.add_argument("--split", choices=("query", "validation"), default="query")
    own = parser.parse_args()
    own.output.mkdir(parents=True, exist_ok=True)
    encoder = own.encoder or _trained_encoder(own.output / "small-clip")
    vectors = Vectors(encoder, own.output)
    fitted = vectors.scenes(FITTED, own.scenes)
    held_out = vectors.scenes(TEST if own.split == "query" else VALIDATION, HELD_OUT)
    other_texts_NE = vectors.scenes(OTHER_TEXTS, OTHERS).texts
    results, choices = [], []
    for row in rows(fitted, held_out, other_texts_NE, vectors.phrases(), own.bits, choices):
        results += results_of(row, held_out, own.split)
    for path in sorted(own.trained.rglob(METRICS_NAME)) if own.trained is not None else ():
        for row, seed in trained_rows(path.parent, held_out.seed):
            results += results_of(row, held_out, own.split, seed)
    console = Console(width=140)
    console.print(table(results, f"{HELD_OUT} scenes, mean of both directions; in brackets the share of float"))
    console.print(target_table(results))
    console.print(choice_table(choices))
    document = json.loads(document_of(summarize(with_shares(results))))
    write_text(own.output / "retention.json", dumped({"script": "benchmarks/retention.py", **document}), CMFAHError)
    plotted = [one for one in results if not one.title.startswith(IMAGES_ONLY) and one.ranking != "hamming"]
    for metric in ("map", "recall@10"):
        plot_results(plotted, own.output / f"retention-{metric.replace('@', '-')}.png", metric, own.split)


class Vectors:
    """The vectors of scenes, encoded once and kept in a folder."""

    def __init__(self, encoder: str | Path, folder: Path):
        self.encoder, self.folder = str(encoder), folder
        self._name = f"vectors-{Path(encoder).name}-{digest_of(self.encoder)}"

    def scenes(self, seed: int, count: int) -> Scenes:
        """The first scenes of a seed."""
        path = self.folder / f"{self._name}-{seed}-{count}.npz"
        if not path.is_file():
            self._encode(path, seed, count)
        with np.load(path) as arrays:
            return Scenes(unit_vectors(arrays["images"]), unit_vectors(arrays["texts"]), arrays["relevant"], seed)

    def phrases(self) -> np.ndarray:
        """The vectors of everyday phrases, `(N, E)`, as a compression without texts uses them."""
        path = self.folder / f"{self._name}-phrases.npy"
        if not path.is_file():
            model, processor = load_dual_encoder(self.encoder, bits=8, link=False)
            np.save(path, text_vectors(model, processor, list(PHRASES)))
        return unit_vectors(np.load(path))

    def _encode(self, path: Path, seed: int, count: int) -> None:
        from small_clip import encode, relevance

        data, start = make_scenes(count, seed=seed), time.perf_counter()
        images_NE, texts_NE = encode(self.encoder, data)
        print(f"{count} scenes encoded in {time.perf_counter() - start:.0f} s", file=sys.stderr)  # noqa: T201
        np.savez(path, images=images_NE, texts=texts_NE, relevant=relevance(data["labels"]))


def digest_of(encoder: str) -> str:
    """A digest of the files of an encoder in a folder, or of its commit on the Hub, 12 hexadecimal digits."""
    digest, folder = hashlib.sha256(), Path(encoder)
    if folder.is_dir():
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    else:
        digest.update(f"{encoder} {located(encoder, dual=True).get('revision')}".encode())
    return digest.hexdigest()[:12]


def rows(
    fitted: Scenes,
    held_out: Scenes,
    other_texts_NE: np.ndarray,
    phrases_NE: np.ndarray,
    all_bits: list[int],
    choices: list[tuple[str, Choice]],
) -> Iterator[Row]:
    """The scores of all methods on held-out scenes; appends what was chosen to `choices`."""
    with_texts, unpaired, images_only = (CodeFitter(fitted.images.shape[1]) for _ in range(3))
    with_texts.add_pairs(fitted.images, fitted.texts)
    unpaired.add_images(fitted.images)
    unpaired.add_texts(other_texts_NE)
    images_only.add_images(fitted.images)
    cosines_NN = held_out.images @ held_out.texts.T
    yield Row(FLOAT, None, "cosine", {"i2t": cosines_NN, "t2i": cosines_NN.T})
    yield from code_rows(SIGNS, None, held_out.images, held_out.texts)
    for bits in all_bits:
        start = time.perf_counter()
        by_title = {}
        for title, fitter in ((WITH_TEXTS, with_texts), (UNPAIRED, unpaired), (IMAGES_ONLY, images_only)):
            choice = fitter.fit(bits, phrases=phrases_NE)
            choices.append((f"{title}, {bits} bits", choice))
            by_title[title] = choice.projection
        if bits == CENTERS_AT:
            by_title[BY_PHRASES] = by_title[IMAGES_ONLY].centered(phrases_NE.mean(axis=0))
            by_title[BY_IMAGES] = by_title[IMAGES_ONLY].centered(fitted.images.mean(axis=0))
        for title, codes in by_title.items():
            yield from code_rows(
                title, bits, np.tanh(codes.images(held_out.images)), np.tanh(codes.texts(held_out.texts))
            )
        print(f"{bits} bits fitted in {time.perf_counter() - start:.0f} s", file=sys.stderr)  # noqa: T201
        width = fitted.images.shape[1]
        if bits <= width:
            rotation_EK = random_rotation(width)[:, :bits]
            sides = [(held_out.images, fitted.images), (held_out.texts, fitted.texts)]
            rotated = (np.tanh((side - of.mean(axis=0)) @ rotation_EK) for side, of in sides)
            yield from code_rows(ROTATED, bits, *rotated)
        if width % (bits // 8) == 0:
            yield Row(
                PRODUCT,
                bits,
                "aqd",
                {
                    "t2i": product_scores(held_out.texts, held_out.images, fitted.images, bits),
                    "i2t": product_scores(held_out.images, held_out.texts, fitted.texts, bits),
                },
            )


def trained_rows(folder: Path, seed: int) -> Iterator[tuple[Row, int]]:
    """The scores of a trained model on held-out scenes, by both rankings, and the seed of its training."""
    retriever, scenes = CrossMediaRetriever.from_pretrained(folder), make_scenes(HELD_OUT, seed=seed)
    images_NK, texts_NK = retriever.encode_images(scenes["image"]), retriever.encode_texts(list(scenes["text"]))
    metrics = json.loads((folder / METRICS_NAME).read_text(encoding="utf-8"))
    for row in code_rows(TRAINED, metrics["hash_bits"], images_NK, texts_NK):
        yield row, metrics["seed"]


def code_rows(title: str, bits: int | None, image_NK: np.ndarray, text_NK: np.ndarray) -> Iterator[Row]:
    """Both rankings of codes: by Hamming distance, and by the query's real values (rescoring of all items)."""
    image_signs_NK, text_signs_NK = (np.where(values >= 0, 1.0, -1.0) for values in (image_NK, text_NK))
    hamming_NN = image_signs_NK @ text_signs_NK.T
    yield Row(title, bits, "hamming", {"i2t": hamming_NN, "t2i": hamming_NN.T})
    yield Row(title, bits, "aqd", {"i2t": image_NK @ text_signs_NK.T, "t2i": text_NK @ image_signs_NK.T})


def product_scores(queries_QE: np.ndarray, items_NE: np.ndarray, fitted_NE: np.ndarray, bits: int) -> np.ndarray:
    """Inner products of queries with items in product quantization of `bits`, `(Q, N)`."""
    index = faiss.IndexPQ(items_NE.shape[1], bits // 8, 8, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1  # no warning
    index.train(fitted_NE.astype(np.float32))
    index.add(items_NE.astype(np.float32))
    found, ids = index.search(queries_QE.astype(np.float32), len(items_NE))
    scores_QN = np.empty_like(found)
    np.put_along_axis(scores_QN, ids, found, axis=1)
    return scores_QN


def results_of(row: Row, held_out: Scenes, split: str, seed: int = 0) -> list[Result]:
    """The figures of a row in both directions and their mean."""
    by_direction = {name: figures_of(scores_QN, held_out.relevant) for name, scores_QN in row.scores.items()}
    by_direction["mean"] = {metric: np.mean([one[metric] for one in by_direction.values()]) for metric in METRICS}
    common = {"run": "retention", "data": "scenes", "method": "compressed", "variant": row.title, "title": row.title}
    common |= {"bits": row.bits, "protocol": "unseen", "seed": seed, "split": split, "database": "unseen"}
    common |= {"encoding": "single", "ranking": row.ranking, "seconds": 0.0, "settings": "{}", "versions": "{}"}
    return [
        Result(**common, direction=direction, metric=metric, value=float(value))
        for direction, figures in by_direction.items()
        for metric, value in figures.items()
    ]


def figures_of(scores_QN: np.ndarray, relevant_NN: np.ndarray) -> dict[str, float]:
    """MAP by labels; recall, median rank and nDCG of the query's own pair; expected over the orders of ties."""
    labeled, paired = [], []
    for query, scores_N in enumerate(scores_QN):
        partner_N = np.zeros(len(scores_N), bool)
        partner_N[query] = True
        n, r = (counts[None] for counts in score_levels(scores_N, relevant_NN[query], 1e-9))
        labeled.append(expected_average_precision(n, r)[0])
        n, r = (counts[None] for counts in score_levels(scores_N, partner_N, 1e-9))
        paired.append([*hit_rate_at_k(n, r, DEPTHS)[0], first_relevant_rank(n, r)[0], ndcg_at_k(n, r, [10])[0, 0]])
    *means, _, ndcg = np.mean(paired, axis=0)
    return dict(zip(METRICS, [np.mean(labeled), *means, np.median([one[-2] for one in paired]), ndcg], strict=True))


def with_shares(results: list[Result]) -> list[Result]:
    """MAP and recall at 10, mean of both directions, and as a share of the float figure."""
    shown = [one for one in results if one.direction == "mean" and one.metric in ("map", "recall@10")]
    floats = {one.metric: one.value for one in shown if one.title == FLOAT}
    shares = [
        replace(one, metric=f"{one.metric} share", value=one.value / floats[one.metric])
        for one in shown
        if one.title != FLOAT
    ]
    return shown + shares


def dumped(document: Mapping[str, Any]) -> str:
    """A document of results as JSON with one figure per line."""
    figures = ",\n".join(json.dumps(figure) for figure in document["figures"])
    others = json.dumps({name: value for name, value in document.items() if name != "figures"})
    return f'{others[:-1]},\n"figures": [\n{figures}\n]}}\n'


def table(results: list[Result], title: str) -> Table:
    """The mean of both directions by method, bits and ranking, with the share of float."""
    means = means_of(results)
    shown = Table(title=title)
    for column in ("method", "bits", "ranking", "MAP", "R@1", "R@5", "R@10", "median rank", "nDCG@10"):
        shown.add_column(column, justify="left" if column in ("method", "ranking") else "right")
    for (method, bits, ranking), figures in means.items():
        cells = []
        for metric in METRICS:
            value, share = figures[metric], figures[metric] / means[FLOAT, None, "cosine"][metric]
            cells.append(f"{value:.1f}" if metric == "median_rank" else f"{value:.3f} ({share:.3f})")
        shown.add_row(method, str(bits or ""), ranking, *cells)
    return shown


def target_table(results: list[Result]) -> Table:
    """The shares of float that the codes fitted with texts should reach."""
    means = means_of(results)
    shown = Table("bits", "ranking", "metric", "share of float", "target", "", title=f"Targets: {WITH_TEXTS}")
    for (bits, ranking, metric), target in TARGETS.items():
        if figures := means.get((WITH_TEXTS, bits, ranking)):
            share = figures[metric] / means[FLOAT, None, "cosine"][metric]
            reached = "reached" if share >= target else "missed"
            shown.add_row(str(bits), ranking, metric, f"{share:.3f}", f"{target:.2f}", reached)
    return shown


def choice_table(choices: list[tuple[str, Choice]]) -> Table:
    """The candidates' agreement with the float rankings of held-out scenes among the fitted ones, best first."""
    shown = Table("codes", "candidates: AQD, Hamming", title="Comparison on held-out scenes among the fitted ones")
    for title, choice in choices:
        for names, compared in ((title, choice.candidates), (f"{title}: center of texts", choice.centers)):
            shown.add_row(names, "; ".join(f"{one.name}: {one.aqd:.3f}, {one.hamming:.3f}" for one in compared))
    return shown


def means_of(results: list[Result]) -> dict[tuple[str, int | None, str], dict[str, float]]:
    """The mean over seeds of each figure, by method, bits and ranking."""
    values: dict[tuple[str, int | None, str], dict[str, list[float]]] = {}
    for one in results:
        if one.direction == "mean":
            values.setdefault((one.title, one.bits, one.ranking), {}).setdefault(one.metric, []).append(one.value)
    return {row: {metric: float(np.mean(found)) for metric, found in each.items()} for row, each in values.items()}


def _trained_encoder(folder: Path) -> Path:
    from small_clip import train_small_clip

    if not (folder / "config.json").is_file():
        train_small_clip(folder)
    return folder


if __name__ == "__main__":
    main()
