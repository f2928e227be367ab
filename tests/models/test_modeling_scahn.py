"""SCAHN models: configuration, CMFAH's towers in them, each term of the loss, and checkpoints."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from settings import pretraining_model
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import cosine_similarity
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor, ResNetConfig

from cmfah_hf.methods import CMFAHForPreTraining, SCAHNForPreTraining, SCAHNObjectiveConfig
from cmfah_hf.methods.contrast import EarlierPairs, contrast_losses
from cmfah_hf.models import (
    CMFAHModel,
    CMFAHProcessor,
    SCAHNConfig,
    SCAHNImageModel,
    SCAHNModel,
    SCAHNTextModel,
)
from cmfah_hf.models.word_rules import WordRules

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
COUNTS = torch.tensor([[4, 1, 0, 0, 3], [1, 2, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 5, 2], [3, 1, 0, 2, 6]])


@pytest.fixture(scope="module")
def make_scahn(make_config):
    """A function from settings to a tiny training model in float64, with a filled label graph and random weights."""

    def make(**settings):
        backbone = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        tiny = {name: make_config().to_dict()[name] for name in ("image_size", "vocab_size", "word_dim", "hash_bits")}
        tiny |= {"text_filters": 6, "hidden_size": 16, "num_concepts": 7}
        tiny |= {} if "id2label" in settings else {"num_labels": 5}
        torch.manual_seed(0)
        model = pretraining_model("scahn", backbone_config=backbone, **{**tiny, **settings}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        if model.objective.label_graph is not None:
            model.objective.label_graph.fill(COUNTS, torch.randn(5, 12))
        return model

    return make


@pytest.fixture(scope="module")
def scahn(make_scahn):
    return make_scahn(queue_size=6)


@pytest.fixture(scope="module")
def folder(scahn, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scahn")
    scahn.save_pretrained(folder)
    return folder


def assert_equal_weights(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# Configuration


def test_defaults_inherited_from_cmfah_and_replaced():
    config = SCAHNObjectiveConfig()
    hinges = ("intra_feature", "intra_hash", "inter_feature", "inter_hash")
    assert {getattr(config, f"{name}_weight") for name in hinges} == {0}
    kept = ("quantization", "label", "concept", "paired", "adversarial", "label_graph")
    assert {getattr(config, f"{name}_weight") for name in kept} == {1}
    assert (config.cross_contrast_weight, config.intra_contrast_weight, config.queue_size) == (1, 1, 0)
    assert (config.label_graph_threshold, config.label_graph_share) == (0.4, 0.2)
    assert (config.label_graph_temperature, config.contrast_temperature) == (0.1, 0.2)
    assert (SCAHNConfig.model_type, config.adversarial, SCAHNConfig().backbone) == ("scahn", "both", "vgg19")
    assert SCAHNObjectiveConfig(adversarial="none").adversarial_weight == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adversarial": "all"}, "adversarial is 'all'; choose one of none, features, hash, both"),
        ({"label_graph_threshold": 0}, "label_graph_threshold is 0"),
        ({"label_graph_share": 1.0}, "label_graph_share is 1.0"),
        ({"contrast_temperature": 0.0}, "contrast_temperature is 0.0"),
        ({"label_graph_temperature": -1}, "label_graph_temperature is -1"),
        ({"queue_size": -1}, "queue_size is -1"),
        ({"cross_contrast_weight": -0.5}, "cross_contrast_weight is -0.5"),
        ({"id2label": {}}, "there are no classes; set use_label_graph false"),
        ({"id2label": {}, "use_label_graph": False, "queue_size": 4}, "there are no classes; set queue_size 0"),
        ({"hash_bits": 12}, "hash_bits is 12"),
    ],
)
def test_invalid_configurations_are_reported_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as raised:
        pretraining_model("scahn", **settings)
    assert "\n" not in str(raised.value)


# Models


@torch.no_grad()
def test_towers_are_those_of_cmfah(scahn, batch):
    plain = CMFAHModel(CMFAHForPreTraining.config_class(**cmfah_settings(scahn.config))).eval()
    plain.load_state_dict(scahn.cmfah.state_dict())
    assert type(scahn.cmfah) is SCAHNModel
    assert [type(part) for part in (scahn.cmfah.image_model, scahn.cmfah.text_model)] == [
        SCAHNImageModel,
        SCAHNTextModel,
    ]
    found, expected = scahn.cmfah(**batch), plain(**batch)
    for name in ("image_hash", "text_hash", "image_features", "text_features"):
        assert torch.equal(found[name], expected[name])
    assert torch.equal(scahn.cmfah.get_image_hash(batch["pixel_values"]), plain.get_image_hash(batch["pixel_values"]))


def cmfah_settings(config):
    known = set(CMFAHForPreTraining.config_class.__dataclass_fields__)
    return {name: value for name, value in config.to_dict().items() if name in known - {"objective"}}


def test_a_seed_draws_the_same_towers_as_in_cmfah(scahn):
    models = []
    for cls, config in (
        (SCAHNForPreTraining, scahn.config),
        (CMFAHForPreTraining, CMFAHForPreTraining.config_class(**cmfah_settings(scahn.config))),
    ):
        torch.manual_seed(5)
        models.append(cls(config))
    assert_equal_weights(models[0].cmfah, models[1].cmfah)
    assert not models[0].objective.label_graph.counts.any()
    assert models[0].objective.label_graph.vectors.std() > 0.5


def discriminator_loss_by_formula(model, kind, image, text):
    """Four cross-entropies, by their formula."""
    total = 0.0
    for name, own, other in (("image", image, text), ("text", text, image)):
        discriminator = getattr(model.objective, f"{name}{kind}_discriminator")
        for values, real in ((own, 1), (other, 0)):
            probability = torch.sigmoid(discriminator(values).logits)
            total -= (probability if real else 1 - probability).log().mean().item()
    return total


def guided(features, graph, labels, temperature):
    logits = cosine_similarity(features, graph) / temperature
    probability = 1 / (1 + np.exp(-logits))
    return np.mean([log_loss(labels[:, c], probability[:, c], labels=[0, 1]) for c in range(labels.shape[1])])


@pytest.mark.parametrize("adversarial", ["none", "features", "hash", "both"])
@torch.no_grad()
def test_each_loss_term_over_both_views(make_scahn, batch, labels, adversarial):
    model = make_scahn(
        adversarial=adversarial,
        adversarial_weight=0.25,
        paired_weight=0.5,
        label_graph_weight=2.0,
        cross_contrast_weight=3.0,
        intra_contrast_weight=0.75,
        similarity_weight=0.5,
        queue_size=4,
    ).double()
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    rng = torch.Generator().manual_seed(3)
    earlier = [torch.rand(2, 16, generator=rng).double() - 0.5 for _ in range(2)]
    earlier_labels = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 1, 1]])
    model.objective.contrast_queue.push(*earlier, earlier_labels)
    outputs = model(**batch, labels=labels)
    losses, image, text = outputs.losses, outputs.image_model_output, outputs.text_model_output
    assert "intra_hash" not in losses  # all hinge weights are zero, so no hinge is computed
    unimodal = outputs.image_hash, outputs.text_hash, outputs.image_features, outputs.text_features
    paired = image.hash_values, text.hash_values, image.features, text.features
    graph = model.objective.label_graph()
    expected = dict.fromkeys(("cross_contrast", "intra_contrast", "graph"), 0.0)
    for weight, (image_hash, text_hash, *features) in ((1.0, unimodal), (0.5, paired)):
        pairs = EarlierPairs(*earlier, earlier_labels)
        for name, value in contrast_losses(image_hash, text_hash, labels, 0.2, earlier=pairs).items():
            expected[name] += weight * value.item()
        expected["graph"] += weight * sum(guided(part, graph, labels.numpy(), 0.1) for part in features)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-9), name
    total = 0.75 * expected["intra_contrast"] + 3 * expected["cross_contrast"] + 2 * expected["graph"]
    total += losses["quantization"] + 0.5 * losses["similarity"] + losses["label"] + losses["concept"]
    for name, kind, values in (("adversarial", "", unimodal[2:]), ("adversarial_hash", "_hash", unimodal[:2])):
        wanted = adversarial in ("both", "hash" if kind else "features")
        assert (name in losses) == wanted
        if wanted:
            assert losses[name].item() == pytest.approx(discriminator_loss_by_formula(model, kind, *values), rel=1e-9)
            total -= 0.25 * losses[name]
    assert outputs.loss.item() == pytest.approx(total.item(), rel=1e-9)
    # Training and evaluation mode, by the inputs that are given.
    assert (model.objective.image_hash_discriminator is not None) == (adversarial in ("hash", "both"))
    assert len(model.objective.discriminators) == (4 if adversarial in ("hash", "both") else 2)


@torch.no_grad()
def test_switches_disable_their_parts(make_scahn, batch, labels):
    switches = {"use_label_graph": False, "use_cross_contrast": False, "use_intra_contrast": False}
    model = make_scahn(**switches, queue_size=4, adversarial="none")
    objective = model.objective
    assert objective.label_graph is objective.contrast_queue is objective.image_hash_discriminator is None
    losses = model(**batch, labels=labels).losses
    assert set(losses) == {"quantization", "similarity", "label", "concept"}
    assert set(make_scahn(**switches, intra_hash_weight=1)(**batch, labels=labels).losses) > {"intra_hash"}


def test_trainable_parts_get_gradients_and_only_training_fills_the_queue(make_scahn, batch, labels):
    model = make_scahn(queue_size=6, freeze_backbone=False)
    model(**batch, labels=labels)
    assert not model.objective.contrast_queue.labels.any()
    model.train()
    outputs = model(**batch, labels=labels)
    outputs.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert torch.equal(model.objective.contrast_queue.labels[:4], labels.float())
    assert torch.equal(model.objective.contrast_queue.image_hash[:4], outputs.image_hash.detach())
    again = model(**batch, labels=labels)
    # Now the batch finds its own items in the queue.
    assert again.losses["cross_contrast"] > outputs.losses["cross_contrast"]


def test_batches_without_similar_pairs_are_finite(make_scahn, batch):
    model = make_scahn(queue_size=2).train()
    for rows in (slice(0, 1), slice(0, 4)):
        part = {name: value[rows] for name, value in batch.items()}
        outputs = model(**part, labels=torch.zeros(len(part["input_ids"]), 5))
        outputs.loss.backward()
        assert outputs.losses["cross_contrast"] == outputs.losses["intra_contrast"] == outputs.losses["graph"] == 0
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("similarity", ["tags", "pairs"])
def test_contrast_without_classes_uses_tags_or_pairs(make_scahn, batch, similarity):
    model = make_scahn(id2label={}, use_label_graph=False, label_weight=0)
    given = torch.rand(4, 9) if similarity == "tags" else torch.tensor([4, 8, 1, 2])
    losses = model(**batch, labels=given).losses
    assert losses["cross_contrast"] > 0
    assert "graph" not in losses
    assert "label" not in losses


# Checkpoints


def test_round_trip_with_graph_and_queue(scahn, folder, silence):
    with silence():
        again = SCAHNForPreTraining.from_pretrained(folder)
    assert_equal_weights(again, scahn)
    assert torch.equal(again.objective.label_graph.counts, COUNTS)
    kept = load_file(folder / "model.safetensors")
    assert torch.equal(kept["objective.label_graph.counts"], COUNTS)
    config = json.loads((folder / "config.json").read_text())
    section = config["objective"]
    assert (config["model_type"], section["_name"]) == ("scahn", "scahn")
    assert (section["label_graph_threshold"], section["queue_size"]) == (0.4, 6)
    half = SCAHNForPreTraining.from_pretrained(folder, dtype=torch.bfloat16)
    assert torch.equal(half.objective.label_graph.counts, COUNTS)
    assert half.objective.label_graph().dtype == torch.bfloat16


def test_towers_of_a_training_checkpoint(scahn, folder, silence, tmp_path):
    for cls, expected in (
        (SCAHNModel, scahn.cmfah),
        (SCAHNImageModel, scahn.cmfah.image_model),
        (SCAHNTextModel, scahn.cmfah.text_model),
    ):
        with silence():
            found, report = cls.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
        assert_equal_weights(found, expected)
    scahn.cmfah.save_pretrained(tmp_path)
    with silence():
        assert_equal_weights(SCAHNImageModel.from_pretrained(tmp_path), scahn.cmfah.image_model)
    again, report = SCAHNForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert {"label_graph", "contrast_queue", "image_hash_discriminator"} < {
        name.split(".")[1] for name in report["missing_keys"]
    }
    assert not again.objective.label_graph.counts.any()
    assert not again.objective.contrast_queue.image_hash.any()
    assert again.objective.label_graph.vectors.isfinite().all()


def test_each_method_rejects_the_checkpoint_of_the_other(folder, pretraining_folder):
    with pytest.raises(ValueError, match="a checkpoint of 'scahn', not of 'cmfah'"):
        CMFAHModel.from_pretrained(folder)
    for cls in (SCAHNModel, SCAHNForPreTraining, SCAHNImageModel):
        with pytest.raises(ValueError, match="a checkpoint of 'cmfah', not of 'scahn'"):
            cls.from_pretrained(pretraining_folder)


def test_auto_classes_distinguish_the_methods(folder, pretraining_folder):
    for where, name in ((folder, "SCAHN"), (pretraining_folder, "CMFAH")):
        found = [auto.from_pretrained(where) for auto in (AutoConfig, AutoModel, AutoModelForPreTraining)]
        assert [type(each).__name__ for each in found] == [f"{name}Config", f"{name}Model", f"{name}ForPreTraining"]


SCRIPT = """
import sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cmfah_hf":
            raise ImportError(f"{name} is hidden")

