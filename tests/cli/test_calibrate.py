"""`cmfah calibrate`, then `cmfah search` with probabilities and a threshold."""

import json
import shutil

import pytest

from cmfah_hf.hub.finished_run import read_run
from cmfah_hf.hub.model_card import make_model_card


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    return shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("checkpoint-*"))


def test_answers_have_probabilities_once_a_model_is_calibrated(model, trained, cmfah, tmp_path):
    index = tmp_path / "query.index"
    assert cmfah("index", model, trained.scenes, "--split", "query", "--output", index).code == 0
    search = ("search", model, index, "--text", "boat sun", "-k", 16)
    bare = cmfah(*search, "--json")
    assert all("probability" not in hit for hit in bare.document["results"])
    refused = cmfah(*search, "--min-score", "0.5")
    assert (refused.code, refused.out) == (2, "")
    assert "make one with `cmfah calibrate MODEL DATA`" in refused.err
    assert refused.err.count("\n") == 1
    few = cmfah("calibrate", model, trained.scenes)
    assert few.code == 2
    assert "the split 'query' is too small for a calibration; give 20 pairs" in few.err

    figures = json.loads((model / "metrics.json").read_text(encoding="utf-8"))
    (model / "metrics.json").write_text(json.dumps({**figures, "calibration": {"aqd/t2i": {"ece": 0.9}}}))
    done = cmfah("calibrate", model, trained.scenes, "--split", "train", "--json")
    assert (done.code, done.document["relevance"], len(done.document["maps"])) == (0, "labels", 8)
    assert json.loads((model / "metrics.json").read_text(encoding="utf-8")) == figures  # of the former calibration
    assert 0 <= done.document["maps"]["aqd/t2i"]["ece@10"] <= 1
    answers = [count for count, *_ in done.document["maps"]["aqd/t2i"]["bins"]]
    assert answers
    card = str(make_model_card(read_run(model), "org/model")).splitlines()
    start = card.index("| answers | mean probability | relevant share |") + 2
    assert [line.split()[1] for line in card[start : start + len(answers)]] == [f"{count:,.0f}" for count in answers]
    table = cmfah("calibrate", model, trained.scenes, "--split", "train").out.splitlines()[-len(answers) - 1 :]
    assert table[0].split() == ["answers", "mean", "probability", "relevant", "share"]
    assert [line.split()[0] for line in table[1:]] == [f"{count:.0f}" for count in answers]
    hits = cmfah(*search, "--json").document["results"]
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in bare.document["results"]]
    probabilities = [hit["probability"] for hit in hits]
    assert probabilities == sorted(probabilities, reverse=True)
    kept = cmfah(*search, "--json", "--min-score", probabilities[4]).document["results"]
    assert kept == [hit for hit in hits if hit["probability"] >= probabilities[4]]
    table = cmfah(*search)
    assert table.out.splitlines()[1].split() == ["rank", "id", "aqd", "probability", "path"]
    nothing = cmfah(*search, "--min-score", "1")
    assert (nothing.code, nothing.out) == (0, "boat sun: nothing found with a probability of 1 or more.\n")
    assert cmfah(*search, "--min-score", "1", "--json").document["results"] == []
    assert cmfah(*search, "--min-score", "2").code == 2

    (model / "calibration.json").write_text(json.dumps({"version": 1}), encoding="utf-8")
    damaged = cmfah(*search)
    assert damaged.code == 2
    assert "calibration.json is no calibration" in damaged.err
