"""Searches drawings by texts in eight languages and more, with and without the rules for words.

    npm pack cldr-annotations-full emoji-datasource-twitter   # and unpack both
    python benchmarks/languages.py NAMES DRAWINGS --output runs/languages

NAMES has the Unicode Consortium's names and keywords of emoji in about a hundred languages
(`annotations/LANGUAGE/annotations.json`), DRAWINGS an image of each (`emoji.json`, `img/`). An emoji is an item: its
drawing, its texts, and as its label its group, such as "animal mammal". A fifth of them are queries. The text of a
training item is its name and keywords, that of a query its name. A small model is trained for each language and seed,
on features of EfficientNet-Lite0 (CMFAH_DATA names the folder of its weights).

Variants: `before` has no rules. `rules` segments words and folds marks; where no text needs this, it is the model of
`before`. `similar` reads unknown words as similar ones too. `labels` has the words of class names too. In the split
`names`, the class names, in English, are the queries.

Shapes: `Q` queries, `N` items, `C` channels or classes, `K` bits.
"""

import argparse
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from cmfah_hf.atomic import write_text
from cmfah_hf.data import load_image_text, resolve_data_path
from cmfah_hf.errors import CMFAHError
from cmfah_hf.evaluation.labels import encode_labels
from cmfah_hf.evaluation.levels import count_relevant, hamming_levels
from cmfah_hf.evaluation.metrics import expected_average_precision, random_ranking_map
from cmfah_hf.experiments.report import document_of, summarize
from cmfah_hf.experiments.results import Result
from cmfah_hf.models import CMFAHConfig, CMFAHImageModel, CMFAHModel, CMFAHProcessor
from cmfah_hf.models.word_rules import WordRules
from cmfah_hf.retrieval.codes import pack
from cmfah_hf.training import bundled_configuration, parse_run
from cmfah_hf.training import train as train_model
from cmfah_hf.training.backbone import load_backbone_weights
from cmfah_hf.training.data.region_cache import RegionExtractor
from cmfah_hf.training.evaluate import EncodedPairs, encode_pairs
from cmfah_hf.training.settings.arguments import DataArguments
from cmfah_hf.training.vocabulary import word_rules

