"""`CMFAHTrainer` against `[algorithm-1]` written out: cubic triplet sums, plain gradients, plain SGD, B by hand.

Both run in float64, so they agree up to rounding. Letters: B pairs of the batch, D feature width, K bits, C classes.
"""

from copy import deepcopy

import datasets
import numpy as np
import pytest
import torch

from cmfah_hf.models import CMFAHModel
from cmfah_hf.training.task import numbered

CONFIG_WEIGHTS = {
    "intra_feature_weight": 0.7,
    "intra_hash_weight": 1.3,
    "quantization_weight": 0.9,
    "inter_feature_weight": 1.1,
    "inter_hash_weight": 0.8,
    "similarity_weight": 0.6,
    "label_weight": 1.7,
    "concept_weight": 0.9,
    "label_positive_weight": 2.5,
    "adversarial_weight": 0.4,
    "paired_weight": 0.3,
}


def cosines(x, y):
    return (x @ y.T) / (x.norm(dim=1)[:, None] * y.norm(dim=1)[None, :])


def hinge(similarity, share, within, margin):
    """The mean over all triplets, in a loop: anchor a, positive p, negative n."""
    size = len(similarity)
    losses = []
    for a in range(size):
        for p in range(size):
            for n in range(size):
                if share[a, p] and not share[a, n] and not (within and p == a):
                    losses.append((margin + similarity[a, n] - similarity[a, p]).clamp(min=0))
    return torch.stack(losses).mean() if losses else similarity.sum() * 0


def discriminators_loss(model, image, text):
    """Each discriminator labels its own modality 1 and the other 0: four cross-entropies by their formula."""

    def log_loss(discriminator, features, real):
        probability = 1 / (1 + torch.exp(-discriminator(features).logits))
        return -(probability if real else 1 - probability).log().mean()

    return (
        log_loss(model.objective.image_discriminator, image, True)
        + log_loss(model.objective.image_discriminator, text, False)
        + log_loss(model.objective.text_discriminator, text, True)
        + log_loss(model.objective.text_discriminator, image, False)
    )


def view_loss(model, settings, labels, codes, image_hash, text_hash, image_features, text_features):
    share = labels @ labels.T > 0
    intra = sum(hinge(cosines(x, x), share, True, settings.margin) for x in (image_features, text_features))
    intra_hash = sum(hinge(cosines(x, x), share, True, settings.margin) for x in (image_hash, text_hash))

    def inter(x, y):
        similarity = cosines(x, y)
        return hinge(similarity, share, False, settings.margin) + hinge(similarity.T, share, False, settings.margin)

    quantization = ((image_hash - codes) ** 2).mean() + ((text_hash - codes) ** 2).mean()
    target = cosines(labels, labels)
    others = ~torch.eye(len(labels), dtype=torch.bool)
    similarity = ((cosines(image_hash, text_hash) - target) ** 2).mean() + sum(
        ((cosines(x, x) - target) ** 2)[others].mean() / 2 for x in (image_hash, text_hash)
    )
    guidance = 0
    for values in (image_hash, text_hash):
        probability = 1 / (1 + torch.exp(-model.objective.label_head(values)))
        present = settings.label_positive_weight * labels * probability.log()
        guidance = guidance - (present + (1 - labels) * (1 - probability).log()).mean()
    return (
        settings.intra_feature_weight * intra
        + settings.intra_hash_weight * intra_hash
        + settings.quantization_weight * quantization
        + settings.inter_feature_weight * inter(image_features, text_features)
        + settings.inter_hash_weight * inter(image_hash, text_hash)
        + settings.similarity_weight * similarity
        + settings.label_weight * guidance
    )


def split_players(model):
    players = {"towers": {}, "discriminators": {}}
    for name, parameter in model.named_parameters():
        is_backbone = ".backbone." in name
        if not is_backbone:
            players["discriminators" if "_discriminator." in name else "towers"][name] = parameter
    return players


def gradients(loss, parameters):
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if grad is None else grad
        for (name, parameter), grad in zip(parameters.items(), found, strict=True)
    }


