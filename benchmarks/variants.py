"""CMFAH's variants of attention, or SCAHN without each of its parts: each modality alone, and with its partner.

    python benchmarks/variants.py hub_configs/cmfah-coco-pairs.yaml --output runs/variants --reference \
        --variants both image text none
    python benchmarks/variants.py hub_configs/cmfah-coco-pairs.yaml --output runs/choices --on validation \
        --variants both none --image_temperature 10
    python benchmarks/variants.py hub_configs/scahn-coco-pairs.yaml --output runs/scahn \
        --cmfah hub_configs/cmfah-coco-pairs.yaml

The method is the configuration's, and with it the variants that there are. `--cmfah` adds CMFAH to those of SCAHN, from
a configuration of its own, beside the variant `own` also without what this project adds to both papers' losses. The
words of the first run serve all others.

With `--on validation` the test queries are not looked at; without it the validation pairs' figures, by which the epochs
were chosen, are printed beside those of the queries. Every run leaves its model and its figures in a folder of
its own below the output, and one that is there already is not run again; so this resumes, and prints the tables anew.
Any argument of `cmfah train` can follow. `--reference` adds the real-valued logistic regression of the same frozen
regions and of the words, one classifier a class, which ranks by the cosine of its posteriors.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cmfah_hf.data import encode_labels, load_image_text
from cmfah_hf.evaluation.metrics import mean_average_precision
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import keep_regions, parse_run, train
from cmfah_hf.training.evaluate import evaluate_folder

# What this project adds to the papers' losses.
WITHOUT_OURS = ["--label_weight", "0", "--concept_weight", "0", "--similarity_weight", "0"]
WITHOUT_HINGES = [
    argument for side in ("intra", "inter") for of in ("feature", "hash") for argument in (f"--{side}_{of}_weight", "0")
]
# By method and name: what stands in the table, and the arguments.
VARIANTS = {
    "cmfah": {
        "both": ("CMFAH", ["--attention", "both"]),
        "image": ("CMFAH-ia", ["--attention", "image"]),
        "text": ("CMFAH-ta", ["--attention", "text"]),
        "none": ("CMFAH-ca", ["--attention", "none"]),
        "own": ("CMFAH, the paper's terms alone", WITHOUT_OURS),
    },
    "scahn": {
        "full": ("SCAHN", []),
        "no-graph": ("without the label graph", ["--use_label_graph", "false"]),
        "no-cross": ("without contrast across", ["--use_cross_contrast", "false"]),
        "no-intra": ("without contrast within", ["--use_intra_contrast", "false"]),
        "features": ("opponents on features alone", ["--adversarial", "features"]),
        "hash": ("opponents on hash values alone", ["--adversarial", "hash"]),
        "no-opponents": ("without opponents", ["--adversarial", "none"]),
        "no-attention": ("without attention", ["--attention", "none"]),
        "no-hinges": ("without CMFAH's hinges", WITHOUT_HINGES),
        "own": (
            "SCAHN, its own terms alone",
            [
                *(*WITHOUT_OURS, *WITHOUT_HINGES),
                *("--label_graph_weight", "1", "--cross_contrast_weight", "1", "--intra_contrast_weight", "1"),
            ],
        ),
    },
}
TITLES = {
    "validation": "MAP on validation pairs, one modality at a time",
    "single": "MAP on the test queries, one modality at a time",
    "paired": "MAP on the test queries, each encoded WITH its partner",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="The folder of all runs.")
    parser.add_argument("--variants", nargs="+", choices=[name for names in VARIANTS.values() for name in names])
    parser.add_argument("--cmfah", type=Path, help="CMFAH's configuration, whose figures stand beside SCAHN's.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--on", choices=("query", "validation"), default="query")
    parser.add_argument("--reference", action="store_true", help="The logistic regression beside it.")
    own, further = parser.parse_known_args()
    if own.on == "validation":
        further += ["--query_split", "none", "--refit", "false"]

    method = parse_run(own.config, further).method
    variants = VARIANTS[method]
    if strange := set(own.variants or ()) - set(variants):
        parser.error(f"{own.config} is of {method}, which has no variant {sorted(strange)[0]!r}")
    chosen = {name: (own.config, *variants[name]) for name in own.variants or variants}
    if own.cmfah is not None:
        chosen["cmfah"] = (own.cmfah, "CMFAH", ["--method", "cmfah"])
        if "own" in chosen:
            title, changes = VARIANTS["cmfah"]["own"]
            chosen["cmfah-own"] = (own.cmfah, title, ["--method", "cmfah", *changes])

    figures: dict[str, dict[str, list[dict[str, float]]]] = {}
    words = None  # of the first run: they depend on neither the variant nor the seed
    for variant, (config, _, changes) in chosen.items():
        for seed in own.seeds:
            folder = own.output / f"{variant}-seed-{seed}"
            arguments = ["--output_dir", str(folder), *changes, "--seed", str(seed)]
            run = parse_run(config, [*arguments, *(["--words_from", str(words)] if words else []), *further])
            for title, figure in measured(run, folder, own.on).items():
                figures.setdefault(title, {}).setdefault(variant, []).append(figure)
            words = words or folder.absolute()
    for title, found_by_variant in figures.items():
        table = Table(title=f"{TITLES[title]}; Hamming, ties in expectation; {len(own.seeds)} seeds")
        for column in ("variant", "image -> text", "text -> image", "mean", "random"):
            table.add_column(column, justify="left" if column == "variant" else "right")
        for variant, found in found_by_variant.items():
            columns = ([figure[name] for figure in found] for name in ("i2t", "t2i", "mean", "random"))
            table.add_row(f"{chosen[variant][1]} ({variant})", *(mean_and_spread(values) for values in columns))
        if own.reference and title == "single":
            i2t, t2i = logistic_regression(words, run.data)
            table.add_row("logistic regression (real-valued)", f"{i2t:.3f}", f"{t2i:.3f}", f"{(i2t + t2i) / 2:.3f}", "")
        Console(width=120).print(table)


def measured(run, folder: Path, on: str) -> dict[str, dict[str, float]]:
    """The figures of a run by protocol, from its folder where they are there, else after training."""
    metrics_file, paired_file = folder / "metrics.json", folder / "paired.json"
    if not metrics_file.is_file():
        train(run)
    # The best epoch's, as it was logged.
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    best = max((log for log in state["log_history"] if "eval_map" in log), key=lambda log: log["eval_map"])
    names = {"i2t": "eval_map_i2t", "t2i": "eval_map_t2i", "mean": "eval_map", "random": "eval_map_random"}
    figures = {"validation": {name: best[logged] for name, logged in names.items()}}
    if on == "validation":
        return figures
    if not paired_file.is_file():
        found = evaluate_folder(str(folder), run.data.dataset, protocol="paired")
        paired_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    single, paired = (json.loads(path.read_text(encoding="utf-8")) for path in (metrics_file, paired_file))
    return {**figures, "single": of_hamming(single["query"]), "paired": of_hamming(paired)}


def of_hamming(found: dict[str, float]) -> dict[str, float]:
    i2t, t2i = found["hamming/i2t/map"], found["hamming/t2i/map"]
    return {"i2t": i2t, "t2i": t2i, "mean": (i2t + t2i) / 2, "random": found["random/map"]}


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(set(values)) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def logistic_regression(model: Path, data) -> tuple[float, float]:
    """MAP of both directions by the cosine of real-valued class posteriors, `(image -> text, text -> image)`.

    Pictures: the mean of their regions, of length 1, C = 1. Texts: binary words that two texts have, English stop words
    out, C = 10. Nothing of it is hashed.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    retriever = CrossMediaRetriever.from_pretrained(str(model))
    loaded = load_image_text(data.dataset)
    splits = [loaded[name] for name in (data.train_split, data.query_split)]
    regions = [keep_regions(pairs, retriever.model.image_model, retriever.processor) for pairs in splits]
    classes = sorted({label for labels in splits[0]["labels"] for label in labels})
    labels_NC, labels_QC = (encode_labels(pairs["labels"], classes) > 0 for pairs in splits)
    means = [np.asarray(pairs["region_features"], dtype=np.float32).mean(axis=1) for pairs in regions]
    counter = CountVectorizer(binary=True, min_df=2, stop_words="english").fit(splits[0]["text"])
    inputs = {
        "image": [of_length_one(mean) for mean in means],
        "text": [counter.transform(pairs["text"]) for pairs in splits],
    }
    posteriors = {}
    for modality, c in (("image", 1.0), ("text", 10.0)):
        database, queries = inputs[modality]
        fitted = [LogisticRegression(C=c, max_iter=1000).fit(database, labels_N) for labels_N in labels_NC.T]
        posteriors[modality] = [
            of_length_one(np.stack([one.predict_proba(x)[:, 1] for one in fitted], axis=1)) for x in (database, queries)
        ]
    relevant_QN = labels_QC.astype(int) @ labels_NC.T.astype(int) > 0
    return tuple(
        mean_average_precision(posteriors[query][1] @ posteriors[found][0].T, relevant_QN, tie_tolerance=1e-6)
        for query, found in (("image", "text"), ("text", "image"))
    )


def of_length_one(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


if __name__ == "__main__":
    main()
