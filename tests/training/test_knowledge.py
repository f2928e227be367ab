"""A run whose expansion uses an encyclopedia: its output expands identically wherever it is loaded."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from cmfah_hf.data import load_image_text
from cmfah_hf.errors import DataError
from cmfah_hf.expansion import GraphExpander, WikipediaKnowledge
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import train

CODE = """
import json, sys
from cmfah_hf import CrossMediaRetriever
retrievers = [CrossMediaRetriever.from_pretrained(source) for source in sys.argv[2:]]
texts = json.loads(sys.argv[1])
print(json.dumps([[retriever.expand(texts), retriever.encode_texts(["boat"]).tolist()] for retriever in retrievers]))
"""


@pytest.fixture
def articles(tmp_path, scenes_folder) -> Path:
    """Articles that each connect two words of the scenes which no other article connects."""
    graph = GraphExpander().fit(load_image_text(scenes_folder)["train"]).graph
    words = graph.vocabulary[:12]
    path = tmp_path / "articles.jsonl"
    rows = [
        {"title": first, "text": f"{first} {second} " * 5} for first, second in zip(words[:6], words[6:], strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
def test_model_trained_with_knowledge_expands_with_it(run_of, articles, environment, tmp_path):
    run = run_of("--knowledge_top_k", "1", data={"knowledge": [str(articles)], "top_k": 1})
    train(run)
    output = tmp_path / "out"
    expander = GraphExpander.load(output)
    again = WikipediaKnowledge().fit(articles, expander.graph.vocabulary)
    assert expander.knowledge.digest == again.digest
    assert (expander.knowledge_top_k, expander.top_k) == (1, 1)
    known = [word for word in expander.graph.vocabulary if again.related_to([word])]
    assert len(known) == 12
    texts = [*known, f"{known[0]} {known[1]}", ""]
    expected = [" ".join(expander.expand(text)) for text in texts]
    for word, words in zip(known, expected, strict=False):
        assert again.related_to([word])[0][0] in words.split()

    spec = spec_from_file_location("model_server", Path(__file__).with_name("model_server.py"))
    server = module_from_spec(spec)
    spec.loader.exec_module(server)
    root = tmp_path / "hub"
    (root / "owner").mkdir(parents=True)
    (root / "owner" / "name").symlink_to(output)
    with server.serving(root) as (address, _):
        found = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps(texts), str(output), "owner/name"],
            env=environment | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"},
            capture_output=True, text=True, timeout=200, cwd=tmp_path,
        )  # fmt: skip
    assert found.returncode == 0, found.stderr
    values = CrossMediaRetriever.from_pretrained(output).encode_texts(["boat"])
    for expanded, others in json.loads(found.stdout):
        assert expanded == expected
        assert others == pytest.approx(values)

    # A resumed run uses the existing knowledge; a new run without knowledge removes it.
    before = {path.name: path.read_bytes() for path in output.glob("knowledge.*")}
    articles.unlink()
    train(run_of("--resume_from_checkpoint", "last", data={"knowledge": [str(articles)], "top_k": 1}))
    assert {path.name: path.read_bytes() for path in output.glob("knowledge.*")} == before
    train(run_of())
    assert not list(output.glob("knowledge.*"))
    assert CrossMediaRetriever.from_pretrained(output).expander.knowledge is None


def test_unavailable_knowledge_is_named(run_of, tmp_path):
    with pytest.raises(ValueError, match="knowledge adds words in the expansion, which is off"):
        run_of("--expand", "false", data={"knowledge": ["x.jsonl"]})
    with pytest.raises(DataError, match=r"gone\.jsonl: there is no such file"):
        train(run_of(data={"knowledge": [str(tmp_path / "gone.jsonl")]}))
