"""UGACH: a generator draws hard negatives from all training pairs, and the towers tell them from neighbors.

Shape suffixes: N training pairs, B pairs of a batch, C candidates, P positives of a pair, M drawn pairs of an item, U
distinct pairs, E width of features, K hash bits. Equations are cited by their tags in `docs/method.md`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from cmfah_hf.methods.base import Batch, Losses, ObjectiveConfig, Paper, Player, TrainingState
from cmfah_hf.methods.deep.epochs import EpochObjective
from cmfah_hf.methods.losses import added
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.methods.registry import register_method
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.models.configuration_feature_hash import FeatureHashConfig
from cmfah_hf.models.feature_encoders import (
    FeatureImageEncoder,
    FeaturePerceptron,
    build_feature_text_encoder,
    embedded,
    first_layer,
)
from cmfah_hf.ranges import COUNT, NOT_NEGATIVE, POSITIVE

# Tables of `TrainingState`: the numbers of each pair's positives, and the features of all training pairs by modality.
POSITIVES = "positives"
VECTORS = {"image": "image_vectors", "text": "text_vectors"}
# Each modality of the queries, and that of the items that are compared with them.
_DIRECTIONS = {"image_to_text": ("image", "text"), "text_to_image": ("text", "image")}
# Distances that are held in memory at once, 64 MiB.
_BLOCK_VALUES = 1 << 24


@strict
@dataclass
class UGACHObjectiveConfig(ObjectiveConfig):
    """Settings of UGACH's objective.

    Args:
        neighbors (`int`, defaults to 5):
            Nearest pairs by the images, and as many by the texts, that are positives of a pair; 1 or more.
        negatives (`int`, defaults to 2):
            Positives and negatives that are drawn for each item of a batch; 1 or more.
        candidate_share (`float`, defaults to 0.02):
            Share of the training pairs that the generator chooses from, drawn for each batch; above 0, at most 1.
        margin_per_bit (`float`, defaults to 0.125):
            Margin of the hinge, for each hash bit; above 0.
        pretrain_epochs (`int`, defaults to 5):
            First epochs, in which negatives are drawn evenly and the generator is not trained; 0 or more.
        generator_steps (`int`, defaults to 2):
            Steps of the generator for each batch; 1 or more.
        generator_learning_rate (`float`, defaults to 0.01):
            Learning rate of the generator, above 0.
    """

    neighbors: int = 5
    negatives: int = 2
    candidate_share: float | int = 0.02
    margin_per_bit: float | int = 0.125
    pretrain_epochs: int = 5
    generator_steps: int = 2
    generator_learning_rate: float | int = 0.01

    ranges = {
        **dict.fromkeys(("neighbors", "negatives", "generator_steps"), COUNT),
        **dict.fromkeys(("margin_per_bit", "generator_learning_rate"), POSITIVE),
        "pretrain_epochs": NOT_NEGATIVE,
        "candidate_share": (lambda value: 0 < value <= 1, "a share above 0, at most 1"),
    }

    def apply_to(self, config: CMFAHConfig) -> None:
        """Changes nothing; `ValueError` if an encoder is trained, or features are normalized over the batch."""
        if not (config.freeze_backbone and config.freeze_text_backbone):
            raise ValueError(
                "UGACH keeps the features of all training pairs; set freeze_backbone and freeze_text_backbone to true."
            )
        if config.normalize_features:
            raise ValueError(
                "UGACH encodes drawn pairs, whose statistics are not those of a batch; set normalize_features to false."
            )


def nearest_pairs(vectors_NE: torch.Tensor, count: int) -> torch.Tensor:
    """The numbers of the pairs with the nearest vectors by Euclidean distance, nearest first, without the pair itself.

    Memory does not depend on `N * N`.

    Returns:
        `(N, count)` integers; fewer columns if there are fewer other pairs.
    """
    size = len(vectors_NE)
    # Distances are those of the centered vectors, which have fewer digits to lose.
    vectors_NE = vectors_NE - vectors_NE.mean(dim=0)
    squares_N = vectors_NE.square().sum(dim=1)
    found = []
    for rows_B in torch.arange(size).split(max(1, _BLOCK_VALUES // size)):
        # Squared distances minus the row's own square, which does not change their order.
        distances_BN = squares_N - 2 * (vectors_NE[rows_B] @ vectors_NE.mT)
        distances_BN[torch.arange(len(rows_B)), rows_B] = torch.inf
        found.append(distances_BN.topk(min(count, size - 1), largest=False).indices)
    return torch.cat(found)


def draw(probabilities_BC: torch.Tensor, count: int) -> torch.Tensor:
    """Columns `(B, count)` drawn with replacement, by the CPU's generator."""
    return torch.multinomial(probabilities_BC.cpu(), count, replacement=True).to(probabilities_BC.device)


