"""A trained model as MTEB's encoder: MTEB's checks of models, its mock tasks, and tasks of scenes and photographs."""

import inspect
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cmfah_hf.cli import main
from cmfah_hf.data import load_image_text
from cmfah_hf.errors import CMFAHError, DataError, QueryError
from cmfah_hf.evaluation.mteb import MTEBEncoder, load_task, retrieval_tasks
from cmfah_hf.hub.card_mteb import read_mteb
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex


def test_without_the_library_one_line_says_what_to_install(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    for call in (lambda: MTEBEncoder(trained.folder), lambda: retrieval_tasks("scenes"), lambda: load_task("x")):
        with pytest.raises(CMFAHError, match=r"pip install 'cmfah-hf\[mteb\]'"):
            call()


@pytest.fixture(scope="module")
def mteb():
    """The library, which takes seconds to import."""
    import mteb

    return mteb


@pytest.fixture(scope="module", params=["aqd", "hamming"])
def encoder(request, trained, mteb):
    return MTEBEncoder(trained.folder, device="cpu", metric=request.param)


def evaluated(mteb, encoder, task):
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    return result.task_results[0]


@pytest.mark.slow
def test_the_model_passes_the_checks_of_models(encoder, trained, mteb):
    from mteb.models import EncoderProtocol
    from mteb.models.model_meta import ModelMeta

    assert isinstance(encoder, EncoderProtocol)
    for name in ("__init__", "encode", "similarity", "similarity_pairwise"):
        ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (MTEBEncoder, EncoderProtocol))
        assert set(theirs) <= set(ours), name
        assert all(ours[each].kind == theirs[each].kind for each in theirs), name
    meta = encoder.mteb_model_meta
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    assert (meta.name, meta.revision) == ("local/model", retriever.fingerprint)
    assert meta.modalities == ["image", "text"]
    assert (meta.embed_dim, meta.similarity_fn_name.value, meta.model_type) == (16, "dot", ["dense"])
    assert meta.n_parameters == sum(tensor.numel() for tensor in retriever.model.parameters())
    assert 0 < meta.n_embedding_parameters < meta.n_parameters
    assert meta.memory_usage_mb == pytest.approx(meta.n_parameters * 4 / 2**20)
    assert meta.get_training_datasets() is None
    assert meta.name != meta.adapted_from
    assert len({meta, meta.model_copy(deep=True)}) == 1
    assert str(trained.folder) not in json.dumps(meta.to_dict(), default=str)
    assert ModelMeta.model_validate_json_resolved(json.dumps(meta.to_dict(), default=str)).revision == meta.revision
    again = meta.load_model(device="cpu")  # in the way of MTEB's own command
    assert (again.metric, again.mteb_model_meta.experiment_kwargs) == (encoder.metric, meta.experiment_kwargs)
    assert again.encoder.fingerprint == retriever.fingerprint


@pytest.mark.slow
def test_mock_tasks_of_mteb_run(encoder, mteb):
    from mteb.mocks import mock_tasks as mocks

    names = (
        "MockAny2AnyRetrievalI2TTask", "MockAny2AnyRetrievalT2ITask", "MockRetrievalTask",
        "MockImageTextPairClassificationTask", "MockImageClassificationTask",
    )  # fmt: skip
    for name in names:
        result = evaluated(mteb, encoder, getattr(mocks, name)())
        assert np.isfinite(result.get_score()), name
    with pytest.raises(ValueError, match="none overlap"):
        evaluated(mteb, encoder, mocks.MockAudioClassification())


