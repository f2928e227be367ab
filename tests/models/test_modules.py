"""The building blocks against their equations in NumPy, and against PyTorch's own layers on texts without padding."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cmfah_hf.models.image_encoder import CMFAHImageEncoder, CMFAHTorchvisionBackbone
from cmfah_hf.models.modules_cmfah import CMFAHCoAttention, CMFAHEncoder, CMFAHHashHead, CMFAHLayer
from cmfah_hf.models.text_encoder import CMFAHTextCNN

# Multiples of 1/8 are zero or far from zero, so no cosine depends on the epsilon for short vectors.
vectors = st.integers(-8, 8).map(lambda value: value / 8)


def attend(local, partner, exists, temperature):
    """`[similarity]` and `[attention-v]` or `[attention-t]` of one item, position by position."""
    similarity = np.zeros((len(local), len(partner)))
    for i, x in enumerate(local):
        for k, y in enumerate(partner):
            lengths = np.sqrt(x @ x) * np.sqrt(y @ y)
            similarity[i, k] = max(0.0, x @ y / lengths) if lengths > 0 else 0.0
    lengths = np.sqrt((similarity**2).sum(axis=0))
    similarity = np.divide(similarity, lengths, out=np.zeros_like(similarity), where=lengths > 0)
    weights = np.exp(temperature * similarity) * exists
    weights = np.divide(weights, weights.sum(axis=1, keepdims=True), out=weights, where=exists.any())
    return weights @ partner, weights


@settings(max_examples=60)
@given(
    arrays(np.float64, (2, 3, 4), elements=vectors),
    arrays(np.float64, (2, 5, 4), elements=vectors),
    arrays(bool, (2, 5)),
    st.sampled_from([4.0, 9.0]),
)
def test_attention_matches_the_paper(local, partner, exists, temperature):
    attended, weights = CMFAHCoAttention(temperature)(torch.tensor(local), torch.tensor(partner), torch.tensor(exists))
    assert weights.shape == (2, 1, 3, 5)
    for i in range(2):
        expected, expected_weights = attend(local[i], partner[i], exists[i], temperature)
        np.testing.assert_allclose(weights[i, 0].numpy(), expected_weights, atol=1e-9)
        np.testing.assert_allclose(attended[i].numpy(), expected, atol=1e-9)
        np.testing.assert_allclose(weights[i, 0].sum(dim=1).numpy(), float(exists[i].any()), atol=1e-9)
        assert not weights[i, 0][:, torch.tensor(~exists[i])].any()


def test_attention_without_a_mask_covers_all_positions():
    torch.manual_seed(0)
    local, partner = torch.randn(2, 3, 4).double(), torch.randn(2, 5, 4).double()
    attention = CMFAHCoAttention(4.0)
    whole = attention(local, partner, None)
    masked = attention(local, partner, torch.ones(2, 5, dtype=torch.bool))
    for x, y in zip(whole, masked, strict=True):
        torch.testing.assert_close(x, y)


def test_attention_selects_the_one_match():
    """A region that matches one word, among words that match other regions, gets that word's feature."""
    local, words = torch.eye(4)[None, :3], torch.eye(4)[None, [2, 0, 1, 3]]
    _, weights = CMFAHCoAttention(60.0)(local, words, None)
    assert weights[0, 0].argmax(dim=1).tolist() == [1, 2, 0]
    assert weights[0, 0].amax(dim=1).min() > 0.999
    # Opposite vectors are no match: a negative cosine counts as zero, like a right angle.
    _, weights = CMFAHCoAttention(60.0)(local, torch.cat([-local, local[:, :1]], dim=1), None)
    torch.testing.assert_close(weights[0, 0, 1], torch.full((4,), 0.25))


def convolved(module, embeds):
    """One text through a TextCNN with 'same' padding and the layer after it, window by window."""
    filters = []
    for convolution in module.convolutions:
        weight, bias = convolution.weight.detach().double(), convolution.bias.detach().double()
        width = weight.shape[2]
        left = (width - 1) // 2
        for position in range(len(embeds)):
            total = bias.clone()
            for offset in range(width):
                source = position - left + offset
                if 0 <= source < len(embeds):
                    total += weight[:, :, offset] @ embeds[source].double()
            filters.append(total.clamp(min=0))
    kinds = torch.stack(filters).unflatten(0, (len(module.convolutions), len(embeds))).transpose(0, 1).flatten(1)
    return kinds @ module.projection.weight.detach().double().T + module.projection.bias.detach().double()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=25)
