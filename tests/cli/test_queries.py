"""Queries as people ask them, on a folder with copies: terms, probabilities, folded answers, groups of duplicates."""

import shutil

import pytest
from coarse_jpegs import draw
from PIL import Image

from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex, Term


@pytest.fixture
def photos(tmp_path):
    """Six photographs, and as PNG the pixels of the first three again."""
    folder = tmp_path / "photos"
    for number in range(6):
        draw(folder / f"{number}.jpg", number)
    for number in range(3):
        with Image.open(folder / f"{number}.jpg") as image:
            image.save(folder / f"copy of {number}.png")
    return folder


@pytest.mark.slow
def test_the_story_of_queries(trained, photos, tmp_path, environment, run_in_a_new_process):
    """Each process knows the calibration and the index only from the files of the one before it."""
    model, index = str(tmp_path / "model"), str(tmp_path / "x.index")
    shutil.copytree(trained.folder, model, ignore=shutil.ignore_patterns("checkpoint-*"))
    outcomes = run_in_a_new_process(
        [["index", model, str(photos), "-o", index], ["calibrate", model, str(trained.scenes), "--split", "train"]],
        environment,
    )
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes

    search = ["search", model, index, "-k", "9", "--json"]
    terms = ["--text", "boat", "--text", "sun:0.5", "--not", "tree", "--image", f"{photos / '5.jpg'}:2"]
    outcomes = run_in_a_new_process(
        [
            [*search, *terms],
            [*search, "--image", str(photos / "0.jpg"), "--not-image", str(photos / "4.jpg")],
            [*search, "--text", "boat"],
            [*search, "--text", "boat", "--unique", "0"],
            ["duplicates", index, "--bits", "0", "--json"],
        ],
        environment,
    )
    assert [outcome.code for outcome in outcomes] == [0] * 5, outcomes
    several, images, boats, unique, duplicates = (outcome.document for outcome in outcomes)

    assert several["query"] == f"boat + sun:0.5 + {photos / '5.jpg'}:2 - tree:0.5"
    retriever = CrossMediaRetriever.from_pretrained(model)
    retriever.images = HashIndex.load(index)
    image = Term(image=photos / "5.jpg", weight=2)
    expected = retriever.search(terms=[Term("boat"), Term("sun", weight=0.5), image, Term("tree", weight=-0.5)], k=9)
    assert [hit["id"] for hit in several["results"]] == expected.ids[0].tolist()
    assert {hit["id"] for hit in images["results"][:2]} == {"0.jpg", "copy of 0.png"}

    pairs = {frozenset((f"{number}.jpg", f"copy of {number}.png")) for number in range(3)}
    groups = [set(group["ids"]) for group in duplicates["results"]]
    assert all(any(pair <= group for group in groups) for pair in pairs)
    answers = unique["results"]
    together = [{hit["id"], *hit["folded"]} for hit in answers]
    assert [group for group in together if len(group) > 1] == sorted(groups, key=together.index)
    assert sum(map(len, together)) == len(boats["results"]) == 9
    firsts = [hit["id"] for hit in answers]
    assert firsts == [hit["id"] for hit in boats["results"] if hit["id"] in firsts]

    probabilities = [hit["probability"] for hit in boats["results"]]
    assert probabilities == sorted(probabilities, reverse=True)
    least = probabilities[4]
    some, nothing = run_in_a_new_process(
        [
            [*search, "--text", "boat", "--min-score", str(least)],
            [*search[:-1], "--text", "boat", "--min-score", "1"],
        ],
        environment,
    )
    assert some.document["results"] == [hit for hit in boats["results"] if hit["probability"] >= least]
    assert (nothing.code, nothing.out) == (0, "boat: nothing found with a probability of 1 or more.\n")