here = Path(sys.argv[1])
sys.meta_path.insert(0, Hidden())
import torch
torch.set_num_threads(1)
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor
processor = AutoProcessor.from_pretrained(here, trust_remote_code=True)
found = {"words": processor(text=["A dog, สุนัขวิ่ง boats"], return_tensors="pt").input_ids}
inputs = load_file(here / "inputs.safetensors")
with torch.no_grad():
    towers = AutoModel.from_pretrained(here, trust_remote_code=True)
    assert type(towers).__module__.startswith("transformers_modules."), type(towers)
    found[f"{type(towers).__name__}.image"] = towers.get_image_hash(inputs["pixel_values"])
    found[f"{type(towers).__name__}.text"] = towers.get_text_hash(inputs["input_ids"])
save_file({name: value.contiguous() for name, value in found.items()}, here / "found.safetensors")
"""


@torch.no_grad()
@pytest.mark.slow
def test_new_process_without_the_package_computes_the_same_bits(make_scahn, batch, tmp_path):
    model, here = make_scahn(queue_size=3), tmp_path / "model"
    model.save_pretrained(here)
    rules = {"word_rules": WordRules("icu", fold_marks=True), "unknown_words": "similar"}
    CMFAHProcessor.from_vocabulary(model.config, ["boat", "dog", "วิ่ง"], **rules).save_pretrained(here)
    assert type(AutoProcessor.from_pretrained(here)) is CMFAHProcessor
    save_file(batch, here / "inputs.safetensors")
    files = {path.name for path in here.glob("*.py")}
    own = {"configuration_scahn.py", "modeling_scahn.py"}
    assert own | {"configuration_cmfah.py", "modeling_cmfah.py", "processing_cmfah.py"} < files
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(here)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    found = load_file(here / "found.safetensors")
    assert found.pop("words").tolist() == [[1, 3, 1, 4, 2]]
    expected = {
        "image": model.cmfah.get_image_hash(batch["pixel_values"]),
        "text": model.cmfah.get_text_hash(batch["input_ids"]),
    }
    assert set(found) == {f"{name}.{side}" for name in ("SCAHNModel",) for side in expected}
    for name, value in found.items():
        assert torch.equal(value, expected[name.rpartition(".")[2]]), name
