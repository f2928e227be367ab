"""Towers, the two-tower model and the training model: outputs, losses, gradients, refused inputs."""

import numpy as np
import pytest
import torch

from cmfah_hf.methods import CMFAHDiscriminator, CMFAHForPreTraining, CMFAHForPreTrainingOutput, TrainingState
from cmfah_hf.models import CMFAHImageModel, CMFAHModel, CMFAHTextModel

VARIANTS = ("both", "image", "text", "none")
REGIONS, WORDS, BITS, CONCEPTS = 16, 6, 16, 7
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated"),
]


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


# The two-tower model and the direction of guidance


@pytest.mark.parametrize("guidance", ["select", "add"])
@pytest.mark.parametrize("attention", VARIANTS)
@torch.no_grad()
def test_attention_direction_of_each_variant(make_model, batch, attention, guidance):
    model = make_model(CMFAHModel, attention=attention, guidance=guidance)
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    image, text = attention in ("both", "image"), attention in ("both", "text")
    shapes = [(4, 1, REGIONS, WORDS)] * image + [(4, 1, WORDS, REGIONS)] * text
    assert [tuple(weights.shape) for weights in outputs.attentions or ()] == shapes
    for weights in outputs.attentions or ():
        is_image = weights.shape[-1] == WORDS
        exists = (batch["input_ids"] > 1).any(dim=1) if is_image else torch.ones(4, dtype=torch.bool)
        if guidance == "add":  # one weight vector per position
            close(weights.sum(dim=-1), exists[:, None, None].float().expand(weights.shape[:3]))
        else:  # pooled over all positions; a text without words neither selects nor can be selected from
            words = (batch["input_ids"] > 1).any(dim=1)
            close(weights.sum(dim=(1, 2, 3)), words.float())
        if is_image:
            assert not weights.transpose(1, 3)[batch["input_ids"] < 2].any()
            assert weights.transpose(1, 3)[batch["input_ids"] > 1].all()

    # Guidance changes the features of a guided side; an unguided side keeps its unimodal features.
    unimodal = model.get_image_hash(batch["pixel_values"]), model.get_text_hash(batch["input_ids"])
    words = (batch["input_ids"] > 1).any(dim=1)
    assert ((outputs.image_hash - unimodal[0]).abs().amax(dim=1) > 1e-3)[words].all() == image
    assert ((outputs.text_hash - unimodal[1]).abs().amax(dim=1) > 1e-3)[words].all() == text
    if not image:
        close(outputs.image_hash, unimodal[0])
    if not text:
        close(outputs.text_hash, unimodal[1])
    assert (model.image_model.encoder.concepts is not None, model.text_model.encoder.concepts is not None) == (
        image,
        text,
    )


@torch.no_grad()
def test_each_side_has_its_own_temperature(make_model, batch):
    model = make_model(CMFAHModel, guidance="add", image_temperature=2.0, text_temperature=30.0)
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    regions = outputs.image_model_output.hidden_states[0][0].double()
    words = outputs.text_model_output.hidden_states[0][0].double()[batch["input_ids"][0] > 1]
    for local, partner, temperature, found in (
        (regions, words, 2.0, outputs.attentions[0][0, 0]),
        (words, regions, 30.0, outputs.attentions[1][0, 0]),
    ):
        similarity = torch.cosine_similarity(local[:, None], partner[None], dim=-1).clamp(min=0)
        similarity = similarity / similarity.square().sum(dim=0, keepdim=True).sqrt().clamp(min=1e-6)
        close(found.double(), (temperature * similarity).softmax(dim=1))


