"""SSAH against its formula in loops, its label network and tables, and trainings with it.

Letters: N training pairs, B pairs of the batch, D feature width, K bits, C classes.
"""

import math

import pytest
import torch
from safetensors.torch import load_file

from cmfah_hf.methods.base import TrainingState
from cmfah_hf.methods.deep.ssah import CODES, FEATURES, LABELS, SSAHObjectiveConfig

WEIGHTS = {
    "feature_weight": 0.7,
    "hash_weight": 1.3,
    "quantization_weight": 0.4,
    "label_weight": 2.5,
    "adversarial_weight": 1.7,
}
SMALL = {"label_hidden_size": 10, "label_net_steps": 2}


def tables(count, seed=5):
    """Outputs of the label network for all training pairs, as earlier steps may have left them."""
    random = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, 3, generator=random) < 0.4).float()
    return {
        FEATURES: torch.rand(count, 12, generator=random, dtype=torch.float64),
        CODES: torch.rand(count, 8, generator=random, dtype=torch.float64) * 2 - 1,
        LABELS: labels,
    }


def softplus(value):
    return torch.log(1 + torch.exp(value))


def network_terms(features, codes, logits, labels, stored, kind):
    """The four terms of one network, pair by pair and entry by entry."""
    pairs = {"feature": 0.0, "hash": 0.0}
    for i in range(len(labels)):
        for j in range(len(stored[LABELS])):
            similar = float(any(labels[i, c] * stored[LABELS][j, c] > 0 for c in range(labels.shape[1])))
            for name, own, other in (("feature", features, stored[FEATURES]), ("hash", codes, stored[CODES])):
                theta = sum(own[i, d] * other[j, d] for d in range(own.shape[1])) / 2
                if kind == "likelihood":
                    pairs[name] = pairs[name] + softplus(theta) - similar * theta
                else:
                    pairs[name] = pairs[name] + (0.999 * similar * theta - softplus(theta)) ** 2 / 2
    quantization = sum((c - (1 if c >= 0 else -1)) ** 2 for c in codes.flatten())
    label = 0.0
    for logit, truth in zip(logits.flatten(), labels.flatten(), strict=True):
        label = label + (truth - 1 / (1 + torch.exp(-logit))) ** 2
    return {**pairs, "quantization": quantization, "label": label}


def weighted(terms, count):
    return sum(WEIGHTS[f"{name}_weight"] * value for name, value in terms.items()) / count


