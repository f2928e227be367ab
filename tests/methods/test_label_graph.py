"""The label graph against networkx and float64 loops: probabilities, edges, weights, convolutions."""

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cmfah_hf.methods.label_graph import LabelGraph, conditional_probabilities, label_adjacency, label_edges

few = settings(max_examples=25)
multi_hot = arrays(np.int64, st.tuples(st.integers(0, 8), st.integers(1, 5)), elements=st.integers(0, 1))
thresholds = st.sampled_from([0.2, 0.4, 0.5, 1.0])
shares = st.sampled_from([0.0, 0.2, 0.75])


def counts_of(labels):
    return torch.tensor(labels.T @ labels)


def by_loops(labels, threshold, share):
    """P, the graph and the normalized adjacency from a loop over the items, compared as integers."""
    size = labels.shape[1]
    graph, probability = networkx.DiGraph(), np.zeros((size, size))
    graph.add_nodes_from(range(size))
    for i in range(size):
        with_i = [row for row in labels if row[i]]
        for j in range(size):
            joint_count = sum(int(row[j]) for row in with_i)
            probability[i, j] = joint_count / len(with_i) if with_i else 0
            if i != j and with_i and round(10 * joint_count) >= round(10 * threshold * len(with_i), 9):
                graph.add_edge(i, j)
    weights = np.zeros((size, size))
    for i in range(size):
        weights[i, i] = 1 - share
        for j in graph.successors(i):
            weights[i, j] = share / graph.out_degree(i)
    sums = weights.sum(axis=1)
    return probability, graph, np.array(
        [[weights[i, j] / np.sqrt(sums[i] * sums[j]) for j in range(size)] for i in range(size)]
    )  # fmt: skip


@few
@given(multi_hot, thresholds, shares)
def test_probabilities_edges_and_weights_match_loops(labels, threshold, share):
    probability, graph, adjacency = by_loops(labels, threshold, share)
    counts = counts_of(labels)
    np.testing.assert_allclose(conditional_probabilities(counts).numpy(), probability, atol=1e-15)
    np.testing.assert_array_equal(label_edges(counts, threshold).numpy(), networkx.to_numpy_array(graph) > 0)
    found = label_adjacency(counts, threshold, share)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), adjacency, atol=1e-14)
    single = label_adjacency(counts, threshold, share, torch.float32)
    np.testing.assert_allclose(single.numpy(), adjacency, atol=1e-6)


def test_a_share_of_exactly_tau_is_an_edge():
    counts = torch.tensor([[5, 2], [2, 1_000_000]])
    for dtype in (torch.float32, torch.float64):
        assert label_edges(counts, 0.4, dtype).tolist() == [[False, True], [False, False]]


@few
@given(multi_hot, thresholds, st.randoms(use_true_random=False))
def test_order_of_labels_and_an_unused_label_change_nothing(labels, threshold, random):
    adjacency = label_adjacency(counts_of(labels), threshold, 0.2).numpy()
    order = list(range(labels.shape[1]))
    random.shuffle(order)
    permuted = label_adjacency(counts_of(labels[:, order]), threshold, 0.2).numpy()
    np.testing.assert_allclose(permuted, adjacency[np.ix_(order, order)], atol=1e-15)
    wider = label_adjacency(counts_of(np.pad(labels, ((0, 0), (0, 1)))), threshold, 0.2).numpy()
    np.testing.assert_allclose(wider[:-1, :-1], adjacency, atol=1e-15)
    np.testing.assert_allclose(wider[-1], [0] * labels.shape[1] + [1], atol=1e-15)
    np.testing.assert_array_equal(wider[:, -1], wider[-1])


@pytest.mark.parametrize(
    "labels",
    [[[1]], [[1, 0], [1, 0]], [[1, 0], [0, 1]], [[0, 0]]],
    ids=["one class", "one unused class", "no co-occurrence", "no labels"],
)
def test_labels_without_neighbors_keep_their_vectors(labels):
    counts = counts_of(np.array(labels))
    found = label_adjacency(counts, 0.4, 0.2)
    torch.testing.assert_close(found, torch.eye(len(counts), dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.fixture
def graph():
    torch.manual_seed(0)
    graph = LabelGraph(4, 6, 5, threshold=0.4, share=0.2).double()
    labels = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0]])
    graph.fill(counts_of(labels), torch.randn(4, 6, dtype=torch.float64))
    return graph, labels


def test_convolutions_match_plain_products(graph):
    graph, labels = graph
    adjacency = by_loops(labels, 0.4, 0.2)[2]
    vectors = graph.vectors.numpy()
    first, second = graph.convolution_in.weight.detach().numpy().T, graph.convolution_out.weight.detach().numpy().T
    hidden = adjacency @ vectors @ first
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    np.testing.assert_allclose(graph().detach().numpy(), adjacency @ hidden @ second, atol=1e-13)


def test_gradients_of_both_convolutions(graph):
    graph, _ = graph

    def features(first, second):
        return torch.func.functional_call(graph, {"convolution_in.weight": first, "convolution_out.weight": second})

    weights = [w.detach().clone().requires_grad_(True) for w in graph.parameters()]
    assert torch.autograd.gradcheck(lambda *w: features(*w), weights)


def test_a_neighbor_vector_affects_a_label_and_others_do_not(graph):
    graph, labels = graph
    before = graph().detach().clone()
    graph.vectors[1] += 1.0
    moved = (graph() - before).abs().sum(dim=1) > 1e-9
    edges = networkx.from_numpy_array(by_loops(labels, 0.4, 0.2)[2], create_using=networkx.DiGraph)
    within_two = {i for i in range(4) if networkx.has_path(edges, i, 1) and nx_steps(edges, i, 1) <= 2}
    assert {i for i in range(4) if moved[i]} == within_two
    assert 3 not in within_two


def nx_steps(edges, start, end):
    return networkx.shortest_path_length(edges, start, end)


def test_fill_refuses_invalid_counts():
    graph = LabelGraph(2, 3, 4, 0.4, 0.2)
    vectors = torch.zeros(2, 3)
    for counts, message in (
        (torch.zeros(3, 3, dtype=torch.long), r"counts of the labels are \(3, 3\), not \(2, 2\)"),
        (torch.tensor([[2, 1], [0, 2]]), "not symmetric"),
        (torch.tensor([[2, 3], [3, 2]]), "more often than either"),
        (torch.tensor([[2, -1], [-1, 2]]), "not symmetric"),
    ):
        with pytest.raises(ValueError, match=message):
            graph.fill(counts, vectors)
    with pytest.raises(ValueError, match=r"vectors of the labels are \(2, 4\), not \(2, 3\)"):
        graph.fill(torch.eye(2, dtype=torch.long), torch.zeros(2, 4))
    assert not graph.counts.any()


def test_a_graph_without_memory_allocates_none():
    with torch.device("meta"):
        graph = LabelGraph(10**5, 10**6, 8, 0.4, 0.2)
    assert graph.vectors.shape == (10**5, 10**6)