@torch.no_grad()
def test_selected_features_are_added_to_pooled_ones(make_model, batch):
    """`[selection]`, each formula written out in float64, for the cross-modal view and for the concepts."""
    model = make_model(CMFAHModel, image_temperature=2.0, text_temperature=30.0, image_pooling="max").double()
    outputs = model(**batch, output_attentions=True)
    exists = batch["input_ids"] > 1
    regions = outputs.image_model_output.last_hidden_state
    words = outputs.text_model_output.last_hidden_state
    unimodal = model.image_model(batch["pixel_values"]), model.text_model(batch["input_ids"], batch["attention_mask"])
    concepts = model.image_model.encoder.concepts, model.text_model.encoder.concepts
    for i in range(4):
        own = words[i][exists[i]]
        local_regions = model.image_model.embeddings(batch["pixel_values"]).positions[i]
        local_words = model.text_model.embeddings(batch["input_ids"], batch["attention_mask"]).positions[i][exists[i]]
        for temperature, hidden, asking, pooled, features, weights in (
            (2.0, regions[i], local_words, regions[i].amax(dim=0), outputs.image_features[i], outputs.attentions[0][i]),
            (30.0, own, local_regions, own.sum(dim=0) / max(len(own), 1), outputs.text_features[i], None),
            (2.0, regions[i], concepts[0], regions[i].amax(dim=0), unimodal[0].features[i], None),
            (
                30.0,
                own,
                model.text_model.encoder.concepts,
                own.sum(dim=0) / max(len(own), 1),
                unimodal[1].features[i],
                None,
            ),
        ):
            if not len(asking) or not len(hidden):
                close(features, pooled)
                continue
            shares = (temperature * torch.cosine_similarity(hidden[:, None], asking[None], dim=-1)).exp()
            shares = shares / shares.sum()
            close(features, pooled + shares.sum(dim=1) @ hidden)
            if weights is not None:
                close(weights[0][:, exists[i]], shares)