def step_by_hand(model, micro_batches, rate, discriminator_rate, target=None, longest=None, paired=True):
    """One update of both players from the micro batches of a batch. `target` of J3; None: the codes of each batch.

    `longest` is the norm to which the towers' gradient is clipped. Without `paired` only the unimodal view is used.
    """
    config, settings = model.config, model.objective.settings
    players = split_players(model)
    model.requires_grad_(True)
    share = 1 / len(micro_batches)
    discriminator_sums = {name: torch.zeros_like(p) for name, p in players["discriminators"].items()}
    tower_sums = {name: torch.zeros_like(p) for name, p in players["towers"].items()}
    for number, batch in enumerate(micro_batches):
        outputs = model(**{name: batch[name] for name in ("region_features", "input_ids", "attention_mask")})
        adversarial = discriminators_loss(model, outputs.image_features.detach(), outputs.text_features.detach())
        for name, gradient in gradients(share * adversarial, players["discriminators"]).items():
            discriminator_sums[name] += gradient
        if number == len(micro_batches) - 1:
            with torch.no_grad():
                for name, parameter in players["discriminators"].items():
                    parameter -= discriminator_rate * discriminator_sums[name]
        unimodal = outputs.image_hash, outputs.text_hash, outputs.image_features, outputs.text_features
        image, text = outputs.image_model_output, outputs.text_model_output
        cross_modal = image.hash_values, text.hash_values, image.features, text.features
        codes = target
        if codes is None:
            codes = sum(cross_modal[:2] if paired else unimodal[:2]).detach()
            codes = torch.where(codes >= 0, 1.0, -1.0).double()
        labels = batch["labels"].double()
        loss = view_loss(model, settings, labels, codes, *unimodal)
        loss = loss - settings.adversarial_weight * discriminators_loss(model, *unimodal[2:])
        if config.attention != "none":  # without attention both views are equal
            if paired:
                loss = loss + settings.paired_weight * view_loss(model, settings, labels, codes, *cross_modal)
            for head, cosines in (
                (model.objective.image_concept_head, outputs.image_concept_cosines),
                (model.objective.text_concept_head, outputs.text_concept_cosines),
            ):
                logits = head.log_scale.exp() * (cosines[:, : labels.shape[1]] - head.bias)
                loss = loss + settings.concept_weight * torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, labels
                )
        for name, gradient in gradients(share * loss, players["towers"]).items():
            tower_sums[name] += gradient
    length = torch.sqrt(sum((gradient**2).sum() for gradient in tower_sums.values()))
    cut = 1 if longest is None else (longest / (length + 1e-6)).clamp(max=1)
    with torch.no_grad():
        for name, parameter in players["towers"].items():
            parameter -= rate * cut * tower_sums[name]


def codes_by_hand(model, collator, pairs):
    """B over all pairs, one pair at a time."""
    model.eval()
    codes = []
    with torch.no_grad():
        for pair in pairs:
            batch = collator([pair])
            outputs = model.cmfah(**{name: batch[name] for name in ("region_features", "input_ids", "attention_mask")})
            total = (outputs.image_hash + outputs.text_hash)[0]
            codes.append([1 if value >= 0 else -1 for value in total.tolist()])
    model.train()
    return torch.tensor(codes)


def record_batches(trainer):
    """Records the batches of the training steps, as passed to the trainer."""
    batches, step = [], trainer.training_step

    def training_step(model, inputs, *args, **kwargs):
        batches.append({name: value.clone() for name, value in inputs.items()})
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = training_step
    return batches


