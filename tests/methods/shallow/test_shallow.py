"""Shallow methods: their formulas against loops and finite differences, their invariances, files and errors."""

import json

import numpy as np
import pytest

from cmfah_hf.errors import CheckpointError, DataError
from cmfah_hf.evaluation.metrics import mean_average_precision
from cmfah_hf.methods import CCAITQ, CMFH, CMSSH, SCM, SCRATCH, FeatureMap, SePH, ShallowHasher
from cmfah_hf.methods.closed_form.rotations import itq_rotation, signs
from cmfah_hf.methods.shallow.hasher import hasher_class, ridge
from cmfah_hf.methods.shallow.maps import radial_basis
from cmfah_hf.methods.shallow.scm import correlation
from cmfah_hf.methods.shallow.seph import divergence, label_probabilities, logistic

HASHERS = [
    CCAITQ(bits=6),
    CMFH(bits=6, rounds=3),
    CMSSH(bits=6, pairs=300),
    SCM(bits=6),
    SCRATCH(bits=6, anchors=20, rounds=3),
    SePH(bits=6, anchors=20, steps=20),
]
every_method = pytest.mark.parametrize("hasher", HASHERS, ids=lambda hasher: hasher.name)


@pytest.fixture(scope="module")
def pairs():
    """Features of 60 images and texts of three classes, and their labels; some pairs have two."""
    random = np.random.default_rng(0)
    labels_NC = np.eye(3)[np.arange(60) % 3]
    labels_NC[::7, 1] = 1
    images_ND = labels_NC @ random.normal(size=(3, 9)) + 0.5 * random.normal(size=(60, 9)) + 2
    texts_ND = labels_NC @ random.normal(size=(3, 7)) + 0.5 * random.normal(size=(60, 7)) - 1
    return images_ND, texts_ND, labels_NC


def fitted(hasher, pairs):
    images_ND, texts_ND, labels_NC = pairs
    return hasher.fit(images_ND, texts_ND, labels_NC if hasher.supervised else None)


@every_method
def test_codes_find_pairs_of_the_same_class(hasher, pairs):
    images_ND, texts_ND, labels_NC = pairs
    hasher = fitted(hasher, pairs)
    relevant_NN = labels_NC @ labels_NC.T > 0
    image_NK, text_NK = signs(hasher.encode_image(images_ND)), signs(hasher.encode_text(texts_ND))
    assert image_NK.shape == text_NK.shape == (60, 6)
    for query_NK, found_NK in ((image_NK, text_NK), (text_NK, image_NK)):
        assert mean_average_precision(query_NK @ found_NK.T, relevant_NN) > relevant_NN.mean() + 0.15
    assert hasher.training_codes_.dtype == np.int8
    assert hasher.training_codes_.shape == (60, 6)
    assert set(np.unique(hasher.training_codes_)) == {-1, 1}


@every_method
def test_codes_do_not_depend_on_the_batch_and_equal_seeds_give_equal_codes(hasher, pairs):
    images_ND, texts_ND, _ = pairs
    hasher = fitted(hasher, pairs)
    whole_NK = hasher.encode_text(texts_ND)
    parts_NK = np.concatenate([hasher.encode_text(texts_ND[:1]), hasher.encode_text(texts_ND[1:])])
    np.testing.assert_allclose(whole_NK, parts_NK, rtol=1e-6, atol=1e-9)
    settings = {name: getattr(hasher, name) for name in ("bits", *hasher.positive)}
    again = fitted(type(hasher)(**settings, **({"steps": 20} if hasher.name == "seph" else {})), pairs)
    np.testing.assert_array_equal(again.encode_image(images_ND), hasher.encode_image(images_ND))