@pytest.mark.parametrize("attention", ["both", "image", "text"])
@pytest.mark.parametrize("use_lstm", [True, False])
@pytest.mark.parametrize("paired", [True, False])
def test_both_views_in_one_pass_match_two_passes(make_model, batch, labels, attention, use_lstm, paired):
    model = make_model(CMFAHForPreTraining, attention=attention, use_lstm=use_lstm, **WEIGHTS).double()
    codes = torch.where(torch.rand(4, BITS) < 0.5, -1.0, 1.0).double()
    gradients = []
    for recorded in ({}, {"output_attentions": True}):  # attention weights are recorded in two calls
        outputs = model(**batch, labels=labels.double(), codes=codes, paired=paired, **recorded)
        assert (outputs.image_model_output is not None) == (outputs.text_model_output is not None) == paired
        learning = [p for p in model.parameters() if p.requires_grad]
        gradients.append([outputs.loss.detach(), *torch.autograd.grad(outputs.loss, learning, allow_unused=True)])
    for found, expected in zip(*gradients, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("guidance", ["select", "add"])
def test_unimodal_view_only(make_model, batch, labels, guidance):
    model = make_model(CMFAHForPreTraining, guidance=guidance, **{**WEIGHTS, "adversarial_weight": 0.0})
    found, both = (model(**batch, labels=labels, paired=paired) for paired in (False, True))
    close(found.image_hash, both.image_hash)
    close(found.text_hash, both.text_hash)
    assert "adversarial" not in found.losses  # of discriminators that are not trained
    # Its losses are those of the unimodal view, and so are its codes.
    model.objective.settings.paired_weight = 0.0
    codes = torch.where(found.image_hash + found.text_hash >= 0, 1.0, -1.0)
    for name, value in model(**batch, labels=labels, codes=codes).losses.items():
        close(found.losses[name], value)


@torch.no_grad()
def test_each_side_has_its_own_pooling(make_model, batch):
    outputs = make_model(CMFAHModel, guidance="add", image_pooling="max", text_pooling="mean_max")(**batch)
    close(outputs.image_features, outputs.image_model_output.last_hidden_state.amax(dim=1))
    words = outputs.text_model_output.last_hidden_state[0][batch["input_ids"][0] > 1]
    close(outputs.text_features[0], words.mean(dim=0) + words.amax(dim=0))


@torch.no_grad()
def test_dropout_only_in_training_mode(make_model, batch):
    model = make_model(CMFAHModel, dropout=0.5)
    once = model(**batch)
    close(model(**batch).image_hash, once.image_hash)
    model.train()
    for name in ("image_hash", "text_hash"):
        assert (model(**batch)[name] - model(**batch)[name]).abs().max() > 1e-3


@torch.no_grad()
def test_hidden_states_are_the_positions_before_and_after_each_block(make_model, batch):
    model = make_model(CMFAHModel, guidance="add", num_hidden_layers=2)
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    towers = (outputs.image_model_output, REGIONS), (outputs.text_model_output, WORDS)
    for tower, positions in towers:
        assert [tuple(states.shape) for states in tower.hidden_states] == [(4, positions, 16)] * 3
        close(tower.hidden_states[-1], tower.last_hidden_state)
        assert len(tower.attentions) == 2
    close(outputs.image_model_output.hidden_states[0], model.image_model.embeddings(batch["pixel_values"]).positions)
    close(outputs.image_features, outputs.image_model_output.last_hidden_state.mean(dim=1))
    exists = (batch["input_ids"] > 1).float()
    lengths = exists.sum(dim=1, keepdim=True).clamp(min=1)
    close(outputs.text_features, outputs.text_model_output.last_hidden_state.sum(dim=1) / lengths)
    assert not outputs.text_model_output.last_hidden_state[exists == 0].any()
    assert [tuple(weights.shape) for weights in outputs.attentions] == [
        *[(4, 1, REGIONS, WORDS)] * 2,
        *[(4, 1, WORDS, REGIONS)] * 2,
    ]


@torch.no_grad()
def test_single_tower_attends_to_its_concepts_without_a_partner(make_model, batch):
    model = make_model(CMFAHModel)
    image = model.image_model(batch["pixel_values"], output_attentions=True)
    text = model.text_model(batch["input_ids"], batch["attention_mask"], output_attentions=True)
    assert image.attentions[0].shape == (4, 1, REGIONS, CONCEPTS)
    assert text.attentions[0].shape == (4, 1, WORDS, CONCEPTS)
    one = model(pixel_values=batch["pixel_values"])
    assert one.text_hash is one.text_features is one.text_model_output is None
    close(one.image_hash, image.hash_values)
    close(one.image_hash, model.get_image_hash(batch["pixel_values"]))
    other = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert other.image_hash is other.image_features is other.image_model_output is None
    close(other.text_hash, text.hash_values)
    close(other.text_hash, model.get_text_hash(batch["input_ids"], batch["attention_mask"]))
    assert image.hash_values.shape == text.hash_values.shape == (4, BITS)
    for values in (image.hash_values, text.hash_values):
        assert values.abs().max() < 1


# Padding, unknown words, other items of the batch, empty texts


def spread(rows, width, side):
    """Texts as a batch: padded on one side, or with unknown words inserted."""
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        if side == "inside":
            ids[i, ::2][: len(row)] = torch.tensor(row, dtype=torch.long)
            ids[i, 1::2] = 1
        elif row:
            ids[i, slice(0, len(row)) if side == "right" else slice(width - len(row), None)] = torch.tensor(row)
    return ids


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_hidden_layers": 2},
        {"use_lstm": False},
        {"attention": "none"},
        {"text_pooling": "max", "image_pooling": "mean_max"},
    ],
)
@torch.no_grad()
def test_padding_and_other_items_of_the_batch_change_nothing(make_model, batch, settings):
    model = make_model(CMFAHModel, **settings)
    rows = [[5, 9, 3, 7], [4], [8, 8], []]
    pixels = batch["pixel_values"]
    lone_text = torch.cat([model.get_text_hash(torch.tensor([row or [0]])) for row in rows])
    lone_image = torch.cat([model.get_image_hash(pixels[i : i + 1]) for i in range(4)])
    pairs = [model(pixels[i : i + 1], torch.tensor([row or [0]])) for i, row in enumerate(rows)]
    close(model.get_image_hash(pixels), lone_image)
    close(model.get_image_hash(pixels.flip(0)).flip(0), lone_image)
    for side, width in (("right", 4), ("right", 9), ("left", 4), ("left", 9), ("inside", 11)):
        ids = spread(rows, width, side)
        for mask in (None, (ids != 0).long(), ids != 0):
            close(model.get_text_hash(ids, mask), lone_text)
        outputs = model(pixels, ids)
        close(outputs.image_hash, torch.cat([pair.image_hash for pair in pairs]))
        close(outputs.text_hash, torch.cat([pair.text_hash for pair in pairs]))
        order = [2, 0, 3, 1]
        close(model(pixels[order], ids[order]).text_hash, outputs.text_hash[order])
    # The order of words does matter, so the model does not ignore its input.
    if settings.get("use_lstm", True) or settings.get("attention") == "none":
        swapped = model.get_text_hash(torch.tensor([[7, 3, 9, 5]]))
        assert (swapped - lone_text[:1]).abs().max() > 1e-3