def unit_codes(logits: torch.Tensor) -> torch.Tensor:
    """Codes in (0, 1), in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()


def code_distances(query_BK: torch.Tensor, others_BMK: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances `(B, M)` of each query from its own items, from the logits of their codes."""
    return (unit_codes(query_BK)[:, None] - unit_codes(others_BMK)).square().sum(dim=2)


def code_scores(query_BK: torch.Tensor, others_CK: torch.Tensor) -> torch.Tensor:
    """Negative squared Euclidean distances `(B, C)` of all queries from all items, from the logits of their codes."""
    query_BK, others_CK = unit_codes(query_BK), unit_codes(others_CK)
    squares_BC = query_BK.square().sum(dim=1)[:, None] + others_CK.square().sum(dim=1)
    return 2 * query_BK @ others_CK.mT - squares_BC


def mean_over(values_BM: torch.Tensor, counted_B: torch.Tensor) -> torch.Tensor:
    """The mean over the rows that count; 0 if there is none."""
    return (values_BM * counted_B[:, None]).sum() / (counted_B.sum() * values_BM.shape[1]).clamp(min=1)


class Drawn(NamedTuple):
    """The positives and negatives of the queries of a batch.

    Attributes:
        positives, negatives: `(B, M)`, numbers of training pairs.
        log_probabilities: `(B, M)`, of the negatives.
        counted: `(B,)` boolean, false if all candidates are positives of the query.
    """

    positives: torch.Tensor
    negatives: torch.Tensor
    log_probabilities: torch.Tensor
    counted: torch.Tensor


class UGACHGenerator(nn.Module):
    """One modality's half of the generator: a perceptron like a tower's, from features `(B, E)` to `(B, K)`."""

    def __init__(self, width: int, config: FeatureHashConfig):
        super().__init__()
        self.projection = first_layer(width, config)
        self.mlp = FeaturePerceptron(config)
        self.dense = nn.Linear(config.hidden_size, config.hash_bits)

    def forward(self, vectors_BE: torch.Tensor) -> torch.Tensor:
        return self.dense(self.mlp(self.projection(vectors_BE.to(self.projection.weight.dtype))))


def feature_widths(config: FeatureHashConfig) -> dict[str, int]:
    """The width of the features that the towers of a configuration read, by modality."""
    with torch.device("meta"):  # encoders without memory for their weights
        encoders: dict[str, Any] = {"image": FeatureImageEncoder(config), "text": build_feature_text_encoder(config)}
    return {side: encoder.projection.in_features for side, encoder in encoders.items()}


def encode_pairs(state: TrainingState, side: str, rows_BM: torch.Tensor) -> torch.Tensor:
    """The hash logits `(B, M, K)` of one modality of training pairs, given by number."""
    tower: Any = getattr(state.towers, f"{side}_model")
    rows_U, places_BM = rows_BM.unique(return_inverse=True)
    vectors_UE = state.tables[VECTORS[side]][rows_U.cpu()].to(tower.embeddings.projection.weight)
    return tower.encode(embedded(tower.embeddings, vectors_UE)).hash_logits[places_BM]


