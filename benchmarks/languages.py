"""Searches drawings by texts in eight languages and more, with and without the rules for words.

    npm pack cldr-annotations-full emoji-datasource-twitter   # and unpack both
    python benchmarks/languages.py ANNOTATIONS DRAWINGS --output runs/languages --seeds 0 1 2 3 4

ANNOTATIONS has the Unicode Consortium's names and keywords of emoji in about a hundred languages
(`annotations/LANGUAGE/annotations.json`), DRAWINGS an image of each (`emoji.json`, `img/`). An emoji is an item: its
drawing, its texts, and as its label its group, such as "animal mammal". A fifth of them are queries. The text of a
training item is its name and keywords, that of a query its name. One model is trained per language, rules and seed
with `cmfah-photographs.yaml`, on features of EfficientNet-Lite0 (CMFAH_DATA names the folder of its weights).
"""

import argparse
import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from cmfah_hf.data import load_image_text, resolve_data_path
from cmfah_hf.errors import CMFAHError
from cmfah_hf.models import CMFAHConfig, CMFAHImageModel, CMFAHModel, CMFAHProcessor
from cmfah_hf.training import bundled_configuration, parse_run, train
from cmfah_hf.training.backbone import load_backbone_weights
from cmfah_hf.training.data.region_cache import RegionExtractor
from cmfah_hf.training.evaluate import evaluate_pairs

LANGUAGES = ("de", "ru", "ar", "he", "th", "ja", "ko", "zh")
LEAST_OF_GROUP = 10
QUERIES = 0.2
PIXELS = 128
# A model that trains in seconds: texts of few words and one vector of each image.
SMALL = (
    "--refit false --hidden_size 128 --word_dim 100 --num_train_epochs 20 --per_device_train_batch_size 64 "
    "--eval_strategy no --save_strategy no --load_best_model_at_end false --disable_tqdm true"
).split()
RULES = {
    "before": {"word_segmenter": "none", "word_folding": "false", "word_labels": "false"},
    "after": {"word_segmenter": "icu", "word_folding": "true"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path)
    parser.add_argument("drawings", type=Path)
    parser.add_argument("--languages", nargs="+", default=LANGUAGES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, required=True)
    own = parser.parse_args()
    logging.disable(logging.WARNING)
    items = read_items(own.annotations, own.drawings, own.languages)
    features_NC = features_of(items, own.drawings, own.output)
    figures = []
    for language in own.languages:
        folder = write_pairs(items, features_NC, language, own.output)
        for seed in own.seeds:
            for rules, settings in RULES.items():
                begin = time.time()
                figures += measure(folder, own.output, language, rules, settings, seed)
                print(*figures[-2:], time.process_time(), round(time.time() - begin), sep="\n", flush=True)
    (own.output / "figures.json").write_text(json.dumps(figures, indent=1))


def read_items(annotations: Path, drawings: Path, languages: list[str]) -> list[dict[str, Any]]:
    """The emoji with a drawing, a group that is not small, and texts in all languages."""
    texts = {
        name: json.loads((annotations / "annotations" / name / "annotations.json").read_text("utf-8"))["annotations"][
            "annotations"
        ]
        for name in languages
    }
    items = []
    for row in json.loads((drawings / "emoji.json").read_text("utf-8")):
        character = "".join(chr(int(part, 16)) for part in row["unified"].split("-")).replace("\ufe0f", "")
        if row["has_img_twitter"] and row["category"] not in ("Component", "Flags") and all(
            character in texts[name] for name in languages
        ):
            items.append(
                {
                    "id": row["image"].removesuffix(".png"),
                    "label": row["subcategory"].replace("-", " "),
                    "texts": {name: texts[name][character] for name in languages},
                }
            )
    sizes = Counter(item["label"] for item in items)
    return [item for item in items if sizes[item["label"]] >= LEAST_OF_GROUP]


@torch.inference_mode()
def features_of(items: list[dict[str, Any]], drawings: Path, output: Path) -> np.ndarray:
    """`(N, 1280)` EfficientNet's largest values over the regions of each drawing, kept in a file."""
    path = output / "features.npz"
    if path.is_file():
        kept = np.load(path)
        of_id = dict(zip(kept["ids"].tolist(), kept["features"], strict=True))
    else:
        config = CMFAHConfig(backbone="tf_efficientnet_lite0", image_size=PIXELS)
        tower = CMFAHImageModel(config)
        weights = resolve_data_path("weights/efficientnet-lite/tf_efficientnet_lite0.safetensors")
        load_backbone_weights(tower, str(weights))
        mean, std = [0.49803922] * 3, [0.50196078] * 3
        extractor = RegionExtractor(tower, CMFAHProcessor.from_vocabulary(config, [], mean, std))
        of_id = {}
        for first in range(0, len(items), 32):
            rows = items[first : first + 32]
            images = [Image.open(drawings / "img/twitter/64" / f"{row['id']}.png") for row in rows]
            pixels = extractor.processor(images=images, return_tensors="pt")["pixel_values"]
            of_id |= {row["id"]: found for row, found in zip(rows, extractor.regions(pixels).max(1), strict=True)}
        output.mkdir(parents=True, exist_ok=True)
        np.savez(path, ids=list(of_id), features=np.stack(list(of_id.values())))
    return np.stack([of_id[item["id"]] for item in items]).astype(np.float32)


def write_pairs(items: list[dict[str, Any]], features_NC: np.ndarray, language: str, output: Path) -> Path:
    """A data set of one language: `train.parquet` and `query.parquet`."""
    folder = output / "data" / language
    folder.mkdir(parents=True, exist_ok=True)
    is_query = np.random.default_rng(0).permutation(len(items)) < QUERIES * len(items)
    for split, chosen in (("train", ~is_query), ("query", is_query)):
        rows = []
        for number in np.flatnonzero(chosen):
            item = items[number]
            texts = item["texts"][language]
            name = texts["tts"][0]
            text = name if split == "query" else ", ".join([name, *(k for k in texts["default"] if k != name)])
            rows.append(
                {"id": item["id"], "text": text, "labels": [item["label"]], "image_features": features_NC[number].tolist()}
            )
        datasets.Dataset.from_list(rows).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def measure(folder: Path, output: Path, language: str, rules: str, settings: dict, seed: int) -> list[dict[str, Any]]:
    run = output / "models" / language / rules / f"seed-{seed}"
    if not (run / "config.json").is_file():
        options = ["--dataset", str(folder), "--output_dir", str(run), "--seed", str(seed)]
        options += ["--data_seed", str(seed), *SMALL]
        for name, value in settings.items():
            options += [f"--{name}", value]
        train(parse_run(bundled_configuration("cmfah-photographs.yaml"), options))
    model, processor = CMFAHModel.from_pretrained(run), CMFAHProcessor.from_pretrained(run)
    splits = load_image_text(folder)
    found = []
    for unknown in ("ignore", "similar"):
        processor.unknown_words = unknown
        figures = evaluate_pairs(model, processor, splits["query"], splits["train"], instances=False)
        names = ("hamming/t2i/map", "hamming/i2t/map", "queries_without_known_words_share", "queries_unknown_words_share")
        found.append({"language": language, "rules": rules, "unknown": unknown, "seed": seed} | {n: figures[n] for n in names})
    return found


if __name__ == "__main__":
    main()