@given(arrays(bool, (3, 7)))
def test_convolution_reads_neighboring_words_and_no_padding(make_config, exists):
    torch.manual_seed(0)
    module = CMFAHTextCNN(make_config()).eval()
    embeds = torch.randn(3, 7, 12)
    with torch.no_grad():
        found, mask, vectors = module(inputs_embeds=embeds, attention_mask=torch.tensor(exists))
    assert vectors is None  # which only dual encoders have
    assert torch.equal(mask, torch.tensor(exists))
    assert not found[torch.tensor(~exists)].any()
    for i in range(3):
        if exists[i].any():
            expected = convolved(module, embeds[i, exists[i]])
            torch.testing.assert_close(found[i, exists[i]].double(), expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=20)
@given(arrays(bool, (2, 6)))
def test_layer_pools_existing_positions_in_order(make_config, exists):
    torch.manual_seed(0)
    layer = CMFAHLayer(make_config(), attends=True, temperature=9.0).double()
    mask = torch.tensor(exists)
    local = torch.randn(2, 6, 16).double() * mask[..., None]
    partner = torch.randn(2, 4, 16).double()
    with torch.no_grad():
        found = layer(local, mask, partner, None)
        assert not found[~mask].any()
        for i in range(2):
            if exists[i].any():
                words = local[i, mask[i]]
                attended, _ = attend(words.numpy(), partner[i].numpy(), np.ones(4, bool), 9.0)
                expected = words + layer.lstm(torch.tensor(attended)[None])[0][0]
                torch.testing.assert_close(found[i, mask[i]], expected)


@pytest.mark.parametrize(("attends", "use_lstm"), [(False, True), (True, False), (False, False)])
def test_layer_without_one_of_its_parts(make_config, attends, use_lstm):
    torch.manual_seed(0)
    layer = CMFAHLayer(make_config(use_lstm=use_lstm), attends, temperature=4.0).double()
    local, partner = torch.randn(2, 5, 16).double(), torch.randn(2, 3, 16).double()
    expected = local
    with torch.no_grad():
        if attends:
            gathered = [attend(local[i].numpy(), partner[i].numpy(), np.ones(3, bool), 4.0)[0] for i in range(2)]
            expected = local + torch.tensor(np.stack(gathered))
        if use_lstm:
            expected = local + layer.lstm(local)[0]
        torch.testing.assert_close(layer(local, None, partner, None), expected)


@pytest.mark.parametrize("pooling", ["mean", "max", "mean_max"])
def test_encoder_pools_existing_positions_and_attends_to_concepts(make_config, pooling):
    torch.manual_seed(0)
    pool = {
        "mean": lambda x: x.mean(axis=0),
        "max": lambda x: x.max(axis=0),
        "mean_max": lambda x: x.mean(axis=0) + x.max(axis=0),
    }[pooling]
    config = make_config(guidance="add", num_hidden_layers=2, use_lstm=False)
    encoder = CMFAHEncoder(config, True, 4.0, pooling).double()
    with torch.no_grad():
        encoder.concepts.normal_()
        mask = torch.tensor([[True, False, True], [False, False, False]])
        local = -torch.rand(2, 3, 16).double() * mask[..., None]  # below zero, the value of masked positions
        view = encoder(local, mask, None, None)
        pooled, hidden = view.features, view.hidden_states
        same = encoder(local, mask, encoder.concepts.expand(2, -1, -1), None).features
        concepts, words = encoder.concepts.numpy(), local[0, mask[0]].numpy()
        for _ in range(2):
            words = words + attend(words, concepts, np.ones(len(concepts), bool), 4.0)[0]
        torch.testing.assert_close(hidden[0, mask[0]], torch.tensor(words))
        torch.testing.assert_close(pooled[0], torch.tensor(pool(words)))
        assert not pooled[1].any()
        torch.testing.assert_close(pooled, same)
        view = encoder(local, None, None, None)
        regions, hidden = view.features, view.hidden_states
        for i in range(2):
            torch.testing.assert_close(regions[i], torch.tensor(pool(hidden[i].numpy())))