@every_method
def test_a_saved_hasher_gives_the_same_scores(hasher, pairs, tmp_path):
    images_ND, texts_ND, _ = pairs
    hasher = fitted(hasher, pairs)
    hasher.save_pretrained(tmp_path / "model")
    loaded = ShallowHasher.from_pretrained(tmp_path / "model")
    assert loaded == hasher  # the settings
    assert type(loaded) is type(hasher) is hasher_class(hasher.name)
    np.testing.assert_array_equal(loaded.encode_image(images_ND), hasher.encode_image(images_ND))
    np.testing.assert_array_equal(loaded.encode_text(texts_ND), hasher.encode_text(texts_ND))
    np.testing.assert_array_equal(loaded.training_codes_, hasher.training_codes_)
    hasher.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"holds 'notes\.txt', which would be lost"):
        hasher.save_pretrained(tmp_path / "model")
    if hasher.database == "pair":
        expected_NK = hasher.encode_pair(images_ND, texts_ND)
        np.testing.assert_array_equal(loaded.encode_pair(images_ND, texts_ND), expected_NK)
        np.testing.assert_array_equal(hasher.training_codes_, signs(expected_NK))
    assert hasher.paper.bibtex.startswith("@inproceedings{")


@every_method
def test_bad_input_is_named(hasher, pairs):
    images_ND, texts_ND, labels_NC = pairs
    kind = type(hasher)
    labels = labels_NC if hasher.supervised else None
    with pytest.raises(DataError, match="has learned nothing; call fit first"):
        kind(bits=2).encode_image(images_ND)
    with pytest.raises(DataError, match="bits is 0; give a number above 0"):
        kind(bits=0)
    with pytest.raises(DataError, match="60 rows of image features and 59 of text features"):
        kind(bits=2).fit(images_ND, texts_ND[1:], labels)
    broken_ND = texts_ND.copy()
    broken_ND[4, 0] = np.nan
    with pytest.raises(DataError, match="Row 4 of the text features has a NaN"):
        kind(bits=2).fit(images_ND, broken_ND, labels)
    with pytest.raises(DataError, match="All rows of the image features are equal"):
        kind(bits=2).fit(np.ones_like(images_ND), texts_ND, labels)
    with pytest.raises(DataError, match="image features are float64 of shape"):
        kind(bits=2).fit(images_ND[0], texts_ND, labels)
    with pytest.raises(DataError, match="width 7, and those of the training had 9"):
        fitted(hasher, pairs).encode_image(texts_ND)
    if hasher.supervised:
        with pytest.raises(DataError, match="is supervised; give the labels"):
            kind(bits=2).fit(images_ND, texts_ND)
        with pytest.raises(DataError, match="labels of 59 pairs, and features of 60"):
            kind(bits=2).fit(images_ND, texts_ND, labels_NC[1:])
        with pytest.raises(DataError, match="must be 0 or 1"):
            kind(bits=2).fit(images_ND, texts_ND, labels_NC * 2)
        with pytest.raises(DataError, match="Pair 3 has no label"):
            kind(bits=2).fit(images_ND, texts_ND, np.where(np.arange(60)[:, None] == 3, 0, labels_NC))
    else:
        with pytest.raises(DataError, match="is unsupervised and uses no labels"):
            kind(bits=2).fit(images_ND, texts_ND, labels_NC)
    if hasher.database != "pair":
        with pytest.raises(DataError, match="has no codes of pairs"):
            hasher.encode_pair(images_ND, texts_ND)


def test_damaged_folders_are_refused(pairs, tmp_path):
    hasher = fitted(SCM(bits=4), pairs)
    folder = tmp_path / "model"
    hasher.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="has a model of scm; load it with SCM"):
        CMFH.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"method": "nothing"}, "There is no shallow method 'nothing' but cca-itq, cmfh"),
        ({"method": 3}, "names no method"),
        ({"margin": 1}, "scm has no setting margin"),
        ({"bits": "many"}, "no readable model of scm"),
        ({"bits": -1}, "bits is -1"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            ShallowHasher.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="no readable model of scm"):
        ShallowHasher.from_pretrained(folder)


def test_maps_of_damaged_arrays_are_refused():
    tensors = FeatureMap(np.zeros(3), np.zeros((3, 2)), np.zeros(2)).tensors()
    assert FeatureMap.from_tensors(tensors).bias.shape == (2,)
    with pytest.raises(DataError, match="shape"):
        FeatureMap.from_tensors({**tensors, "bias": np.zeros(3)})
    with pytest.raises(DataError, match="A map of features has anchors, bias"):
        FeatureMap.from_tensors({**tensors, "other": np.zeros(3)})