@pytest.mark.slow
def test_scores_are_those_of_a_search(encoder, trained):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder, device="cpu")
    rows = load_image_text(trained.scenes, split="query")
    images, texts = retriever.encode_images(rows["image"]), retriever.encode_texts(rows["text"])
    task = retrieval_tasks(trained.scenes)[0].metadata
    options = {"task_metadata": task, "hf_split": "query", "hf_subset": "default"}
    queries = encoder.encode([{"text": rows["text"][:5]}, {"text": rows["text"][5:]}], prompt_type="query", **options)
    documents = encoder.encode([{"image": rows["image"]}], prompt_type="document", **options)
    scores = encoder.similarity(queries, documents).numpy()
    index = HashIndex(16)
    index.add(images)
    found = index.search(texts, k=len(rows), metric=encoder.metric)
    expected = np.take_along_axis(scores, found.ids.astype(int), axis=1)
    if encoder.metric == "hamming":
        expected = (16 - expected) / 2
    np.testing.assert_array_equal(expected, found.scores)
    pairwise = encoder.similarity_pairwise(torch.from_numpy(queries), documents)
    assert pairwise.numpy() == pytest.approx(np.diag(scores), abs=1e-5)
    symmetric = encoder.encode([{"text": rows["text"]}], **options)
    assert (set(np.unique(symmetric)) == {-1, 1}) == (encoder.metric == "hamming")
    pairs = encoder.encode([{"text": rows["text"], "image": rows["image"]}], prompt_type="query", **options)
    sides = retriever.encode_pairs(rows["image"], rows["text"])
    expected = (sides[0] + sides[1]) / 2
    if encoder.metric == "hamming":
        np.testing.assert_array_equal(pairs, np.where(expected >= 0, 1, -1))
    else:
        assert pairs == pytest.approx(expected, abs=2**-14)
    assert encoder.encode([], **options).shape == (0, 16)
    with pytest.raises(QueryError, match="A batch has audio, and neither texts nor images"):
        encoder.encode([{"audio": [1]}], **options)


def ndcg_and_first(scores, names, relevant):
    """nDCG at 10 and the hit rate at 1, ties by the larger name first, as MTEB's library of metrics has it."""
    gains, firsts = [], []
    for row, own in zip(scores, relevant, strict=True):
        order = sorted(range(len(names)), key=lambda item: (row[item], names[item]), reverse=True)
        hits = np.array([names[item] in own for item in order[:10]], float)
        discounts = 1 / np.log2(np.arange(2, 12))
        gains.append(hits @ discounts[: len(hits)] / discounts[: min(10, len(own))].sum())
        firsts.append(hits[0])
    return np.mean(gains), np.mean(firsts)


@pytest.mark.slow
@pytest.mark.parametrize("relevance", ["pairs", "labels"])
def test_figures_of_own_tasks_are_as_computed_by_hand(encoder, trained, mteb, relevance):
    rows = load_image_text(trained.scenes, split="query")
    tasks = retrieval_tasks(trained.scenes, relevance=relevance, name="Scenes")
    stem = "Scenes" if relevance == "pairs" else "ScenesLabels"
    assert [task.metadata.name for task in tasks] == [f"{stem}T2IRetrieval", f"{stem}I2TRetrieval"]
    values = {
        "text": encoder.encoder.encode_texts(rows["text"]),
        "image": encoder.encoder.encode_images(rows["image"]),
    }
    for task, (query, document) in zip(tasks, (("text", "image"), ("image", "text")), strict=True):
        signs = np.where(values[document] >= 0, 1.0, -1.0)
        asked = np.rint(values[query] * 2**14) / 2**14
        scores = (np.where(values[query] >= 0, 1.0, -1.0) if encoder.metric == "hamming" else asked) @ signs.T
        groups = rows["labels"] if relevance == "labels" else [[name] for name in rows["id"]]
        relevant = [
            {name for name, other in zip(rows["id"], groups, strict=True) if set(own) & set(other)} for own in groups
        ]
        expected = ndcg_and_first(scores, rows["id"], relevant)
        found = evaluated(mteb, encoder, task).scores["query"][0]
        assert found["main_score"] == pytest.approx(expected[0], abs=1e-5)
        assert found["hit_rate_at_1"] == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.slow
