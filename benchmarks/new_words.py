"""Searches photographs by single words that no training caption has.

    python benchmarks/new_words.py RUNS --output docs/results/new-words.json

RUNS is the output of `cmfah experiment run experiments/photographs-minilm`, with runs of `cmfah/both`
(MiniLM) and `words/both` (word vectors). Every word is a query, and an image is relevant if it has one of the
classes that the word means. `seen`: the training images and those of the query split are searched. `unseen`: those of
the held-out database and the query split, on which nothing was trained.

If CMFAH_TEXT_ENCODER names a multilingual text encoder, a model is trained with it and asked in German and Chinese too.

Shapes: `Q` words, `N` images, `K` bits, `C` classes.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import datasets
import torch
from rich.console import Console
from rich.table import Table

from cmfah_hf.atomic import write_text
from cmfah_hf.errors import CMFAHError
from cmfah_hf.evaluation.labels import encode_labels
from cmfah_hf.evaluation.levels import count_relevant, hamming_levels
from cmfah_hf.evaluation.metrics import precision_at_k
from cmfah_hf.experiments.report import document_of, summarize
from cmfah_hf.experiments.results import Result
from cmfah_hf.hub.model_folder import SETTINGS_NAME
from cmfah_hf.models.tokenization_cmfah import split_words
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.retrieval.codes import pack
from cmfah_hf.training import bundled_configuration, parse_run, train
from cmfah_hf.training.data.pairs import Pairs, read_pairs
from cmfah_hf.training.evaluate import encode_pairs
from cmfah_hf.training.settings.arguments import PROTOCOLS

DEPTH = 10
# Words by the classes that they mean, chosen before any result was seen.
WORDS = {
    "car": "automobile sedan limousine hatchback cabriolet jeep coupe minivan roadster limo motorcar chauffeur",
    "truck": "lorry dumper haulage trucker",
    "bench": "pew",
    "cat": "feline tomcat tabby siamese purring",
    "bus": "omnibus trolleybus minibus",
    "dog": "canine hound poodle terrier labrador beagle dachshund bulldog spaniel retriever chihuahua collie mutt pup "
    "rottweiler greyhound husky dalmatian doggy",
    "train": "monorail freight caboose",
    "traffic light": "stoplight semaphore",
    "horse": "mare stallion foal equine colt steed gelding bronco thoroughbred jockey filly cavalry",
    "motorcycle": "motorbike moped harley biker",
    "bicycle": "velocipede cyclist pedaling tandem bmx tricycle",
    "airplane": "aeroplane aviation cockpit boeing fuselage seaplane",
    "bird": "parrot sparrow eagle owl pigeon pelican finch heron songbird hummingbird flamingo raven fowl dove avian "
    "robin woodpecker peacock",
    "boat": "yacht ferry kayak vessel dinghy catamaran schooner rowboat barge gondola tugboat watercraft nautical",
    "fire hydrant": "fireplug",
    "cat, dog": "pet pets",
    "cat, dog, horse": "mammal mammals",
}
# The same classes in other languages, for a multilingual text encoder; without words that captions have, such as Bank.
TRANSLATED = {
    "de": {
        "car": "Auto, Limousine, Kombi, Geländewagen, Cabrio",
        "truck": "Lastwagen, Laster, LKW",
        "bench": "Sitzbank, Parkbank, Gartenbank",
        "cat": "Katze, Kätzchen, Kater, Stubentiger",
        "bus": "Omnibus, Reisebus, Linienbus",
        "dog": "Hund, Welpe, Dackel, Pudel, Schäferhund, Windhund",
        "train": "Zug, Eisenbahn, Lokomotive, Güterzug",
        "traffic light": "Ampel, Verkehrsampel",
        "horse": "Pferd, Fohlen, Stute, Hengst, Reiter",
        "motorcycle": "Motorrad, Mofa, Moped, Kraftrad",
        "bicycle": "Fahrrad, Radfahrer, Rennrad, Dreirad",
        "airplane": "Flugzeug, Düsenflugzeug, Passagierflugzeug, Doppeldecker",
        "bird": "Vogel, Papagei, Spatz, Adler, Eule, Taube, Möwe",
        "boat": "Boot, Schiff, Segelboot, Kahn, Jacht, Fähre",
        "stop sign": "Stoppschild",
        "fire hydrant": "Feuerhydrant",
        "parking meter": "Parkuhr",
        "cat, dog": "Haustier",
        "cat, dog, horse": "Säugetier",
    },
    "zh": {
        "car": "汽车, 轿车, 吉普车, 敞篷车",
        "truck": "卡车, 货车",
        "bench": "长椅, 长凳",
        "cat": "猫, 小猫, 猫咪",
        "bus": "公共汽车, 巴士, 公交车",
        "dog": "狗, 小狗, 猎犬, 贵宾犬, 犬",
        "train": "火车, 列车, 机车",
        "traffic light": "红绿灯, 交通灯",
        "horse": "马, 小马, 骏马, 骑手",
        "motorcycle": "摩托车, 机车手",
        "bicycle": "自行车, 单车, 脚踏车",
        "airplane": "飞机, 客机, 喷气机",
        "bird": "鸟, 鹦鹉, 麻雀, 老鹰, 猫头鹰, 鸽子",
        "boat": "船, 帆船, 游艇, 渡轮, 独木舟",
        "stop sign": "停车标志",
        "fire hydrant": "消防栓",
        "parking meter": "停车计时器",
        "cat, dog": "宠物",
        "cat, dog, horse": "哺乳动物",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="output of `cmfah experiment run`")
    parser.add_argument("--methods", nargs="+", default=["cmfah/both", "words/both"], help="methods and variants")
    parser.add_argument("--output", type=Path, help="a file for the figures, as JSON")
    own = parser.parse_args()
    results = []
    for folder in sorted(own.runs.glob("runs/*/*/*/*-bits/*/seed-*")):
        if "/".join(folder.parts[-5:-3]) in own.methods and (folder / SETTINGS_NAME).is_file():
            results += list(results_of(folder, "en"))
    if encoder := os.environ.get("CMFAH_TEXT_ENCODER"):
        for folder, language in product(multilingual(own.runs, encoder), ("en", *TRANSLATED)):
            results += list(results_of(folder, language))
    else:
        print("Skipped: German and Chinese, because CMFAH_TEXT_ENCODER names no text encoder.")  # noqa: T201
    if not results:
        raise SystemExit(f"{own.runs}: there are no finished runs of {', '.join(own.methods)}.")
    print_table(results)
    if own.output is not None:
        document = json.loads(document_of(summarize(results)))
        lines = ",\n".join(json.dumps(figure) for figure in document.pop("figures"))
        head = json.dumps({"script": "benchmarks/new_words.py", **document})[:-1]
        write_text(own.output, f'{head},\n"figures": [\n{lines}\n]}}\n', CMFAHError)


def multilingual(runs: Path, encoder: str) -> list[Path]:
    """The folders of models with another text encoder, one of each protocol, which are trained if they are missing."""
    folders = []
    for protocol in PROTOCOLS:
        folder = runs / "runs" / "coco-pairs" / "multilingual" / "both" / "64-bits" / protocol / "seed-0"
        if not (folder / SETTINGS_NAME).is_file():
            settings = ["--text_backbone", encoder, "--protocol", protocol, "--output_dir", str(folder)]
            settings += ["--hash_bits", "64", "--seed", "0"]
            train(parse_run(bundled_configuration("minilm-coco-pairs.yaml"), settings))
        folders.append(folder)
    return folders


def queries(language: str) -> tuple[list[str], list[list[str]]]:
    """The words of a language, and the classes that each means."""
    if language == "en":
        pairs = [(word, meaning) for meaning, words in WORDS.items() for word in words.split()]
    else:
        pairs = [(word, meaning) for meaning, words in TRANSLATED[language].items() for word in words.split(", ")]
    return [word for word, _ in pairs], [meaning.split(", ") for _, meaning in pairs]


def words_in_captions(words: Sequence[str], captions: Sequence[str]) -> list[str]:
    """Those of the words that a caption has."""
    used = {part for caption in captions for part in split_words(caption)}
    return [word for word in words if used.intersection(split_words(word))]


def searched(pairs: Pairs, protocol: str) -> datasets.Dataset:
    """The photographs that are searched."""
    database = pairs.splits["database"] if protocol == "unseen" else pairs.all
    return datasets.concatenate_datasets([database, pairs.splits["query"]])


@torch.inference_mode()
def results_of(folder: Path, language: str) -> Iterator[Result]:
    """Precision of the words of a language by a trained model, and of a random ranking."""
    data, method, variant, size, protocol, seed = folder.parts[-6:]
    with tempfile.TemporaryDirectory() as temporary:
        pairs = read_pairs(parse_run(folder / SETTINGS_NAME, ["--output_dir", temporary]), Path(temporary))
    words, meanings = queries(language)
    if found := words_in_captions(words, pairs.all["text"]):
        raise SystemExit(f"{folder}: training captions have {', '.join(found)}.")
    images = searched(pairs, protocol)
    retriever = CrossMediaRetriever.from_pretrained(folder)
    processor = retriever.processor
    codes_NK = encode_pairs(retriever.model, processor, images, "text").images
    codes_QK = retriever.model.get_text_hash(**processor(text=words, return_tensors="pt")).float().numpy()
    labels_QC, labels_NC = encode_labels(meanings, images["labels"])
    counts = hamming_levels(pack(codes_QK), pack(codes_NK), labels_QC, labels_NC)
    values = {
        "hamming": precision_at_k(*counts, (DEPTH,)).mean(),
        "random": (count_relevant(labels_QC, labels_NC) / len(labels_NC)).mean(),
    }
    title = f"{method}/{variant}, {language}, {sum(map(processor.has_known_tokens, words))} of {len(words)} words known"
    for ranking, value in values.items():
        yield Result(
            *(str(folder), data, method, f"{variant}-{language}", title, int(size.partition("-")[0]), protocol),
            *(int(seed.partition("-")[2]), "query", protocol, "single", ranking, "t2i", f"precision@{DEPTH}"),
            *(float(value), 0.0, "{}", "{}"),
        )


def print_table(results: Sequence[Result]) -> None:
    table = Table("model", "searched", "ranking", f"precision@{DEPTH}", title="Words that no training caption has")
    for one in summarize(results):
        spread = "" if one.spread is None else f" ± {one.spread:.3f}"
        table.add_row(one.of["title"], one.of["protocol"], one.of["ranking"], f"{one.mean:.3f}{spread}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
