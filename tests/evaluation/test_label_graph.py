"""The label graph of a model as a networkx graph, from the model and from its folder, and its plot."""

import networkx
import pytest
import torch
from PIL import Image
from settings import pretraining_model
from transformers import ResNetConfig

from cmfah_hf.errors import CheckpointError
from cmfah_hf.evaluation.label_graph import read_label_graph
from cmfah_hf.evaluation.plots import plot_label_graph

NAMES = ["boat", "$sea$", "дерево", "nobody's"]


@pytest.fixture(scope="module")
def make_model():
    def make(**settings):
        backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        tiny = {"image_size": 32, "vocab_size": 9, "word_dim": 6, "text_filters": 4, "hidden_size": 8, "hash_bits": 16}
        tiny |= {"backbone_config": backbone, "id2label": dict(enumerate(NAMES))}
        model = pretraining_model("scahn", **{**tiny, **settings})
        if model.objective.label_graph is not None:
            counts = torch.tensor([[4, 3, 0, 0], [3, 10, 4, 0], [0, 4, 4, 0], [0, 0, 0, 0]])
            model.objective.label_graph.fill(counts, torch.randn(4, 6))
        return model

    return make


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    make_model().save_pretrained(folder)
    return folder


def test_nodes_and_edges_have_counts_and_probabilities(make_model, folder):
    for source in (make_model(), folder, str(folder)):
        graph = read_label_graph(source)
        assert isinstance(graph, networkx.DiGraph)
        assert dict(graph.nodes(data="count")) == dict(zip(NAMES, [4, 10, 4, 0], strict=True))
        # 3 of 4 boats are by the sea; of 10 seas, 4 have a tree (= tau) and 3 have a boat (below tau).
        assert {(i, j): data["probability"] for i, j, data in graph.edges(data=True)} == pytest.approx(
            {("boat", "$sea$"): 0.75, ("$sea$", "дерево"): 0.4, ("дерево", "$sea$"): 1.0}
        )
        assert graph["boat"]["$sea$"]["count"] == 3
        assert [weight for _, _, weight in graph.edges(data="weight")] == pytest.approx([0.2] * 3)
    assert not read_label_graph(make_model(label_graph_threshold=1)).has_edge("boat", "$sea$")


def test_models_without_a_label_graph(make_model, tmp_path):
    with pytest.raises(CheckpointError, match="the model: it was trained without a label graph"):
        read_label_graph(make_model(use_label_graph=False))
    make_model(use_label_graph=False).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: it was trained without a label graph"):
        read_label_graph(tmp_path)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_the_plot_shows_edges_if_there_are_any(make_model, tmp_path):
    graph = read_label_graph(make_model())
    full = Image.open(plot_label_graph(graph, tmp_path / "made" / "labels.png")).convert("L")
    bare = Image.open(plot_label_graph(networkx.create_empty_copy(graph), tmp_path / "bare.png")).convert("L")
    assert full.size == bare.size
    dark_pixels = [sum(image.histogram()[:200]) for image in (full, bare)]
    assert dark_pixels[0] > 1.2 * dark_pixels[1] > 0