@torch.no_grad()
def test_masked_words_are_ignored(make_model):
    model = make_model(CMFAHTextModel)
    ids, mask = torch.tensor([[5, 9, 3, 7]]), torch.tensor([[1, 0, 1, 0]])
    close(model(ids, mask).hash_values, model(torch.tensor([[5, 3]])).hash_values)


@pytest.mark.parametrize(("attention", "pooling"), [("both", "mean"), ("none", "max"), ("both", "mean_max")])
@torch.no_grad()
def test_texts_without_known_words_equal_the_empty_text(make_model, batch, attention, pooling):
    model = make_model(CMFAHModel, attention=attention, text_pooling=pooling)
    empty = model.get_text_hash(torch.tensor([[0]]), torch.tensor([[0]]))
    close(empty, model.text_model.hash_head.dense.bias.tanh()[None])  # a feature of zero
    for ids in ([[0, 0, 0]], [[1]], [[1, 1, 1]], [[0, 1]], [[]]):
        close(model.get_text_hash(torch.tensor(ids, dtype=torch.long)), empty)
    outputs = [model(batch["pixel_values"][:1], torch.tensor(ids, dtype=torch.long)) for ids in ([[0]], [[1, 1]], [[]])]
    for output in outputs:
        close(output.text_hash, empty)
        close(output.image_hash, outputs[0].image_hash)
        assert output.image_hash.isfinite().all()
    if attention == "both":
        weights = model(batch["pixel_values"][:1], torch.tensor([[1]]), output_attentions=True).attentions[0]
        assert not weights.any()


@torch.no_grad()
def test_batch_without_columns_holds_empty_texts(make_model, batch):
    model = make_model(CMFAHModel)
    ids, mask = torch.zeros(4, 0, dtype=torch.long), torch.zeros(4, 0, dtype=torch.long)
    empty = model.get_text_hash(torch.zeros(4, 1, dtype=torch.long))
    close(model.get_text_hash(ids), empty)
    close(model.get_text_hash(ids, mask), empty)
    close(model.get_text_hash(inputs_embeds=torch.zeros(4, 0, 12), attention_mask=mask), empty)
    close(model(batch["pixel_values"], ids).text_hash, empty)
    assert model.get_text_hash(torch.zeros(0, 3, dtype=torch.long)).shape == (0, BITS)
    assert model.get_image_hash(torch.zeros(0, 3, 32, 32)).shape == (0, BITS)


@torch.no_grad()
def test_word_vectors_in_place_of_words(make_model, batch):
    model = make_model(CMFAHModel)
    ids = torch.tensor([[5, 9, 3], [4, 0, 0]])
    embeds, mask = model.get_input_embeddings()(ids), ids != 0
    close(model.get_text_hash(inputs_embeds=embeds, attention_mask=mask), model.get_text_hash(ids))
    pixels = batch["pixel_values"][:2]
    outputs = model(pixels, inputs_embeds=embeds, attention_mask=mask)
    close(outputs.image_hash, model(pixels, ids).image_hash)


# Precomputed regions, and refused inputs


@torch.no_grad()
def test_precomputed_regions_replace_pixels(make_model, batch):
    model = make_model(CMFAHModel)
    regions = model.image_model.embeddings.extract_regions(batch["pixel_values"])
    assert regions.shape == (4, REGIONS, 8)
    close(model.get_image_hash(region_features=regions), model.get_image_hash(batch["pixel_values"]))
    words = {name: batch[name] for name in ("input_ids", "attention_mask")}
    close(model(region_features=regions, **words).image_hash, model(**batch).image_hash)
    close(model(region_features=regions, **words).text_hash, model(**batch).text_hash)


def test_regions_of_another_backbone_are_refused(make_model):
    with pytest.raises(ValueError, match="region_features have 9 channels and the backbone gives 8") as raised:
        make_model(CMFAHImageModel)(region_features=torch.zeros(2, 4, 9))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("cls", [CMFAHModel, CMFAHForPreTraining])