def test_each_caption_is_a_text_of_its_own(trained, mteb):
    import datasets

    rows = load_image_text(trained.scenes, split="query").select(range(3))
    rows = rows.add_column("captions", [["a sun", "a boat"], ["a tree"], []])
    rows = rows.remove_columns("labels").add_column("labels", [["x"], ["x", "y"], []])
    by_pairs, by_labels = (
        retrieval_tasks(datasets.DatasetDict({"query": rows}), relevance=how) for how in ("pairs", "labels")
    )
    first, second, third = rows["id"]
    for task in (*by_pairs, *by_labels):
        task.load_data()
    found = by_pairs[0].dataset["default"]["query"]
    assert found["queries"]["id"] == [f"{first}#0", f"{first}#1", second, third]
    assert found["queries"]["text"][:3] == ["a sun", "a boat", "a tree"]
    assert found["relevant_docs"] == {
        f"{first}#0": {first: 1},
        f"{first}#1": {first: 1},
        second: {second: 1},
        third: {third: 1},
    }
    back = by_pairs[1].dataset["default"]["query"]
    assert back["relevant_docs"][first] == {f"{first}#0": 1, f"{first}#1": 1}
    labeled = by_labels[1].dataset["default"]["query"]
    assert labeled["queries"]["id"] == [first, second]  # the third has no label
    assert labeled["relevant_docs"][second] == {f"{first}#0": 1, f"{first}#1": 1, second: 1}
    assert labeled["corpus"]["id"][-1] == third


@pytest.mark.slow
def test_sources_without_such_tasks_are_refused(trained, mteb):
    rows = load_image_text(trained.scenes)
    for given, reason in (
        ((rows, "validation"), "no split 'validation'; there are"),
        ((rows["query"].remove_columns("image"),), "no column 'image'"),
        ((rows["query"].remove_columns("labels"), "query", "labels"), "no labels, which define relevance"),
    ):
        with pytest.raises(DataError, match=reason):
            retrieval_tasks(*given)
    with pytest.raises(QueryError, match="no relevance 'words'"):
        retrieval_tasks(rows, relevance="words")
    with pytest.raises(QueryError, match="no ranking 'cosine'"):
        MTEBEncoder(trained.folder, metric="cosine")
    with pytest.raises(QueryError, match="Flickr30kT2I: MTEB has no task of this name"):
        load_task("Flickr30kT2I")


@pytest.mark.slow
def test_the_public_tasks_of_the_pages_exist(mteb):
    from pages.blocks import DOCS

    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b\w+(?:T2I|I2T)Retrieval\b", text))
    names = {name for name in named if not name.startswith(("Scenes", "Coco"))}
    for name in names:
        assert set(load_task(name).metadata.modalities) == {"image", "text"}, name
    assert {"Flickr30kT2IRetrieval", "MSCOCOI2TRetrieval", "XM3600T2IRetrieval", "WITI2TRetrieval"} <= names


@pytest.mark.slow
def test_the_command_runs_tasks_and_keeps_results_for_the_card(trained, mteb, tmp_path, capsys):
    arguments = ["mteb", str(trained.folder), "--data", str(trained.scenes), "--output", str(tmp_path)]
    for metric in ("aqd", "hamming"):
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--metric", metric, "--json"])
        assert left.value.code in (0, None)
        printed = json.loads(capsys.readouterr().out)
        fingerprint = CrossMediaRetriever.from_pretrained(trained.folder).fingerprint
        kept = {one.task: one for one in read_mteb(tmp_path, fingerprint) if one.ranking == metric}
        assert [one["task"] for one in printed] == ["PairsT2IRetrieval", "PairsI2TRetrieval"]
        for one in printed:
            assert one["figures"] == pytest.approx(kept[one["task"]].figures, abs=1e-5)
            assert kept[one["task"]].version == mteb.__version__
    with pytest.raises(SystemExit) as left:
        main(["mteb", str(trained.folder)])
    assert left.value.code == 2
    assert "Nothing to run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.photographs
def test_photographs_as_tasks(trained, mteb):
    rows = load_image_text(Path(os.environ["CMFAH_DATA"]) / "data" / "coco-pairs", split="query").select(range(40))
    encoder = MTEBEncoder(trained.folder, device="cpu")
    for task in retrieval_tasks(rows, relevance="labels", name="Photographs"):
        scores = evaluated(mteb, encoder, task).scores["query"][0]
        assert 0 < scores["ndcg_at_10"] < 1
