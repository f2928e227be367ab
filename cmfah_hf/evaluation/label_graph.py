"""The label graph of a trained model as a networkx graph."""

from pathlib import Path
from typing import TYPE_CHECKING

from cmfah_hf.errors import CheckpointError
from cmfah_hf.methods import SCAHNForPreTraining
from cmfah_hf.methods.label_graph import conditional_probabilities, label_adjacency, label_edges

if TYPE_CHECKING:
    import networkx


def read_label_graph(model: SCAHNForPreTraining | str | Path) -> "networkx.DiGraph[str]":
    """The label graph that guided a training, `[label-graph]`.

    Args:
        model: A model, or the folder or Hub id of a training run's model.

    Returns:
        Classes as nodes with `count`, the number of training items with the label. Edges from i to j, if j co-occurs
        with i often enough, have `count`, the number of items with both labels, `probability`, P(j | i), and `weight`,
        that of the convolutions. Self-loops are left out.

    Raises:
        CheckpointError: If the model was trained without a label graph, is of another method, or cannot be loaded.

    Example:
        >>> graph = read_label_graph("path/to/checkpoint")
        >>> graph["beach"]["sea"]["probability"]
        0.71
    """
    import networkx

    where = "the model" if isinstance(model, SCAHNForPreTraining) else str(model)
    if not isinstance(model, SCAHNForPreTraining):
        try:
            model = SCAHNForPreTraining.from_pretrained(where)
        except (OSError, ValueError) as error:
            raise CheckpointError(" ".join(str(error).split())) from error
    label_graph = getattr(model.objective, "label_graph", None)
    if label_graph is None:
        raise CheckpointError(f"{where}: it was trained without a label graph (use_label_graph false).")
    kept, counts_CC = label_graph, label_graph.counts.cpu()
    edges_CC = label_edges(counts_CC, kept.threshold)
    probabilities_CC = conditional_probabilities(counts_CC)
    weights_CC = label_adjacency(counts_CC, kept.threshold, kept.share)
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    for name, count in zip(names, counts_CC.diagonal().tolist(), strict=True):
        graph.add_node(name, count=count)
    for i, j in edges_CC.nonzero().tolist():
        graph.add_edge(
            names[i],
            names[j],
            count=int(counts_CC[i, j]),
            probability=float(probabilities_CC[i, j]),
            weight=float(weights_CC[i, j]),
        )
    return graph