def test_exactly_one_form_of_each_input_is_required(make_model, batch, cls):
    model = make_model(cls)
    regions, embeds = torch.zeros(4, 2, 8), torch.zeros(4, 6, 12)
    with pytest.raises(ValueError, match="pixel_values"):
        model()
    with pytest.raises(ValueError, match="either pixel_values or region_features"):
        model(**batch, region_features=regions)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(**batch, inputs_embeds=embeds)
    image, text = make_model(CMFAHImageModel), make_model(CMFAHTextModel)
    for call in (image, lambda: image(pixel_values=batch["pixel_values"], region_features=regions)):
        with pytest.raises(ValueError, match="either pixel_values or region_features"):
            call()
    for call in (text, lambda: text(input_ids=batch["input_ids"], inputs_embeds=embeds)):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            call()


def test_training_model_needs_pairs(make_model, batch):
    model = make_model(CMFAHForPreTraining)
    with pytest.raises(ValueError, match="input_ids"):
        model(pixel_values=batch["pixel_values"])
    with pytest.raises(ValueError, match="pixel_values"):
        model(input_ids=batch["input_ids"])


# Losses

WEIGHTS = {
    "intra_feature_weight": 2.0,
    "intra_hash_weight": 0.5,
    "quantization_weight": 3.0,
    "inter_feature_weight": 0.25,
    "inter_hash_weight": 1.5,
    "similarity_weight": 0.75,
    "label_weight": 4.0,
    "concept_weight": 1.25,
    "adversarial_weight": 0.125,
}


def cross_entropy(logits, truth):
    return -np.mean(truth * np.log(1 / (1 + np.exp(-logits))) + (1 - truth) * np.log(1 / (1 + np.exp(logits))))


@pytest.mark.parametrize(("attention", "paired_weight"), [("both", 0.5), ("none", 0.5), ("both", 0.0)])
def test_training_loss_is_the_weighted_sum_over_both_views(make_model, batch, labels, attention, paired_weight):
    model = make_model(
        CMFAHForPreTraining, attention=attention, paired_weight=paired_weight, label_positive_weight=3.0, **WEIGHTS
    )
    codes = torch.where(torch.rand(4, BITS) < 0.5, -1.0, 1.0)
    outputs = model(**batch, labels=labels, codes=codes)
    losses = {name: value.item() for name, value in outputs.losses.items()}
    without = {"concept"} if attention == "none" else set()
    assert set(losses) == {name.removesuffix("_weight") for name in WEIGHTS} - without
    expected = sum(
        WEIGHTS[f"{name}_weight"] * value * (-1) ** (name == "adversarial") for name, value in losses.items()
    )
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)
    again = model.objective({"labels": labels, "codes": codes}, outputs, TrainingState())
    assert (again.total.item(), again.terms["label"].item()) == pytest.approx((outputs.loss.item(), losses["label"]))

    # The public continuous codes are unimodal; the cross-modal codes are in the outputs of the towers.
    with torch.no_grad():
        paired = model.cmfah(**batch)
        close(outputs.image_hash, model.cmfah.get_image_hash(batch["pixel_values"]))
        close(outputs.text_hash, model.cmfah.get_text_hash(batch["input_ids"]))
        close(outputs.image_model_output.hash_values, paired.image_hash)
        close(outputs.text_model_output.hash_values, paired.text_hash)

    views = [(1.0, outputs.image_hash, outputs.image_features, outputs.text_hash, outputs.text_features)]
    if attention != "none":
        views.append((paired_weight, paired.image_hash, paired.image_features, paired.text_hash, paired.text_features))
    label = quantization = 0.0
    truth = labels.double().numpy()
    for weight, *tensors in views:
        image_hash, image, text_hash, text = (tensor.detach() for tensor in tensors)
        for values in (image_hash, text_hash):
            logits = model.objective.label_head(values).detach().double().numpy()
            element = -(
                3.0 * truth * np.log(1 / (1 + np.exp(-logits))) + (1 - truth) * np.log(1 / (1 + np.exp(logits)))
            )
            label += weight * element.mean()
            quantization += weight * (values - codes).square().mean().item()
    assert losses["label"] == pytest.approx(label, rel=1e-4)
    image, text = outputs.image_features, outputs.text_features  # of the unimodal view, as in the discriminator loss
    adversarial = sum(
        cross_entropy(discriminator(features).logits.detach().double().numpy(), truth)
        for discriminator, own, other in (
            (model.objective.image_discriminator, image, text),
            (model.objective.text_discriminator, text, image),
        )
        for features, truth in ((own, 1), (other, 0))
    )
    assert losses["adversarial"] == pytest.approx(adversarial, rel=1e-4)
    assert losses["quantization"] == pytest.approx(quantization, rel=1e-4)
    if attention != "none":  # the best region or word for each class's concept predicts whether the class is present
        image, text = model.cmfah.image_model, model.cmfah.text_model
        states = (
            (image(batch["pixel_values"]).last_hidden_state, torch.ones(4, REGIONS, dtype=torch.bool)),
            (text(batch["input_ids"]).last_hidden_state, batch["input_ids"] > 1),
        )
        heads, expected = (model.objective.image_concept_head, model.objective.text_concept_head), 0.0
        for head, tower, (hidden, exists) in zip(heads, (image, text), states, strict=True):
            concepts = tower.encoder.concepts[:5].detach()
            cosines = torch.cosine_similarity(hidden.detach()[:, :, None], concepts[None, None], dim=-1)
            best = np.where(exists[..., None], cosines, -1.0).max(axis=1)
            logits = np.exp(head.log_scale.item()) * (best - head.bias.detach().numpy())
            expected += cross_entropy(logits.astype(np.float64), truth)
        assert losses["concept"] == pytest.approx(expected, rel=1e-4)