@pytest.mark.parametrize(("attention", "paired_every"), [("both", 1), ("both", 2), ("none", 1)])
@pytest.mark.parametrize("codes_update", ["epoch", "batch"])
def test_three_epochs_match_algorithm_1(make_model, make_pairs, make_trainer, codes_update, attention, paired_every):
    model = make_model(attention=attention, **CONFIG_WEIGHTS).double()
    reference = deepcopy(model)
    pairs = make_pairs(12)
    trainer = make_trainer(
        model,
        pairs,
        num_train_epochs=3,
        per_device_train_batch_size=6,
        codes_update=codes_update,
        paired_every=paired_every,
    )
    batches = record_batches(trainer)
    trainer.train()

    assert len(batches) == 6
    reference.train()
    codes = None
    rows = trainer.train_dataset["row"] if codes_update == "epoch" else None
    for number, batch in enumerate(batches):
        target = None if codes is None else codes[batch["row"]].double()
        step_by_hand(reference, [batch], 0.1, 0.05, target, paired=number % paired_every == 0)
        if codes_update == "epoch" and number % 2:
            assert sorted(torch.cat([b["row"] for b in batches[number - 1 : number + 1]]).tolist()) == list(rows)
            codes = codes_by_hand(reference, trainer.data_collator, pairs)

    moved = 0
    before = dict(make_model(attention=attention, **CONFIG_WEIGHTS).double().named_parameters())
    for (name, parameter), (_, expected) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(
            parameter, expected, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
        moved += not torch.equal(parameter, before[name])
    assert moved >= 20  # the towers, both discriminators and the label head have all been updated
    if codes_update == "epoch":
        assert torch.equal(trainer.training_state.tables.get("codes").long(), codes)
    else:
        assert trainer.training_state.tables.get("codes") is None


def test_towers_train_against_the_updated_discriminators(make_model, make_pairs, make_trainer):
    """The order of the updates matters: towers trained against the previous discriminators differ."""
    model = make_model(**CONFIG_WEIGHTS).double()
    stale, fresh = deepcopy(model), deepcopy(model)
    trainer = make_trainer(model, make_pairs(6), per_device_train_batch_size=6, discriminator_learning_rate=0.5)
    batches = record_batches(trainer)
    trainer.train()
    step_by_hand(fresh, batches, 0.1, 0.5)
    step_by_hand(stale, batches, 0.1, 0.0)

    def distance(other):
        towers, others = split_players(model)["towers"], split_players(other)["towers"]
        return max((towers[name] - others[name]).abs().max().item() for name in towers)

    assert distance(fresh) < 1e-9
    assert distance(stale) > 1e-5


def test_gradients_accumulate_over_micro_batches_for_both_players(make_model, make_pairs, make_trainer):
    model = make_model(**CONFIG_WEIGHTS).double()
    reference = deepcopy(model)
    trainer = make_trainer(
        model, make_pairs(16), per_device_train_batch_size=4, gradient_accumulation_steps=2, codes_update="batch"
    )
    batches = record_batches(trainer)
    steps = []
    trainer.create_optimizer_and_scheduler(2)
    trainer.players["discriminator"].optimizer.register_step_pre_hook(lambda *_: steps.append(len(batches)))
    trainer.train()

    assert steps == [2, 4]  # the discriminators' updates come with the second micro batch, like the towers'
    assert trainer.state.global_step == 2
    reference.train()
    step_by_hand(reference, batches[:2], 0.1, 0.05)
    step_by_hand(reference, batches[2:], 0.1, 0.05)
    for (name, parameter), (_, expected) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(
            parameter, expected, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_gradient_clipping_of_the_towers_uses_only_their_norm(make_model, make_pairs, make_trainer):
    """The discriminators' gradients are neither clipped nor part of the norm."""
    model = make_model(**CONFIG_WEIGHTS).double()
    reference = deepcopy(model)
    trainer = make_trainer(model, make_pairs(6), per_device_train_batch_size=6, max_grad_norm=0.5)
    batches = record_batches(trainer)
    trainer.train()
    reference.train()
    step_by_hand(reference, batches, 0.1, 0.05, longest=0.5)
    for (name, parameter), (_, expected) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(
            parameter, expected, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_each_optimizer_holds_only_its_own_player(make_trainer):
    trainer = make_trainer(optim="adamw_torch", weight_decay=0.07)
    trainer.train()
    model = trainer.model
    second_optimizer = trainer.players["discriminator"].optimizer
    held = {
        player: {id(p) for group in optimizer.param_groups for p in group["params"]}
        for player, optimizer in (("towers", trainer.optimizer), ("discriminators", second_optimizer))
    }
    own = {player: {id(p) for p in parameters.values()} for player, parameters in split_players(model).items()}
    assert held == own
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.07, 0.0}
    assert {group["weight_decay"] for group in trainer.players["discriminator"].optimizer.param_groups} == {0.07}
    assert {group["lr"] for group in trainer.players["discriminator"].optimizer.param_groups} == {0.05}


def test_adamax_is_that_of_its_paper_for_all_players(make_model, make_pairs, make_trainer):
    """Its second update by hand, from the gradients: `u = max(b2 u, |g|)`, `p -= rate / (1 - b1^t) m / u`."""
    given = {"optim": "adamax", "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-12, "num_train_epochs": 2}
    trainer = make_trainer(make_model(**CONFIG_WEIGHTS).double(), make_pairs(8), **given)
    trainer.create_optimizer()
    optimizers = [(trainer.optimizer, 0.1), (trainer.players["discriminator"].optimizer, 0.05)]
    expected = []
    for optimizer, rate in optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = [[torch.zeros_like(parameter), torch.zeros_like(parameter)] for parameter in parameters]
        by_hand = [parameter.detach().clone() for parameter in parameters]
        expected.append((parameters, by_hand))

        def follow(optimizer, *_, parameters=parameters, moments=moments, by_hand=by_hand, rate=rate, steps=[]):  # noqa: B006
            steps.append(1)
            for parameter, (mean, largest), value in zip(parameters, moments, by_hand, strict=True):
                mean.mul_(0.8).add_(0.2 * parameter.grad)
                torch.maximum(0.95 * largest, parameter.grad.abs() + 1e-12, out=largest)
                value.sub_(rate / (1 - 0.8 ** len(steps)) * mean / largest)

        optimizer.register_step_pre_hook(follow)
    before = [value.clone() for _, by_hand in expected for value in by_hand]
    trainer.train()
    assert trainer.state.global_step == 2
    for parameters, by_hand in expected:
        for parameter, value in zip(parameters, by_hand, strict=True):
            torch.testing.assert_close(parameter, value, rtol=0, atol=1e-9)
    after = [value for _, by_hand in expected for value in by_hand]
    assert sum(not torch.equal(one, other) for one, other in zip(before, after, strict=True)) >= 20


@pytest.mark.parametrize("frozen", ["towers", "discriminators"])
def test_rate_zero_freezes_one_player(make_model, make_trainer, frozen):
    model = make_model()
    before = {player: {n: p.clone() for n, p in own.items()} for player, own in split_players(model).items()}
    make_trainer(model, **{"learning_rate" if frozen == "towers" else "discriminator_learning_rate": 0.0}).train()
    for player, own in split_players(model).items():
        changed = {name for name, parameter in own.items() if not torch.equal(parameter, before[player][name])}
        assert (changed == set()) == (player == frozen), (player, changed)


def test_weight_zero_disables_the_discriminators(make_model, make_trainer):
    model = make_model(adversarial_weight=0.0)
    before = {player: {n: p.clone() for n, p in own.items()} for player, own in split_players(model).items()}
    trainer = make_trainer(model, num_train_epochs=2)
    trainer.train()
    now = split_players(model)
    assert all(torch.equal(p, before["discriminators"][n]) for n, p in now["discriminators"].items())
    assert not all(torch.equal(p, before["towers"][n]) for n, p in now["towers"].items())
    # The towers' gradient does not depend on the discriminators: other discriminators give the same towers.
    other = make_model(adversarial_weight=0.0)
    with torch.no_grad():
        for parameter in split_players(other)["discriminators"].values():
            parameter.normal_()
    make_trainer(other, num_train_epochs=2).train()
    assert all(torch.equal(p, now["towers"][n]) for n, p in split_players(other)["towers"].items())


@pytest.mark.parametrize("attention", ["both", "none"])
def test_a_view_that_no_term_reads_is_not_computed(make_model, make_pairs, make_trainer, monkeypatch, attention):
    """Neither are the codes of an epoch, and the weights are the same as if both were computed."""
    without = {name: 0.0 for name in CONFIG_WEIGHTS if name.endswith("_weight") and name != "paired_weight"}
    without |= {"pair_contrast_weight": 1.0, "orthogonality_weight": 0.5, "concept_weight": 0.3}
    ends, views, encode_views = [], [], CMFAHModel.encode_views

    def recording(*inputs, cross_modal):
        views.append(cross_modal)
        return encode_views(*inputs, cross_modal=cross_modal)

    monkeypatch.setattr(CMFAHModel, "encode_views", recording)
    for computed in (False, True):
        model = make_model(attention=attention, **without).double()
        assert not model.objective.needs_cross_modal
        model.objective.needs_cross_modal = computed
        trainer = make_trainer(model, make_pairs(12), num_train_epochs=2, per_device_train_batch_size=6)
        trainer.train()
        assert "codes" not in trainer.training_state.tables
        ends.append(dict(model.named_parameters()))
    assert views == [False] * 4 + [True] * 4
    before = dict(make_model(attention=attention, **without).double().named_parameters())
    assert sum(not torch.equal(ends[0][name], before[name]) for name in before) >= 10
    for name, parameter in ends[0].items():
        # Fused kernels multiply matrices of another shape for two views, which rounds gradients differently.
        atol = 0 if attention == "none" else 1e-12
        torch.testing.assert_close(parameter, ends[1][name], rtol=0, atol=atol, msg=name)


def test_both_schedules_decay_together(make_trainer):
    trainer = make_trainer(num_train_epochs=2, lr_scheduler_type="linear", warmup_steps=2)
    rates = []
    step = trainer.training_step

    def training_step(*args, **kwargs):
        optimizers = trainer.optimizer, trainer.players["discriminator"].optimizer
        rates.append(tuple(optimizer.param_groups[0]["lr"] for optimizer in optimizers))
        return step(*args, **kwargs)

    trainer.training_step = training_step
    trainer.train()
    towers, discriminators = np.array(rates).T
    np.testing.assert_allclose(towers, 0.1 * np.array([0, 0.5, 1, 0.75, 0.5, 0.25]))
    np.testing.assert_allclose(discriminators, towers / 2)


def test_row_numbers_are_exact_beside_regions_in_half_precision():
    count = 5_000  # float16 is exact up to 2,048
    pairs = datasets.Dataset.from_dict({"id": [""] * count, "region_features": [[0.5]] * count})
    kept = pairs.with_format("numpy", columns=["region_features"], output_all_columns=True, dtype=np.float16)
    rows = numbered(kept)[[2_047, 2_049, 4_999]]
    assert [int(number) for number in rows["row"]] == [2_047, 2_049, 4_999]
    assert rows["region_features"].dtype == np.float16
