"""Training by tag overlap and by pairs only, on data with and without labels."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics.pairwise import cosine_similarity

from cmfah_hf.data import load_image_text, load_scenes, train_validation_split, write_imagefolder
from cmfah_hf.errors import DataError
from cmfah_hf.evaluation import PAIR_METRICS, RetrievalEvaluator
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import bundled_configuration, parse_run, train
from cmfah_hf.training.evaluate import evaluate_folder, split_figures


def change_rows(folder, split, change):
    path = folder / split / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(change(number, row)) + "\n" for number, row in enumerate(rows)), "utf-8")


@pytest.fixture
def bare(scenes_folder, tmp_path):
    """The scenes without their labels, in both the training and the query split."""
    folder = tmp_path / "bare"
    shutil.copytree(scenes_folder, folder)
    for split in ("train", "query"):
        change_rows(folder, split, lambda _, row: {name: value for name, value in row.items() if name != "labels"})
    return folder


def average_precisions(similarity, relevant):
    """Average precision of each row, with ties in expectation: the mean over many random orders."""
    rng, found = np.random.default_rng(0), []
    for scores, own in zip(similarity, relevant, strict=True):
        values = []
        for _ in range(400):
            order = np.lexsort((rng.random(len(scores)), -scores))
            hits = own[order]
            values.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean() if hits.any() else 0.0)
        found.append(np.mean(values))
    return np.mean(found)


def codes(folder, pairs):
    retriever = CrossMediaRetriever.from_pretrained(folder)
    values = retriever.encode_images(pairs["image"]), retriever.encode_texts(pairs["text"])
    return [np.where(np.asarray(value) >= 0, 1.0, -1.0) for value in values]


def test_pairs_are_evaluated_by_the_rank_of_the_partner(run_of, bare, tmp_path):
    metrics = train(run_of("--similarity", "pairs", data={"dataset": str(bare), "validation_fraction": 0.3}))
    assert (metrics["similarity"], metrics["validation_relevance"]) == ("pairs", "pairs")
    assert "query" not in metrics
    queries = load_image_text(bare, split="query")
    image, text = codes(tmp_path / "out", queries)
    of_pairs = RetrievalEvaluator(PAIR_METRICS, (1, 5, 10), "hamming").pairs(image, text)
    assert {name: metrics["pairs"][name] for name in of_pairs} == pytest.approx(of_pairs, abs=1e-6)
    again = evaluate_folder(str(tmp_path / "out"), str(bare))
    assert split_figures(again)[1] == pytest.approx(metrics["pairs"], abs=1e-6)
    with pytest.raises(DataError, match="the split 'query' has no labels"):
        evaluate_folder(str(tmp_path / "out"), str(bare), protocol="paired")
    model = CMFAHForPreTraining.from_pretrained(tmp_path / "out")
    assert model.objective.label_head is None
    assert (model.config.num_labels, model.objective.settings.label_weight) == (0, 0)
    validation = train_validation_split(load_image_text(bare, split="train"), 0.3, seed=0)[1]
    image, text = codes(tmp_path / "out", validation)
    partner = np.eye(len(validation), dtype=bool)
    by_hand = (average_precisions(image @ text.T, partner) + average_precisions(text @ image.T, partner)) / 2
    assert metrics["validation"] == pytest.approx(by_hand, abs=0.02)


def test_tags_are_evaluated_by_the_overlap_of_expanded_texts(run_of, bare, tmp_path):
    metrics = train(run_of("--similarity", "tags", data={"dataset": str(bare), "validation_fraction": 0.3}))
    assert (metrics["similarity"], metrics["validation_relevance"]) == ("tags", "tags")
    threshold = CMFAHForPreTraining.from_pretrained(tmp_path / "out").config.objective["positive_overlap"]
    assert 0 < threshold < 1
    part, validation = train_validation_split(load_image_text(bare, split="train"), 0.3, seed=0)
    expander = GraphExpander.load(tmp_path / "out")
    words = [[set(expander.expand(text)) for text in pairs["text"]] for pairs in (part, validation)]
    vocabulary = sorted(set().union(*words[0]))
    counts = np.array([sum(word in own for own in words[0]) for word in vocabulary])
    weights = np.where((counts > 1) & (counts < len(part)), np.log(len(part) / counts), 0.0)
    train_tags, tags = (np.array([[w in own for w in vocabulary] for own in side]) * weights for side in words)
    relevant = cosine_similarity(tags, train_tags) > threshold
    assert 0 < relevant.mean() < 0.6
    (image_q, text_q), (image_db, text_db) = codes(tmp_path / "out", validation), codes(tmp_path / "out", part)
    by_hand = (
        average_precisions(image_q @ text_db.T, relevant) + average_precisions(text_q @ image_db.T, relevant)
    ) / 2
    assert metrics["validation"] == pytest.approx(by_hand, abs=0.02)


@pytest.mark.parametrize("similarity", ["tags", "pairs"])
def test_labels_affect_evaluation_but_not_training(run_of, scenes_folder, tmp_path, similarity):
    """Other labels on the training pairs may select another epoch; the model of the last epoch is the same."""
    other = tmp_path / "other"
    shutil.copytree(scenes_folder, other)
    change_rows(other, "train", lambda number, row: {**row, "labels": ["odd" if number % 2 else "even"]})
    outcomes = []
    for name, folder in (("one", scenes_folder), ("two", other)):
        arguments = ["--similarity", similarity, "--output_dir", str(tmp_path / name)]
        metrics = train(run_of(*arguments, "--query_split", "none", data={"dataset": str(folder)}))
        assert metrics["validation_relevance"] == "labels"
        outcomes.append((load_file(tmp_path / name / "model.safetensors"), metrics["validation"]))
    (one, first), (two, second) = outcomes
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert first != second


def test_missing_labels_are_reported_with_the_alternatives(run_of, bare):
    with pytest.raises(DataError, match="give --similarity tags or --similarity pairs, which need none"):
        train(run_of(data={"dataset": str(bare)}))
    with pytest.raises(ValueError, match="similarity is 'words'; choose one of labels, tags, pairs"):
        run_of("--similarity", "words")


def test_custom_threshold(run_of, bare, tmp_path):
    train(run_of("--similarity", "tags", "--positive_overlap", "0.75", data={"dataset": str(bare)}))
    assert CMFAHForPreTraining.from_pretrained(tmp_path / "out").config.objective["positive_overlap"] == 0.75
    with pytest.raises(ValueError, match="positive_overlap is 1; give a cosine from 0 to below 1"):
        train(run_of("--positive_overlap", "1"))


def test_resumed_run_by_tags_matches_the_uninterrupted_one(run_of, bare, tmp_path):
    arguments = ["--similarity", "tags", "--num_train_epochs", "2"]
    train(run_of(*arguments, "--output_dir", str(tmp_path / "whole"), data={"dataset": str(bare)}))
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    last = max((tmp_path / "broken").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    shutil.rmtree(last)
    resumed = ["--output_dir", str(tmp_path / "broken"), "--resume_from_checkpoint", "last"]
    train(run_of(*arguments, *resumed, data={"dataset": str(bare)}))
    names = ("whole", "broken")
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in names}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["tags", "pairs"])
def test_without_labels_scenes_are_retrieved_far_better_than_at_random(tmp_path, datasets_cache, similarity):
    folder = write_imagefolder(load_scenes(300, 100, image_size=48), tmp_path / "scenes")
    metrics = train(
        parse_run(
            bundled_configuration("cmfah-scenes.yaml"),
            [
                *("--dataset", str(folder), "--output_dir", str(tmp_path / "out"), "--similarity", similarity),
                *("--num_train_epochs", "6", "--image_size", "32", "--disable_tqdm", "true", "--use_cpu", "true"),
            ],
        )
    )
    figures = metrics["query"]
    for direction in ("i2t", "t2i"):
        assert figures[f"hamming/{direction}/map"] > 1.4 * figures["random/map"]