def test_discriminator_is_a_three_layer_mlp(make_model):
    model = make_model(CMFAHDiscriminator)
    features, truth = torch.randn(5, 16), torch.tensor([1, 0, 1, 1, 0])
    hidden = features.numpy().astype(np.float64)
    for layer in (model.dense_in, model.dense_hidden, model.dense_out):
        hidden = hidden @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if layer is not model.dense_out:
            hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    outputs = model(features, labels=truth)
    np.testing.assert_allclose(outputs.logits.detach().numpy(), hidden[:, 0], rtol=1e-4, atol=1e-6)
    assert outputs.loss.item() == pytest.approx(cross_entropy(hidden[:, 0], truth.numpy()), rel=1e-5)


def test_discriminators_learn_to_separate_the_modalities(make_model):
    model = make_model(CMFAHForPreTraining)
    image, text = torch.randn(64, 16) + 0.7, torch.randn(64, 16) - 0.7
    optimizer = torch.optim.Adam(
        [*model.objective.image_discriminator.parameters(), *model.objective.text_discriminator.parameters()], 1e-2
    )

    def loss_of(model):
        outputs = CMFAHForPreTrainingOutput(image_hash=image, text_hash=text, image_features=image, text_features=text)
        return model.objective.players()[0].loss({}, outputs, TrainingState())

    first = loss_of(model).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert loss_of(model).item() < 0.2 * first
    assert ((model.objective.image_discriminator(image).logits > 0).float().mean()) > 0.95
    assert ((model.objective.text_discriminator(image).logits < 0).float().mean()) > 0.95


# Gradients and frozen parts


def test_every_training_parameter_gets_a_gradient(make_model, batch, labels):
    model = make_model(CMFAHForPreTraining, freeze_backbone=False, normalize_features=True, num_hidden_layers=2).train()
    model(**batch, labels=labels).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    zero = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert (without, zero) == ([], [])
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_frozen_backbone_does_not_change(make_model, batch, labels, pretraining_folder):
    for model in (make_model(CMFAHForPreTraining), CMFAHForPreTraining.from_pretrained(pretraining_folder)):
        backbone = model.cmfah.image_model.embeddings.backbone
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        assert any(name.endswith("running_mean") for name in before)
        model.train()
        assert model.cmfah.image_model.embeddings.training
        assert not any(module.training for module in backbone.modules())
        model(**batch, labels=labels).loss.backward()
        for parameter in backbone.parameters():
            assert not parameter.requires_grad
            assert parameter.grad is None
        assert model.cmfah.image_model.embeddings.projection.weight.grad.any()
        for name, value in backbone.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_fresh_model_has_its_frozen_backbone_in_evaluation_mode(make_config):
    model = CMFAHImageModel(make_config())  # PyTorch's initial mode: training, without a call of train()
    assert model.training
    assert not any(module.training for module in model.embeddings.backbone.modules())