@register_method("ugach")
class UGACHObjective(EpochObjective):
    """UGACH's objective, `[ugach]`, with terms `image_to_text` and `text_to_image`, by the modality of the queries.

    The towers are the paper's discriminative model, and are the only part that encodes. The generative model is the
    player `generator`. Codes in (0, 1) are the sigmoid of the values whose `tanh` the towers' codes are, so both have
    the same binary codes. All draws are of PyTorch's generator for the CPU. FSDP is not supported: drawn pairs are
    encoded outside the `forward` of the model.
    """

    settings_class = UGACHObjectiveConfig
    settings: UGACHObjectiveConfig
    needs_tables = True
    labels = "refuses"
    paper = Paper.from_bibtex("""@inproceedings{zhang2018ugach,
  title     = {Unsupervised Generative Adversarial Cross-Modal Hashing},
  author    = {Zhang, Jian and Peng, Yuxin and Yuan, Mingkuan},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2018},
  url       = {https://arxiv.org/abs/1712.00358}
}""")

    def __init__(self, config: FeatureHashConfig, settings: UGACHObjectiveConfig):
        super().__init__(config, settings)
        self.generator = nn.ModuleDict(
            {side: UGACHGenerator(width, config) for side, width in feature_widths(config).items()}
        )
        self.post_init()

    @property
    def is_pretraining(self) -> bool:
        """Whether negatives are drawn evenly."""
        return int(self.epochs) < self.settings.pretrain_epochs

    def players(self) -> list[Player]:
        """The generator."""
        settings = self.settings
        return [
            Player(
                "generator",
                self.generator,
                self.generator_loss,
                learning_rate=settings.generator_learning_rate,
                steps=settings.generator_steps,
            )
        ]

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """The hinge of both directions; labels are not read; `ValueError` if the pairs are not numbered."""
        terms = {}
        for name, (query, other) in _DIRECTIONS.items():
            with torch.no_grad():
                drawn = self.draw_pairs(batch, outputs, state, query, other)
            terms[name] = mean_over(self.hinge(drawn, outputs, state, query, other), drawn.counted)
        return Losses.weighted(terms, dict.fromkeys(terms, 1.0))

    def generator_loss(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> torch.Tensor:
        """The negative mean of log-probabilities times rewards. Its gradient estimates that of the mean reward."""
        if self.is_pretraining:  # gradients of zero
            return added(parameter.sum() for parameter in self.generator.parameters()) * 0
        losses = []
        for query, other in _DIRECTIONS.values():
            drawn = self.draw_pairs(batch, outputs, state, query, other)
            with torch.no_grad():
                rewards_BM = self.hinge(drawn, outputs, state, query, other).sigmoid()
            losses.append(-mean_over(drawn.log_probabilities * rewards_BM, drawn.counted))
        return added(losses)

    def draw_pairs(
        self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState, query: str, other: str
    ) -> Drawn:
        """Positives, drawn evenly, and negatives, drawn by the generator, for the items of a batch.

        Args:
            batch, outputs, state: As in `forward`.
            query, other: The modality of the batch's items and that of the drawn ones, `"image"` or `"text"`.
        """
        if POSITIVES not in batch:
            raise ValueError("UGACH draws from all training pairs, which must be numbered; train it with a trainer.")
        settings, positives_BP = self.settings, batch[POSITIVES]
        pairs = len(state.tables[POSITIVES])
        count = max(1, round(settings.candidate_share * pairs))
        # On the CPU, whose generator is the same in all processes.
        rows_C = torch.randperm(pairs)[:count]
        candidates_C = rows_C.to(positives_BP.device)
        excluded_BC = (positives_BP[:, :, None] == candidates_C).any(dim=1)
        counted_B = ~excluded_BC.all(dim=1)
        if self.is_pretraining:
            scores_BC = torch.zeros(excluded_BC.shape, device=excluded_BC.device)
        else:
            vectors_CE = state.tables[VECTORS[other]][rows_C].to(excluded_BC.device)
            logits_BK = self.generator[query](getattr(outputs, VECTORS[query]))
            scores_BC = code_scores(logits_BK, self.generator[other](vectors_CE))
        scores_BC = scores_BC.masked_fill(excluded_BC & counted_B[:, None], -torch.inf)
        log_probabilities_BC = scores_BC.log_softmax(dim=1)
        columns_BM = draw(log_probabilities_BC.detach().exp(), settings.negatives)
        chosen_BM = torch.randint(positives_BP.shape[1], columns_BM.shape).to(positives_BP.device)
        return Drawn(
            positives_BP.gather(1, chosen_BM),
            candidates_C[columns_BM],
            log_probabilities_BC.gather(1, columns_BM),
            counted_B,
        )

    def hinge(
        self, drawn: Drawn, outputs: CMFAHForPreTrainingOutput, state: TrainingState, query: str, other: str
    ) -> torch.Tensor:
        """`(B, M)`: the margin plus the distance of the positive minus that of the negative, if above 0."""
        logits_BMK = encode_pairs(state, other, torch.cat([drawn.positives, drawn.negatives], dim=1))
        near_BM, far_BM = code_distances(getattr(outputs, f"{query}_logits"), logits_BMK).chunk(2, dim=1)
        return (self.settings.margin_per_bit * self.config.hash_bits + near_BM - far_BM).clamp(min=0)

    def on_train_begin(self, state: TrainingState) -> None:
        """The features of all training pairs, and their positives: each pair itself and its neighbors."""
        if state.encode is None:
            return
        pairs = state.encode_all()
        for name in VECTORS.values():
            state.tables[name] = getattr(pairs, name)
        neighbors = [nearest_pairs(state.tables[name], self.settings.neighbors) for name in VECTORS.values()]
        state.tables[POSITIVES] = torch.cat([torch.arange(len(pairs.rows))[:, None], *neighbors], dim=1)