# SCM


def test_scm_has_the_correlation_of_all_pairs_without_their_matrix(pairs):
    images_ND, texts_ND, labels_NC = (each[:20] for each in pairs)
    expected_DE = np.zeros((9, 7))
    for row in range(20):
        for other in range(20):
            lengths = np.linalg.norm(labels_NC[row]) * np.linalg.norm(labels_NC[other])
            similarity = 2 * labels_NC[row] @ labels_NC[other] / lengths - 1
            expected_DE += 8 * similarity * np.outer(images_ND[row], texts_ND[other])
    np.testing.assert_allclose(correlation(images_ND, texts_ND, labels_NC, 8), expected_DE, rtol=1e-10)


def test_first_bit_of_both_solutions_of_scm_is_the_same(pairs):
    images_ND, texts_ND, labels_NC = pairs
    scores = [
        SCM(bits=3, solution=name).fit(images_ND, texts_ND, labels_NC).encode_text(texts_ND)[:, 0]
        for name in ("seq", "orth")
    ]
    correlation_of_both = np.corrcoef(*scores)[0, 1]
    assert abs(correlation_of_both) == pytest.approx(1, abs=1e-6)


def test_bits_of_scm_do_not_depend_on_which_modality_is_the_wider(pairs):
    images_ND, texts_ND, labels_NC = pairs
    one = SCM(bits=5).fit(images_ND, texts_ND, labels_NC)
    other = SCM(bits=5).fit(texts_ND, images_ND, labels_NC)
    np.testing.assert_array_equal(one.encode_image(images_ND), other.encode_text(images_ND))


def test_scm_ends_with_canonical_correlations_on_request():
    random = np.random.default_rng(6)
    images_ND, texts_ND = random.normal(size=(60, 9)), random.normal(size=(60, 7))
    labels_NC = np.eye(3)[np.arange(60) % 3]
    plain = SCM(bits=10).fit(images_ND, texts_ND, labels_NC)
    filled = SCM(bits=10, on_rise="cca").fit(images_ND, texts_ND, labels_NC)
    same_K = (plain.image_map_.weight == filled.image_map_.weight).all(axis=0)
    first = int(np.argmin(same_K))
    assert 0 < first < 10
    assert not same_K[first:].any()
    x_ND, y_ND = images_ND - images_ND.mean(axis=0), texts_ND - texts_ND.mean(axis=0)
    scores = x_ND @ filled.image_map_.weight[:, first], y_ND @ filled.text_map_.weight[:, first]
    left, right = (np.linalg.svd(each, full_matrices=False)[0] for each in (x_ND, y_ND))
    largest = np.linalg.svd(left.T @ right)[1][0]
    assert abs(np.corrcoef(*scores)[0, 1]) == pytest.approx(largest, abs=1e-5)
    with pytest.raises(DataError, match="of 32 bits left after a rise, and at most 9"):
        SCM(bits=32, on_rise="cca").fit(images_ND, texts_ND, labels_NC)


def test_settings_of_scm_are_checked(pairs):
    images_ND, texts_ND, labels_NC = pairs
    with pytest.raises(DataError, match="solution is 'all'; choose 'seq' or 'orth'"):
        SCM(solution="all")
    with pytest.raises(DataError, match="on_rise is 'stop'; choose 'continue' or 'cca'"):
        SCM(on_rise="stop")
    with pytest.raises(DataError, match="bits is 4, and SCM with solution='orth' has at most 3 here"):
        SCM(bits=4, solution="orth").fit(images_ND, texts_ND, labels_NC)


# CCA-ITQ


def test_first_direction_of_cca_has_the_largest_correlation(pairs):
    images_ND, texts_ND, _ = pairs
    hasher = CCAITQ(bits=1, ridge=1e-9).fit(images_ND, texts_ND)
    found = np.corrcoef(hasher.encode_image(images_ND)[:, 0], hasher.encode_text(texts_ND)[:, 0])[0, 1]
    x_ND, y_ND = images_ND - images_ND.mean(axis=0), texts_ND - texts_ND.mean(axis=0)
    left, right = (np.linalg.svd(each, full_matrices=False)[0] for each in (x_ND, y_ND))
    assert found == pytest.approx(np.linalg.svd(left.T @ right)[1][0], abs=1e-6)


