"""Results of MTEB in the card of a pushed model, and folders without results of it."""

import json
import re

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from cmfah_hf.cli import main
from cmfah_hf.errors import HubError
from cmfah_hf.hub.card_mteb import read_mteb
from cmfah_hf.retrieval import CrossMediaRetriever

SCORES = {"ndcg_at_10": 0.4321, "hit_rate_at_1": 0.25, "recall_at_10": 0.5, "map_at_10": 0.1, "main_score": 0.4321}


def write_results(root, revision, metric=None, fingerprint=None, **tasks):
    """Results as MTEB writes them: below the model's name and revision, those with arguments in `experiments`."""
    folder = root / "results" / "local__model" / revision
    if metric is not None:
        folder = folder / "experiments" / f"metric_{metric}"
    folder.mkdir(parents=True)
    arguments = None if metric is None else {"metric": metric}
    meta = {"name": "local/model", "revision": revision, "experiment_kwargs": arguments}
    (folder / "model_meta.json").write_text(json.dumps(meta))
    if fingerprint is not None:
        (folder / "cmfah.json").write_text(json.dumps({"fingerprint": fingerprint}))
    for task, subsets in tasks.items():
        scores = {"test": [{**SCORES, "hf_subset": subset, **changes} for subset, changes in subsets.items()]}
        content = {"task_name": task, "mteb_version": "2.26", "scores": scores}
        (folder / f"{task}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def fingerprint(trained):
    return CrossMediaRetriever.from_pretrained(trained.folder, device="cpu").fingerprint


def test_results_of_the_model_are_in_its_card(push_run, trained, fingerprint, tmp_path):
    write_results(tmp_path, fingerprint, OwnT2IRetrieval={"default": {}}, XM3600T2IRetrieval={"de": {}, "fr": {}})
    write_results(tmp_path, fingerprint, "hamming", OwnT2IRetrieval={"default": {"hit_rate_at_1": 0.125}})
    write_results(tmp_path, "f" * 32, OwnT2IRetrieval={"default": {"ndcg_at_10": 0.9999}})
    push_run(trained.folder, mteb_results=tmp_path)
    card = ModelCard.load("org/model")
    rows = {tuple(re.findall(r"[^|`\s][^|`]*", row)[:3]): row for row in card.text.splitlines() if "Retrieval" in row}
    rows = {tuple(cell.strip() for cell in key): row for key, row in rows.items()}
    assert set(rows) == {
        ("OwnT2IRetrieval", "test", "aqd"),
        ("OwnT2IRetrieval", "test", "hamming"),
        ("XM3600T2IRetrieval (de)", "test", "aqd"),
        ("XM3600T2IRetrieval (fr)", "test", "aqd"),
    }
    assert rows["OwnT2IRetrieval", "test", "aqd"].endswith("| .432 | .250 | .500 |")
    assert rows["OwnT2IRetrieval", "test", "hamming"].endswith("| .432 | .125 | .500 |")
    assert "By [MTEB](https://github.com/embeddings-benchmark/mteb) `2.26`:" in card.text
    _, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    found = {
        (one.dataset_name, one.metric_type, one.metric_args["ranking"]): one.metric_value
        for one in results
        if one.source_name == "MTEB"
    }
    assert len(found) == 4 * 3
    assert found["MTEB OwnT2IRetrieval", "hit_rate_at_1", "hamming"] == 0.125
    assert found["MTEB XM3600T2IRetrieval (fr)", "ndcg_at_10", "aqd"] == 0.4321
    assert {one.metric_type for one in results if one.source_name != "MTEB"} == {"mean_average_precision"}
    assert "mteb-results" not in card.content
    assert str(tmp_path) not in card.content


def test_results_of_other_models_are_refused(push_run, trained, tmp_path):
    with pytest.raises(HubError, match="no results of MTEB of this model; run `cmfah mteb` first"):
        push_run(trained.folder, mteb_results=tmp_path)
    write_results(tmp_path, "f" * 32, OwnT2IRetrieval={"default": {}})
    with pytest.raises(HubError, match="those there are of 1 other models"):
        push_run(trained.folder, mteb_results=tmp_path)


def test_a_model_on_the_hub_is_known_by_its_fingerprint(tmp_path):
    write_results(tmp_path, "c" * 40, fingerprint="a", OwnT2IRetrieval={"default": {}})
    write_results(tmp_path, "d" * 40, fingerprint="b", OwnI2TRetrieval={"default": {}})
    write_results(tmp_path, "e" * 40, OwnI2TRetrieval={"default": {}})
    assert [one.task for one in read_mteb(tmp_path, "a")] == ["OwnT2IRetrieval"]


@pytest.mark.slow
def test_a_model_on_the_hub_is_run_and_named_by_its_commit(published_here, tmp_path, trained):
    from cmfah_hf.evaluation.mteb import MTEBEncoder, retrieval_tasks, run_tasks

    encoder = MTEBEncoder("org/model", device="cpu")
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.revision) == ("org/model", published_here.done.commit)
    assert meta.load_model(device="cpu").encoder.fingerprint == encoder.encoder.fingerprint
    (figures,) = run_tasks(encoder, retrieval_tasks(trained.scenes)[:1], tmp_path)
    own = CrossMediaRetriever.from_pretrained(published_here.run.folder).fingerprint
    (found,) = read_mteb(tmp_path, own)
    assert found.figures == pytest.approx(figures.figures, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("OwnT2IRetrieval.json", "[1", "OwnT2IRetrieval.json"),
        ("OwnT2IRetrieval.json", "[]", "is not a JSON object"),
        ("OwnT2IRetrieval.json", "{}", "is no result of a task of MTEB"),
        ("OwnT2IRetrieval.json", '{"task_name": "x", "scores": {"test": 1}}', "its scores are no list of subsets"),
        ("model_meta.json", "1", "is not a JSON object"),
        ("model_meta.json", '{"revision": "a", "experiment_kwargs": {"metric": ["x"]}}', "its metric is none of"),
        ("model_meta.json", '{"revision": "a", "experiment_kwargs": [1]}', "its metric is none of"),
    ],
)
def test_damaged_results_are_named(tmp_path, name, content, reason):
    folder = write_results(tmp_path, "a", OwnT2IRetrieval={"default": {}})
    (folder / name).write_text(content)
    with pytest.raises(HubError, match=reason) as caught:
        read_mteb(tmp_path, "a")
    assert name in str(caught.value)


def test_figures_that_are_no_numbers_are_left_out(tmp_path):
    changes = {"ndcg_at_10": "x", "hit_rate_at_1": True, "recall_at_10": None}
    write_results(tmp_path, "a", Own={"default": changes}, Other={"default": {**changes, "main_score": 10**400}})
    assert [one.figures for one in read_mteb(tmp_path, "a")] == [{}, {"main_score": 0.4321}]


def test_own_cards_and_spaces_take_no_results(push_run, trained, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    for path in trained.folder.iterdir():
        if path.is_file():
            (tmp_path / "run" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "run" / "README.md").write_text("# Mine\n")
    with pytest.raises(HubError, match=r"has a README\.md, which is pushed unchanged"):
        push_run(tmp_path / "run", mteb_results=tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["push", "--space", "--repo-id", "org/space", "--mteb", str(tmp_path)])
    assert left.value.code == 2
    assert "--mteb is for models" in capsys.readouterr().err