@pytest.mark.parametrize("kind", ["likelihood", "squared"])
@pytest.mark.parametrize("numbered", [True, False])
def test_value_and_gradient_are_those_of_the_formula(deep_model, deep_batch, kind, numbered):
    model = deep_model("ssah", dtype=torch.float64, pair_loss=kind, **WEIGHTS, **SMALL)
    objective, batch = model.objective, deep_batch(4)
    state, given = TrainingState(), {"labels": batch.labels}
    if numbered:
        state, given["row"] = TrainingState(7, tables(7)), torch.tensor([5, 0, 3, 6])
        stored = state.tables
    else:
        with torch.no_grad():
            own = objective.label_net(batch.labels)
        stored = {FEATURES: own.features, CODES: own.codes, LABELS: batch.labels}
    count = 4 * len(stored[LABELS])
    losses = objective(given, batch.outputs, state)

    expected, outputs = 0.0, batch.outputs
    for number, (features, codes) in enumerate(
        [(outputs.image_features, outputs.image_hash), (outputs.text_features, outputs.text_hash)]
    ):
        head, discriminator = objective.class_heads[number], objective.discriminators[number]
        terms = network_terms(features, codes, head(features), batch.labels.double(), stored, kind)
        terms["adversarial"] = sum(-torch.log(1 / (1 + torch.exp(-discriminator(row)[0]))) for row in features)
        expected = expected + weighted(terms, count)
    torch.testing.assert_close(losses.total, expected)
    assert list(losses.terms) == ["feature", "hash", "quantization", "label", "adversarial"]

    wanted = [*batch.leaves.values(), *objective.class_heads.parameters()]
    found = torch.autograd.grad(losses.total, wanted, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(one, other)
    # The label network is a teacher: the towers' loss does not change it.
    teacher = torch.autograd.grad(losses.total, list(objective.label_net.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in teacher)


@pytest.mark.parametrize("kind", ["likelihood", "squared"])
def test_the_label_network_has_the_same_terms(deep_model, deep_batch, kind):
    objective = deep_model("ssah", dtype=torch.float64, pair_loss=kind, **WEIGHTS, **SMALL).objective
    batch, rows = deep_batch(4), torch.tensor([5, 0, 3, 6])
    state = TrainingState(7, tables(7))
    before = dict(state.tables)
    loss = objective.label_net_loss({"labels": batch.labels, "row": rows}, batch.outputs, state)

    own = objective.label_net(batch.labels)
    stored = {name: table.clone() for name, table in before.items()}
    stored[FEATURES][rows], stored[CODES][rows] = own.features.detach(), own.codes.detach()
    expected = weighted(network_terms(*own, batch.labels.double(), stored, kind), 28)
    torch.testing.assert_close(loss, expected)
    wanted = list(objective.label_net.parameters())
    found = torch.autograd.grad(loss, wanted)
    for one, other in zip(found, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(one, other)

    others = torch.tensor([1, 2, 4])
    for name, values in ((FEATURES, own.features), (CODES, own.codes)):
        torch.testing.assert_close(state.tables[name][rows], values.detach())
        assert torch.equal(state.tables[name][others], before[name][others])
        assert state.tables[name] is not before[name]


def test_discriminators_tell_the_features_of_labels_from_others(deep_model, deep_batch):
    objective = deep_model("ssah", dtype=torch.float64, **SMALL).objective
    batch = deep_batch(5)
    loss = objective.discriminator_loss({"labels": batch.labels}, batch.outputs, TrainingState())
    of_labels, expected = objective.label_net(batch.labels).features.detach(), 0.0
    for number, features in enumerate((batch.outputs.image_features, batch.outputs.text_features)):
        for real, fake in zip(of_labels, features, strict=True):
            answers = [1 / (1 + torch.exp(-objective.discriminators[number](row)[0])) for row in (real, fake)]
            expected = expected - torch.log(answers[0]) - torch.log(1 - answers[1])
    torch.testing.assert_close(loss, expected / 20)
    loss.backward()
    assert all(weight.grad is None for weight in objective.label_net.parameters())


def test_at_zero_the_likelihood_is_ln_2_a_pair(deep_model, deep_batch):
    objective, batch = deep_model("ssah", adversarial_weight=0, **SMALL).objective, deep_batch(6, dtype=torch.float32)
    state = TrainingState(7, {name: table.float() * (name == LABELS) for name, table in tables(7).items()})
    terms = objective({"labels": batch.labels, "row": torch.arange(6)}, batch.outputs, state).terms
    assert set(terms) == {"feature", "hash", "quantization", "label"}
    for name in ("feature", "hash"):
        assert terms[name].item() == pytest.approx(2 * math.log(2), rel=1e-6)  # of both towers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("pair_loss", "cubic"), ("label_net_steps", 0), ("label_hidden_size", 0)),
        *(("label_net_learning_rate", 0), ("adversarial_weight", -1)),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}; (give|choose)"):
        SSAHObjectiveConfig(**{name: value})


def test_players_follow_the_settings(deep_model):
    model = deep_model("ssah", label_net_learning_rate=0.5, adversarial_weight=0, **SMALL)
    label_net, discriminator = model.objective.players()
    assert (label_net.name, label_net.steps, label_net.learning_rate) == ("label_net", 2, 0.5)
    assert (discriminator.name, discriminator.is_active) == ("discriminator", False)
    assert label_net.module is model.objective.label_net


def test_codes_do_not_depend_on_the_batch(deep_model, assert_codes_ignore_the_batch):
    assert_codes_ignore_the_batch(deep_model("ssah", **SMALL))


def test_training_separates_the_classes(deep_model, deep_trainer):
    model = deep_model("ssah", hidden_size=24, label_hidden_size=16, label_net_steps=1, label_net_learning_rate=0.03)
    trainer = deep_trainer(model, num_train_epochs=40, learning_rate=0.03, discriminator_learning_rate=0.001)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] < 0.6 * logged[0]
    assert trainer.evaluate()["eval_map"] > 0.9
    state = trainer.training_state
    assert {name: tuple(table.shape) for name, table in state.tables.items()} == {
        FEATURES: (24, 24),
        CODES: (24, 8),
        LABELS: (24, 3),
    }
    # Pairs of one class got one label code, up to the steps since.
    codes, labels = state.tables[CODES], state.tables[LABELS].argmax(dim=1)
    cosines = torch.cosine_similarity(codes[:, None], codes[None], dim=2)
    same = labels[:, None] == labels[None]
    assert cosines[same].min() > cosines[~same].max()


def test_an_interrupted_training_resumes_bit_identically(resume):
    whole, resumed, checkpoint = resume("ssah", step=4, **SMALL)  # within the second epoch
    for name, table in whole.training_state.tables.items():
        assert torch.equal(resumed.training_state.tables[name], table), name
    assert not torch.equal(load_file(checkpoint / "codes.safetensors")[CODES], whole.training_state.tables[CODES])


def test_the_objective_is_saved_with_the_towers(deep_model, reload):
    reload(deep_model("ssah", **SMALL))