def test_itq_brings_directions_nearer_to_their_signs(pairs):
    images_ND, texts_ND, _ = pairs
    hasher = CCAITQ(bits=6).fit(images_ND, texts_ND)
    both_NK = np.concatenate([hasher.encode_image(images_ND), hasher.encode_text(texts_ND)])
    both_NK = both_NK / np.sqrt(np.square(both_NK).mean())
    loss = np.square(signs(both_NK) - both_NK).mean()
    _, losses = itq_rotation(both_NK, 50, seed=1)
    assert loss <= losses[0]
    with pytest.raises(DataError, match="CCA has at most 7 directions here"):
        CCAITQ(bits=8).fit(images_ND, texts_ND)


# CMFH


def test_rounds_of_cmfh_decrease_its_objective(pairs):
    images_ND, texts_ND, _ = pairs
    hasher = CMFH(bits=6, rounds=10).fit(images_ND, texts_ND)
    assert len(hasher.objectives_) == 10
    assert (np.diff(hasher.objectives_) <= 1e-9).all()


def test_every_update_of_cmfh_is_a_minimum(pairs):
    random = np.random.default_rng(1)
    hasher = CMFH(bits=4, map_weight=3.0, ridge_weight=0.2)
    features = tuple(each - each.mean(axis=0) for each in pairs[:2])
    bases = [random.normal(size=(4, each.shape[1])) for each in features]
    maps = [random.normal(size=(each.shape[1], 4)) for each in features]
    factor_NK = hasher._factor(features, bases, maps)
    least = hasher.objective(features, factor_NK, bases, maps)
    for _ in range(20):
        step_NK = 1e-3 * random.normal(size=factor_NK.shape)
        assert hasher.objective(features, factor_NK + step_NK, bases, maps) > least
    # The maps of pairs, which are saved, give the same factor less its mean.
    fitted = hasher.fit(*pairs[:2])
    scores_NK = fitted.encode_pair(*pairs[:2])
    np.testing.assert_allclose(scores_NK.mean(axis=0), 0, atol=1e-6)


# SCRATCH


def test_the_rotation_of_scratch_is_orthogonal_and_its_factor_a_minimum(pairs):
    hasher = fitted(SCRATCH(bits=6, anchors=20, rounds=4), pairs)
    np.testing.assert_allclose(hasher.rotation_ @ hasher.rotation_.T, np.eye(6), atol=1e-10)
    random = np.random.default_rng(2)
    labels_NC, factor_NK = pairs[2], random.normal(size=(60, 6))
    codes_NK = signs(factor_NK)
    phi = [radial_basis(each, each[:20], 30.0) for each in pairs[:2]]
    phi = [each - each.mean(axis=0) for each in phi]

    class Kernel:
        def __init__(self, phi_NA):
            self.phi_NA = phi_NA

        def map_to(self, factor_NK, strength):
            return ridge(self.phi_NA, factor_NK, strength)

    kernels = [Kernel(each) for each in phi]
    label_KC = ridge(factor_NK, labels_NC, hasher.ridge_weight / hasher.label_weight)
    bases = [ridge(factor_NK, each, 2 * hasher.ridge_weight) for each in phi]
    maps = [ridge(each, factor_NK, hasher.ridge_weight / hasher.map_weight) for each in phi]

    def objective(v_NK):
        value = hasher.label_weight * np.square(labels_NC - v_NK @ label_KC).sum()
        value += np.square(codes_NK - v_NK @ hasher.rotation_).sum() + hasher.ridge_weight * np.square(v_NK).sum()
        for each, base, weight in zip(phi, bases, maps, strict=True):
            value += np.square(each - v_NK @ base).sum() / 2
            value += hasher.map_weight * np.square(v_NK - each @ weight).sum()
        return value

    best_NK = hasher._factor(kernels, factor_NK, codes_NK, labels_NC)
    for _ in range(20):
        assert objective(best_NK + 1e-3 * random.normal(size=best_NK.shape)) > objective(best_NK)


