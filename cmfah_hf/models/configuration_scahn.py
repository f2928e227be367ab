"""The configuration of SCAHN: CMFAH's, and what the label graph, the contrasts and the second pair of opponents add."""

from huggingface_hub.dataclasses import strict

from .configuration_cmfah import CMFAHConfig

ADVERSARIAL = ("none", "features", "hash", "both")


@strict
class SCAHNConfig(CMFAHConfig):
    r"""
    What a SCAHN model is: CMFAH's towers, trained by a graph of labels, by contrasts, and by adversaries on both ends.

    All of `CMFAHConfig` holds here too. What differs are the weights of the four triplet hinges, 0 by default: the
    contrasts order pairs in their place.

    Args:
        use_label_graph (`bool`, defaults to `True`):
            Whether features are guided by the label graph, `[graph-guidance]`. It needs classes.
        label_graph_weight (`float`, defaults to 1):
            Weight of `[graph-guidance]`.
        label_graph_threshold (`float`, defaults to 0.4):
            tau of `[label-graph]`: how probable a label is to be beside another one, for an edge between the two.
        label_graph_share (`float`, defaults to 0.2):
            p of `[label-graph]`: the share of a label's own row that its neighbours get together.
        label_graph_temperature (`float`, defaults to 0.1):
            What the cosines of features and label features are divided by.
        use_cross_contrast, use_intra_contrast (`bool`, default to `True`):
            Whether pairs are contrasted across the modalities, and within each of them, `[contrastive]`.
        cross_contrast_weight, intra_contrast_weight (`float`, default to 1):
            Weights of the two.
        contrast_temperature (`float`, defaults to 0.2):
            What the cosines of hash values are divided by.
        queue_size (`int`, defaults to 0):
            Pairs of earlier batches whose hash values are contrasted too. 0: those of the batch alone.
        adversarial (`str`, defaults to `"both"`):
            What the discriminators tell apart, `[dual-adversarial]`: `"features"`, as in CMFAH, `"hash"` values,
            `"both"`, or `"none"`, which takes `adversarial_weight` as 0.

    Raises:
        ValueError: If a value is outside its range, or the label graph or the queue is asked for without classes.

    Example:

    ```python
    >>> from cmfah_hf import SCAHNConfig, SCAHNForPreTraining

    >>> model = SCAHNForPreTraining(SCAHNConfig(id2label={0: "dog", 1: "sea"}, adversarial="hash"))
    >>> model.label_graph.counts.shape
    torch.Size([2, 2])
    ```"""

    model_type = "scahn"

    intra_feature_weight: float | int = 0.0
    intra_hash_weight: float | int = 0.0
    inter_feature_weight: float | int = 0.0
    inter_hash_weight: float | int = 0.0
    use_label_graph: bool = True
    label_graph_weight: float | int = 1.0
    label_graph_threshold: float | int = 0.4
    label_graph_share: float | int = 0.2
    label_graph_temperature: float | int = 0.1
    use_cross_contrast: bool = True
    use_intra_contrast: bool = True
    cross_contrast_weight: float | int = 1.0
    intra_contrast_weight: float | int = 1.0
    contrast_temperature: float | int = 0.2
    queue_size: int = 0
    adversarial: str = "both"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.adversarial not in ADVERSARIAL:
            raise ValueError(f"adversarial is {self.adversarial!r}; choose one of {', '.join(ADVERSARIAL)}.")
        if self.adversarial == "none":
            self.adversarial_weight = 0.0
        if not 0 < self.label_graph_threshold <= 1:
            raise ValueError(
                f"label_graph_threshold is {self.label_graph_threshold}; give a probability above 0, up to 1."
            )
        if not 0 <= self.label_graph_share < 1:
            raise ValueError(f"label_graph_share is {self.label_graph_share}; give a share from 0 to below 1.")
        for name in ("label_graph_temperature", "contrast_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0.")
        if self.queue_size < 0:
            raise ValueError(f"queue_size is {self.queue_size}; give a number of pairs, or 0 for none.")
        if not self.num_labels and self.use_label_graph:
            raise ValueError("The label graph is made of labels, and there are no classes; set use_label_graph false.")
        if not self.num_labels and self.queue_size:
            raise ValueError("The queue keeps labels, and there are no classes; set queue_size 0.")


__all__ = ["SCAHNConfig"]
