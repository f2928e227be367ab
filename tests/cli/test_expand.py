"""`cmfah expand`: fitting as in the library, explanations and plots."""

import json

from cmfah_hf.data import load_image_text
from cmfah_hf.expansion import GraphExpander, WikipediaKnowledge


def test_fit_explain_and_plot(cmfah, scenes_folder, tmp_path):
    texts = load_image_text(scenes_folder)["train"]
    expected = GraphExpander(top_k=4, min_probability=0.01, knowledge_top_k=2).fit(texts)
    first, second = expected.graph.vocabulary[:2]
    articles = tmp_path / "articles.jsonl"
    articles.write_text(json.dumps({"text": f"{first} {second} " * 5}) + "\n")
    expected.knowledge = WikipediaKnowledge(window=3).fit(articles, expected.graph.vocabulary)
    folder = tmp_path / "words"
    given = ["--knowledge", articles, "--top-k", 4, "--knowledge-top-k", 2, "--window", 3]
    outcome = cmfah("expand", "fit", scenes_folder, "--output", folder, *given, "--json")
    assert outcome.code == 0, outcome.err
    words = len(expected.graph.vocabulary)
    assert outcome.document == {"folder": str(folder), "texts": 48, "words": words, "related_words": 2}
    loaded = GraphExpander.load(folder)
    assert loaded.knowledge.digest == expected.knowledge.digest
    assert loaded.expand(f"{first} quokka") == expected.expand(f"{first} quokka")

    outcome = cmfah("expand", "explain", folder, f"{first} quokka", "--json")
    assert outcome.document == json.loads(json.dumps(expected.explain(f"{first} quokka").to_dict()))
    outcome = cmfah("expand", "explain", folder, f"{first} quokka")
    assert all(word in outcome.out for word in expected.expand(f"{first} quokka"))
    assert outcome.out.splitlines()[-1] == "unknown: quokka"

    image = tmp_path / "image.png"
    assert cmfah("expand", "plot", folder, first, "--output", image, "--json").document["file"] == str(image)
    assert image.read_bytes().startswith(b"\x89PNG")


def test_fit_on_a_corpus_file(cmfah, tmp_path):
    (tmp_path / "tags.txt").write_text("dog beach\ncat sofa\n")
    outcome = cmfah("expand", "fit", tmp_path / "tags.txt", "--output", tmp_path / "words")
    assert outcome.out.split(":")[-1].strip() == "a graph of 2 texts and 4 words."
    assert GraphExpander.load(tmp_path / "words").expand("dog") == ["dog", "beach"]


def test_errors_are_one_line(cmfah, tmp_path):
    (tmp_path / "tags.txt").write_text("dog beach\n")
    (tmp_path / "articles.txt").write_text("ein Hund am Strand\n")
    cmfah("expand", "fit", tmp_path / "tags.txt", "--output", tmp_path / "words")
    fit = ["fit", tmp_path / "tags.txt", "--output", tmp_path / "x"]
    for arguments, said in (
        (["fit", tmp_path / "gone.txt", "--output", tmp_path / "x"], "there is no such"),
        ([*fit, "--knowledge", tmp_path / "gone.xml.bz2"], "there is no such file"),
        ([*fit, "--knowledge", tmp_path / "articles.txt"], "none of the 2 words"),
        ([*fit, "--tokenizer", "klingon"], "'klingon' is not known"),
        (["explain", tmp_path / "gone", "dog"], "expander.json is missing"),
        (["plot", tmp_path / "words", "unicorn", "--output", tmp_path / "x.png"], "'unicorn' is not a single word"),
    ):
        outcome = cmfah("expand", *arguments)
        assert outcome.code == 2
        assert said in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