LANGUAGES = ("de", "ru", "ar", "he", "th", "ja", "ko", "zh")
LEAST_OF_GROUP = 10
QUERIES = 0.2
PIXELS, BATCH = 128, 32
# A model that trains in a minute: texts of few words, and one vector of each image.
SMALL = ["--refit", "false", "--hidden_size", "128", "--word_dim", "100", "--num_train_epochs", "12"]
SMALL += ["--per_device_train_batch_size", "64", "--eval_strategy", "no", "--save_strategy", "no"]
SMALL += ["--load_best_model_at_end", "false", "--disable_tqdm", "true"]
SHARES = {"without": "queries_without_known_words_share", "unknown": "queries_unknown_words_share"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", type=Path, help="folder of the unpacked names")
    parser.add_argument("drawings", type=Path, help="folder of the unpacked drawings")
    parser.add_argument("--languages", nargs="+", default=LANGUAGES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--labels", nargs="*", default=["th"], help="languages of the models with class names")
    parser.add_argument("--output", type=Path, required=True, help="folder of data and models, and of figures.json")
    own = parser.parse_args()
    logging.disable(logging.WARNING)
    items = read_items(own.names, own.drawings, own.languages)
    features_NC = features_of(items, own.drawings, own.output / "features.npz")
    results: list[Result] = []
    for seed in own.seeds:
        for language in own.languages:
            folder = own.output / "data" / language
            write_pairs(items, features_NC, language, folder)
            results += results_of(folder, own.output / "models", language, seed, language in own.labels)
        document = json.loads(document_of(summarize(results)))
        lines = ",\n".join(json.dumps(figure) for figure in document.pop("figures"))
        head = json.dumps({"script": "benchmarks/languages.py", **document})[:-1]
        write_text(own.output / "figures.json", f'{head},\n"figures": [\n{lines}\n]}}\n', CMFAHError)
    print_table(results)


def read_items(names: Path, drawings: Path, languages: list[str]) -> list[dict[str, Any]]:
    """The emoji with a drawing, a group that is not small, and texts in all languages."""
    texts = {}
    for language in languages:
        content = json.loads((names / "annotations" / language / "annotations.json").read_text("utf-8"))
        texts[language] = content["annotations"]["annotations"]
    items = []
    for row in json.loads((drawings / "emoji.json").read_text("utf-8")):
        character = "".join(chr(int(part, 16)) for part in row["unified"].split("-")).replace("\ufe0f", "")
        own = {language: each[character] for language, each in texts.items() if character in each}
        if row["has_img_twitter"] and row["category"] not in ("Component", "Flags") and len(own) == len(texts):
            label = row["subcategory"].replace("-", " ")
            items.append({"id": row["image"].removesuffix(".png"), "label": label, "texts": own})
    sizes = Counter(item["label"] for item in items)
    return [item for item in items if sizes[item["label"]] >= LEAST_OF_GROUP]


@torch.inference_mode()
def features_of(items: list[dict[str, Any]], drawings: Path, path: Path) -> np.ndarray:
    """`(N, 1280)` float32, EfficientNet's largest values over the regions of each drawing, kept in a file."""
    if path.is_file():
        kept = np.load(path)
        of_id = dict(zip(kept["ids"].tolist(), kept["features"], strict=True))
        return np.stack([of_id[item["id"]] for item in items])
    config = CMFAHConfig(backbone="tf_efficientnet_lite0", image_size=PIXELS)
    tower = CMFAHImageModel(config)
    weights = resolve_data_path("weights/efficientnet-lite/tf_efficientnet_lite0.safetensors")
    load_backbone_weights(tower, str(weights))
    # These weights expect red, green and blue as (x - 127) / 128.
    extractor = RegionExtractor(tower, CMFAHProcessor.from_vocabulary(config, [], [0.49803922] * 3, [0.50196078] * 3))
    found = []
    for first in range(0, len(items), BATCH):
        files = [drawings / "img" / "twitter" / "64" / f"{item['id']}.png" for item in items[first : first + BATCH]]
        pixels = extractor.processor(images=[Image.open(file) for file in files], return_tensors="pt")["pixel_values"]
        found.append(extractor.regions(pixels).max(axis=1).astype(np.float32))
    features_NC = np.concatenate(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, ids=[item["id"] for item in items], features=features_NC)
    return features_NC


def write_pairs(items: list[dict[str, Any]], features_NC: np.ndarray, language: str, folder: Path) -> None:
    """Writes a data set of one language: `train.parquet` and `query.parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    is_query_N = np.random.default_rng(0).permutation(len(items)) < QUERIES * len(items)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "query": []}
    for item, features_C, is_query in zip(items, features_NC, is_query_N, strict=True):
        (name,), keywords = item["texts"][language]["tts"], item["texts"][language]["default"]
        text = name if is_query else ", ".join([name, *(each for each in keywords if each != name)])
        row = {"id": item["id"], "text": text, "labels": [item["label"]], "image_features": features_C.tolist()}
        rows["query" if is_query else "train"].append(row)
    for split, own in rows.items():
        datasets.Dataset.from_list(own).to_parquet(str(folder / f"{split}.parquet"))


def results_of(folder: Path, models: Path, language: str, seed: int, with_labels: bool) -> Iterator[Result]:
    """The figures of all variants of a language and a seed, whose models are trained if they are missing."""
    splits = load_image_text(folder)
    train, queries = splits["train"], splits["query"]
    rules = word_rules(DataArguments(), train)
    variants = [("before", WordRules(), False, "ignore"), ("rules", rules, False, "ignore")]
    variants.append(("similar", rules, False, "similar"))
    variants += [("labels", rules, True, "similar")] if with_labels else []
    row_of = {labels[0]: row for row, labels in enumerate(queries["labels"])}
    names = queries.select(sorted(row_of.values()))
    names = names.remove_columns("text").add_column("text", [labels[0] for labels in names["labels"]])
    encoded: dict[Path, tuple[CMFAHModel, EncodedPairs]] = {}
    for method, own, labels, unknown in variants:
        run = models / language / f"{own.segmenter}-{own.fold_marks}-{labels}" / f"seed-{seed}"
        begin = time.monotonic()
        if not (run / "metrics.json").is_file():
            settings = {"dataset": folder, "output_dir": run, "seed": seed, "data_seed": seed}
            settings |= {"word_segmenter": own.segmenter, "word_folding": own.fold_marks, "word_labels": labels}
            options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
            train_model(parse_run(bundled_configuration("cmfah-photographs.yaml"), [*options, *SMALL]))
        processor = CMFAHProcessor.from_pretrained(run, unknown_words=unknown)
        if run not in encoded:
            model = CMFAHModel.from_pretrained(run)
            encoded[run] = model, encode_pairs(model, processor, train, "text")
        model, database = encoded[run]
        for split, asked in (("query", queries), ("names", names)):
            found = encode_pairs(model, processor, asked, "text")
            shares = found.words.figures("queries")
            wanted = {("hamming", "t2i", name): shares[source] for name, source in SHARES.items()}
            wanted["hamming", "t2i", "map"] = map_of(found.texts, database.images, found.labels, database.labels)
            if split == "query":
                wanted["hamming", "i2t", "map"] = map_of(found.images, database.texts, found.labels, database.labels)
                counts = count_relevant(*encode_labels(found.labels, database.labels))
                wanted["random", "t2i", "map"] = random_ranking_map(counts, len(database.labels))
            for (ranking, way, metric), value in wanted.items():
                yield Result(
                    *(str(run), "emoji", method, language, f"{method}, {language}", 64, "seen", seed, split, "seen"),
                    *("single", ranking, way, metric, float(value), time.monotonic() - begin, "{}", "{}"),
                )


def map_of(codes_QK: np.ndarray, codes_NK: np.ndarray, labels_Q: list[list[str]], labels_N: list[list[str]]) -> float:
    """MAP by Hamming distance, in expectation over the order of ties."""
    labels_QC, labels_NC = encode_labels(labels_Q, labels_N)
    counts = hamming_levels(pack(codes_QK), pack(codes_NK), labels_QC, labels_NC)
    return float(expected_average_precision(*counts).mean())


def print_table(results: list[Result]) -> None:
    """Prints the mean over the seeds of each figure of the queries by name."""
    table = Table("language", "variant", "without a known word", "MAP t2i", "MAP i2t", "t2i of class names")
    for language in dict.fromkeys(one.variant for one in results):
        for method in dict.fromkeys(one.method for one in results if one.variant == language):
            own = [one for one in results if (one.variant, one.method, one.ranking) == (language, method, "hamming")]
            cells = [
                np.mean([one.value for one in own if (one.split, one.metric, one.direction) == wanted])
                for wanted in (
                    ("query", "without", "t2i"),
                    ("query", "map", "t2i"),
                    ("query", "map", "i2t"),
                    ("names", "map", "t2i"),
                )
            ]
            table.add_row(language, method, *(f"{cell:.3f}" for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