def test_codes_are_the_tanh_of_a_linear_hash_head(make_config):
    torch.manual_seed(0)
    head = CMFAHHashHead(make_config(), 10).double().eval()
    features, positions = torch.randn(3, 16).double(), torch.randn(3, 5, 16).double()
    weight, bias = head.dense.weight.detach().numpy(), head.dense.bias.detach().numpy()
    expected = np.tanh(features.numpy() @ weight.T + bias)
    for is_paired in (False, True):
        found = head(features, positions, is_paired=is_paired).tanh().detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_each_bit_query_weights_the_existing_positions_by_their_cosines(make_config):
    torch.manual_seed(0)
    temperature, head = 7, CMFAHHashHead(make_config(bit_queries=True), 7).double().eval()
    torch.nn.init.normal_(head.bits.queries), torch.nn.init.normal_(head.bits.weight)
    features, positions = torch.randn(3, 16).double(), torch.randn(3, 5, 16).double()
    mask = torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])
    positions = positions * mask[..., None]
    expected = head.dense(features).detach().numpy()
    queries, weight = (each.detach().numpy() for each in (head.bits.queries, head.bits.weight))
    for item, bit in np.ndindex(expected.shape):
        kept = positions[item][mask[item]].numpy()
        if len(kept):
            cosines = kept @ queries[bit] / np.linalg.norm(kept, axis=1) / np.linalg.norm(queries[bit])
            shares = np.exp(temperature * cosines) / np.exp(temperature * cosines).sum()
            expected[item, bit] += shares @ (kept @ weight[bit])
    found = head(features, positions, mask).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_each_view_has_its_own_normalization_statistics(make_config):
    torch.manual_seed(0)
    head = CMFAHHashHead(make_config(normalize_features=True), 10).train()
    unimodal, cross_modal = torch.randn(64, 16) * 3 + 1, torch.randn(64, 16) - 2
    positions = torch.zeros(64, 1, 16)
    for _ in range(200):
        head(unimodal, positions), head(cross_modal, positions, is_paired=True)
    head.eval()
    weight, bias = head.dense.weight, head.dense.bias
    for features, is_paired in ((unimodal, False), (cross_modal, True)):
        whitened = (features - features.mean(dim=0)) / (features.var(dim=0) + 1e-5).sqrt()
        expected = whitened @ weight.T + bias
        found = head(features, positions, is_paired=is_paired)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_hash_head_with_one_view_has_one_norm(make_config):
    torch.manual_seed(0)
    head = CMFAHHashHead(make_config(normalize_features=True, attention="none"), 10).train()
    features, positions = torch.randn(8, 16) * 2 + 1, torch.zeros(8, 1, 16)
    head(features, positions, is_paired=True)
    head.eval()
    assert head.norm.num_batches_tracked == 1
    torch.testing.assert_close(head(features, positions, is_paired=True), head(features, positions))


def test_torchvision_backbone_matches_torchvision():
    torch.manual_seed(0)
    backbone = CMFAHTorchvisionBackbone("vgg11").eval()
    reference = torchvision.models.vgg11(weights=None, init_weights=False).eval()
    reference.features.load_state_dict({k.removeprefix("features."): v for k, v in backbone.state_dict().items()})
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels), reference.features(pixels))
    assert backbone.channels == [512]


def test_regions_are_in_row_order_and_scaled_per_image(make_config):
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 64, 32)  # an 8 x 4 map, so that rows and columns differ
    for normalize in (True, False):
        module = CMFAHImageEncoder(make_config(normalize_regions=normalize)).eval()
        with torch.no_grad():
            feature_map = module.backbone(pixels).feature_maps[-1]
            regions = module.extract_regions(pixels)
            assert feature_map.shape == (2, 8, 8, 4)
            assert module.region_grid(64, 32) == (8, 4)
            assert module.region_grid() == (4, 4)  # of the images from the processor
            for row in range(8):
                for column in range(4):
                    torch.testing.assert_close(regions[:, row * 4 + column], feature_map[:, :, row, column])
            scaled = regions
            if normalize:
                # The mean square length of an image's regions is the number of channels; relative lengths are kept.
                squares = regions.double().square().sum(dim=-1)
                scaled = (regions * (8 / squares.mean(dim=1))[:, None, None].sqrt()).float()
            expected = scaled @ module.projection.weight.T + module.projection.bias
            torch.testing.assert_close(module(pixels).positions, expected)
            torch.testing.assert_close(module(region_features=regions).positions, expected)
            torch.testing.assert_close(module(region_features=regions.half()).positions, expected, atol=5e-3, rtol=5e-3)


def test_lstm_under_autocast_on_cpu_runs_in_float32(make_config):
    """Some processors do not support half precision here, and the others would give different values."""
    layer = CMFAHLayer(make_config(use_lstm=True), attends=False, temperature=1.0)
    positions = torch.randn(2, 3, layer.lstm.input_size, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(positions, None, None, None)
    assert torch.equal(found, layer(positions, None, None, None))