def test_unfrozen_backbone_changes(make_model, batch, labels):
    model = make_model(CMFAHForPreTraining, freeze_backbone=False).train()
    backbone = model.cmfah.image_model.embeddings.backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items() if name.endswith("running_mean")}
    model(**batch, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert all(not torch.equal(backbone.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_and_trainable_word_vectors(make_model, batch, labels, tmp_path, frozen):
    model = make_model(CMFAHForPreTraining, freeze_word_vectors=frozen)
    model.save_pretrained(tmp_path)
    for each in (model, CMFAHForPreTraining.from_pretrained(tmp_path)):
        each.train()
        each(**batch, labels=labels).loss.backward()
        table = each.get_input_embeddings().weight
        assert table.requires_grad is not frozen
        assert (table.grad is None) is frozen
        if not frozen:
            seen = table.grad.abs().sum(dim=1) > 0
            assert seen.nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 7, 8, 9]  # neither [PAD] nor [UNK]


@pytest.mark.parametrize(("guidance", "views"), [("add", 2), ("select", 1)])
def test_gradient_checkpointing_gives_the_same_gradients(make_model, batch, labels, guidance, views):
    gradients = []
    for checkpointing in (False, True):
        model = make_model(CMFAHForPreTraining, guidance=guidance, num_hidden_layers=2).train()
        calls: list[int] = []
        if checkpointing:
            model.gradient_checkpointing_enable()
            for layer in (*model.cmfah.image_model.encoder.layers, *model.cmfah.text_model.encoder.layers):
                wrapped = layer._gradient_checkpointing_func
                layer._gradient_checkpointing_func = lambda *args, f=wrapped, seen=calls: (seen.append(1), f(*args))[1]
        model(**batch, labels=labels).loss.backward()
        assert len(calls) == (4 * views if checkpointing else 0)  # two blocks, two towers; the selection needs one pass
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient)


def test_vgg_is_checkpointed_by_stage(make_model, batch):
    model = make_model(CMFAHImageModel, backbone="vgg11", freeze_backbone=False).train()
    model(batch["pixel_values"][:2]).hash_values.sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert all(gradient.any() for name, gradient in expected.items() if "backbone" in name)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    backbone, stages = model.embeddings.backbone, []
    checkpoint = backbone._gradient_checkpointing_func
    backbone._gradient_checkpointing_func = lambda f, x: (stages.append(x.shape[-1]), checkpoint(f, x))[1]
    model(batch["pixel_values"][:2]).hash_values.sum().backward()
    assert stages == [32, 16, 8, 4, 2]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4)


# The blocks that both towers share


@torch.no_grad()
def test_both_towers_share_the_residual_blocks_and_each_loads_its_own_copy(make_model, batch, tmp_path):
    model = make_model(CMFAHModel, shared_mlp_size=12)
    head = model.image_model.hash_head
    features = model.image_model(batch["pixel_values"]).features
    x = features
    for block in head.mlp:
        hidden = torch.nn.functional.layer_norm(x, x.shape[1:], block.norm.weight, block.norm.bias)
        x = x + block.scale * block.dense_out(torch.nn.functional.gelu(block.dense_in(hidden)))
    close(model.get_image_hash(batch["pixel_values"]), head.dense(x).tanh())
    model.save_pretrained(tmp_path)
    again = CMFAHModel.from_pretrained(tmp_path).eval()
    assert again.text_model.hash_head.mlp is again.image_model.hash_head.mlp
    ids = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    image, text = model.get_image_hash(batch["pixel_values"]), model.get_text_hash(**ids)
    for found in (
        again.get_image_hash(batch["pixel_values"]),
        CMFAHImageModel.from_pretrained(tmp_path).eval()(batch["pixel_values"]).hash_values,
    ):
        torch.testing.assert_close(found, image, rtol=0, atol=0)
    for found in (again.get_text_hash(**ids), CMFAHTextModel.from_pretrained(tmp_path).eval()(**ids).hash_values):
        torch.testing.assert_close(found, text, rtol=0, atol=0)


@torch.no_grad()
def test_new_blocks_and_bit_queries_change_no_code(make_config, batch):
    codes = []
    for settings in ({}, {"shared_mlp_size": 12}, {"bit_queries": True}):
        torch.manual_seed(0)
        model = CMFAHModel(make_config(**settings)).eval()
        plain = CMFAHModel(make_config()).eval()
        missing = model.load_state_dict(plain.state_dict(), strict=False)
        assert not missing.unexpected_keys
        codes.append((model.get_image_hash(batch["pixel_values"]), plain.get_image_hash(batch["pixel_values"])))
    for found, expected in codes:
        close(found, expected)