# CMSSH


def test_cmssh_separates_two_classes_with_one_bit():
    labels_NC = np.eye(2)[np.arange(80) % 2]
    images_ND, texts_ND = np.outer(labels_NC[:, 0], np.ones(4)), np.outer(labels_NC[:, 1], np.ones(3))
    hasher = CMSSH(bits=1, pairs=500).fit(images_ND, texts_ND, labels_NC)
    image_N, text_N = (signs(scores)[:, 0] for scores in (hasher.encode_image(images_ND), hasher.encode_text(texts_ND)))
    np.testing.assert_array_equal(image_N, text_N)
    np.testing.assert_array_equal(np.abs(image_N[labels_NC[:, 0] > 0].sum()), 40)
    assert hasher.agreements_ == pytest.approx([1])


def test_agreement_of_cmssh_bounds_the_weights(pairs):
    hasher = fitted(CMSSH(bits=8, pairs=500), pairs)
    assert (hasher.agreements_ > 0).all()
    assert (hasher.agreements_ <= 1).all()
    images_ND, texts_ND, _ = pairs
    with pytest.raises(DataError, match="almost no two pairs are dissimilar"):
        CMSSH(bits=1, pairs=10).fit(images_ND, texts_ND, np.ones((60, 1)))


# SePH


def test_gradient_of_seph(pairs):
    random = np.random.default_rng(4)
    p_NN = label_probabilities(pairs[2][:12])
    h_NK = random.normal(size=(12, 3))
    expected_NK = np.zeros_like(h_NK)
    for place in np.ndindex(*h_NK.shape):
        step_NK = np.zeros_like(h_NK)
        step_NK[place] = 1e-6
        expected_NK[place] = (
            divergence(p_NN, h_NK + step_NK, 0.1)[0] - divergence(p_NN, h_NK - step_NK, 0.1)[0]
        ) / 2e-6
    value, gradient_NK = divergence(p_NN, h_NK, 0.1)
    np.testing.assert_allclose(gradient_NK, expected_NK, rtol=1e-4, atol=1e-7)
    slow = 0.1 * sum((abs(h) - 1) ** 2 for h in h_NK.flat)
    near = [[1 / (1 + np.square(a - b).sum() / 4) for b in h_NK] for a in h_NK]
    total = sum(near[i][j] for i in range(12) for j in range(12) if i != j)
    for i, j in np.ndindex(12, 12):
        if i != j and p_NN[i, j] > 0:
            slow += p_NN[i, j] * np.log(p_NN[i, j] * total / near[i][j])
    assert value == pytest.approx(slow, rel=1e-9)


def test_logistic_regression_of_seph_is_a_minimum():
    random = np.random.default_rng(5)
    inputs_NR, codes_N = random.normal(size=(50, 4)), signs(random.normal(size=50))
    w_R = logistic(inputs_NR, codes_N, 0.3)
    gradient_R = 0.6 * w_R - inputs_NR.T @ (codes_N / (1 + np.exp(codes_N * (inputs_NR @ w_R))))
    np.testing.assert_allclose(gradient_R, 0, atol=1e-3)


def test_codes_of_seph_separate_the_sets_of_labels():
    labels_NC = np.eye(3)[np.arange(60) % 3]
    hasher = SePH(bits=8, anchors=60, steps=100)
    codes_NK = signs(hasher._codes(label_probabilities(labels_NC)))
    assert mean_average_precision(codes_NK @ codes_NK.T, labels_NC @ labels_NC.T > 0) == pytest.approx(1)
    assert min(hasher.objectives_) < hasher.objectives_[0]


def test_seph_refuses_more_pairs_than_fit_into_memory(monkeypatch, pairs):
    monkeypatch.setattr("cmfah_hf.methods.shallow.seph.MOST_PAIRS", 50)
    with pytest.raises(DataError, match="matrices of all 60 x 60 pairs; fit it to at most 50"):
        fitted(SePH(bits=4), pairs)
    with pytest.raises(DataError, match="No two pairs share a label"):
        label_probabilities(np.eye(3))
