"""The registry of methods, objective settings in files, and models with them."""

from dataclasses import dataclass

import pytest
import torch
from settings import pretraining_model

from cmfah_hf.methods import (
    CMFAHForPreTraining,
    CMFAHObjectiveConfig,
    Losses,
    Objective,
    ObjectiveConfig,
    SCAHNForPreTraining,
    SCAHNObjectiveConfig,
    objective_class,
    register_method,
    registered_methods,
)
from cmfah_hf.methods.registry import _OBJECTIVES
from cmfah_hf.models import CMFAHConfig, SCAHNConfig
from cmfah_hf.models.model_files import ModelFileError

TINY = {
    "backbone_config": {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]},
    **{"image_size": 32, "vocab_size": 9, "word_dim": 6, "text_filters": 4, "hidden_size": 8, "hash_bits": 16},
}


@dataclass
class DistanceConfig(ObjectiveConfig):
    power: float = 2.0
    distance_weight: float = 1.0


@pytest.fixture
def distance():
    """A method with its own layer, registered for one test."""

    @register_method("distance")
    class Distance(Objective):
        settings_class = DistanceConfig
        needs_cross_modal = False

        def __init__(self, config, settings):
            super().__init__(config, settings)
            self.scale = torch.nn.Linear(config.hash_bits, 1)
            self.post_init()

        def forward(self, batch, outputs, state):
            differences = self.scale(outputs.image_hash - outputs.text_hash).abs() ** self.settings.power
            return Losses.weighted({"distance": differences.mean()}, {"distance": self.settings.distance_weight})

    yield Distance
    del _OBJECTIVES["distance"]


def test_methods_of_the_package_and_registered_ones(distance):
    assert registered_methods()[:3] == ["cmfah", "scahn", "dcmh"]
    assert registered_methods()[-1] == "distance"
    assert objective_class("distance") is distance
    assert (distance.name, objective_class("scahn").name, objective_class("cmfah").paper.year) == (
        *("distance", "scahn"),
        2022,
    )
    for name in ("distance", "cmfah"):
        with pytest.raises(ValueError, match=f"There is another method '{name}'; choose another name"):
            register_method(name)(type("Other", (Objective,), {}))
    with pytest.raises(ValueError, match=r"There is no method .xyz. but cmfah, scahn, .*, distance; import the module"):
        objective_class("xyz")


def test_papers_are_those_of_their_bibtex_entries():
    article, long, arxiv, braces = (objective_class(name).paper for name in ("ucch", "cmfah", "ugach", "scratch"))
    assert article.venue == "IEEE Transactions on Pattern Analysis and Machine Intelligence 45(3), 3877-3889"
    assert article.authors == "Peng Hu, Hongyuan Zhu, Jie Lin, Dezhong Peng, Yin-Ping Zhao, Xi Peng"
    assert (article.year, article.url) == (2023, "https://doi.org/10.1109/TPAMI.2022.3177356")
    assert long.title.endswith("Based on Multi-modal Graph and Adversarial Hash Attention Network")
    assert (arxiv.venue, arxiv.url) == (
        "AAAI Conference on Artificial Intelligence",
        "https://arxiv.org/abs/1712.00358",
    )
    assert braces.title == "SCRATCH: A Scalable Discrete Matrix Factorization Hashing for Cross-Modal Retrieval"


def test_a_model_of_another_method_round_trips(distance, tmp_path):
    model = pretraining_model("distance", **TINY, power=1.5)
    model.save_pretrained(tmp_path)
    again, report = CMFAHForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert again.config.objective == {"_name": "distance", "power": 1.5, "distance_weight": 1.0}
    assert type(again.objective) is distance
    assert torch.equal(again.objective.scale.weight, model.objective.scale.weight)
    assert again.objective.players() == []
    with pytest.raises(ValueError, match="The method 'distance' trains a model of 'cmfah', not of 'scahn'"):
        SCAHNForPreTraining(SCAHNConfig(**TINY), method="distance")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"_name": "cmfah", "label_wait": 1}, "has no setting 'label_wait'"),
        ({"_name": "cmfah", "label_weight": "8"}, "label_weight"),
        ({"_name": "cmfah", "label_weight": [8]}, "label_weight"),
        ({"_name": "cmfah", "label_weight": 10**9}, "label_weight is 1000000000, and 1,000,000 is the most"),
        ({"_name": "cmfah", "label_weight": float("nan")}, "label_weight is nan"),
        ({"_name": ["cmfah"]}, "not the name of a method"),
    ],
)
def test_unknown_sections(section, message):
    with pytest.raises(ModelFileError, match=message) as raised:
        CMFAHForPreTraining(CMFAHConfig(**TINY, objective=section))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "value"), [("paired_weight", -1.0), ("label_weight", -0.01), ("positive_overlap", 1)])
def test_out_of_range_settings_are_named(name, value):
    for kind in (CMFAHObjectiveConfig, SCAHNObjectiveConfig):
        with pytest.raises(ValueError, match=f"{name} is {value}; give"):
            kind(**{name: value})


def test_defaults_are_the_weights_of_the_paper():
    weights = {name: value for name, value in vars(CMFAHObjectiveConfig()).items() if name.endswith("_weight")}
    for name in ("similarity", "pair_contrast", "distillation", "orthogonality", "code_buffer", "proxy"):
        assert weights.pop(f"{name}_weight") == 0, name  # not a term of the paper
    assert set(weights.values()) == {1.0}


NO_VIEW = dict.fromkeys(
    (
        *("intra_feature_weight", "intra_hash_weight", "inter_feature_weight", "inter_hash_weight"),
        *("quantization_weight", "label_weight"),
    ),
    0.0,
)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, True),
        (NO_VIEW, False),  # what is left are concepts and discriminators, of the unimodal view
        ({**NO_VIEW, "pair_contrast_weight": 1.0, "proxy_weight": 1.0, "code_buffer_weight": 1.0}, False),
        *(({**NO_VIEW, name: 1.0}, True) for name in (*NO_VIEW, "similarity_weight")),
        ({"paired_weight": 0.0}, True),  # its codes
        ({"paired_weight": 0.0, "quantization_weight": 0.0}, False),
    ],
)
def test_the_cross_modal_view_is_needed_for_the_terms_that_read_it(settings, needed):
    classes = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    assert pretraining_model(**TINY, **classes, **settings).objective.needs_cross_modal == needed


def test_contrasts_of_scahn_need_the_cross_modal_view():
    layers = {"use_label_graph": False, "queue_size": 0}
    for weight in (0.0, 1.0):
        settings = {**NO_VIEW, "cross_contrast_weight": weight, "intra_contrast_weight": 0.0, "label_graph_weight": 0.0}
        model = pretraining_model("scahn", **TINY, **layers, **settings)
        assert model.objective.needs_cross_modal == bool(weight)


def test_a_player_with_weight_zero_is_inactive():
    for weight, active in ((0.5, True), (0, False)):
        (player,) = pretraining_model(**TINY, adversarial_weight=weight).objective.players()
        assert (player.name, player.is_active, len(player.module)) == ("discriminator", active, 2)
