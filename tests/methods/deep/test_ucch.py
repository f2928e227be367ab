"""UCCH's objective: against loops, its memory and draws, trained, resumed and loaded."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf.data.similarity import PairSimilarity
from cmfah_hf.errors import DataError
from cmfah_hf.methods import TrainingState
from cmfah_hf.methods.deep import ucch
from cmfah_hf.methods.deep.ucch import MEMORY, ranking_loss
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput


def unit(vector):
    return vector / sum(value**2 for value in vector) ** 0.5


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def signs(vector):
    return [1.0 if value >= 0 else -1.0 for value in vector]


def contrast_by_loops(codes, candidates, temperature):
    """For each item, the codes of its own pair and then of the others."""
    total = 0.0
    for code, others in zip(codes, candidates, strict=True):
        scores = [dot(code, other) / (temperature * math.sqrt(len(code))) for other in others]
        total = total - scores[0] + sum(score.exp() for score in scores).log()
    return total / len(codes)


def ranking_by_loops(anchors, others, margin, shift):
    total = 0.0
    for i, anchor in enumerate(anchors):
        own, terms = dot(anchor, others[i]), []
        for other in others:
            cosine = dot(anchor, other)
            terms.append((cosine if cosine >= own - margin else cosine - shift).exp())
        total = total - own + sum(terms).log() + margin
    return total / len(anchors)


def by_loops(image_BK, text_BK, candidates, settings):
    images, texts = ([unit(row) for row in codes] for codes in (image_BK, text_BK))
    contrast = sum(contrast_by_loops(codes, candidates, settings.temperature) for codes in (images, texts))
    ranking = ranking_by_loops(images, texts, settings.margin, settings.shift)
    ranking = ranking + ranking_by_loops(texts, images, settings.margin, settings.shift)
    return settings.alpha * contrast + (1 - settings.alpha) * ranking, {"contrast": contrast, "ranking": ranking}


def assert_equal_with_gradients(found, made, candidates, settings):
    leaves = [made.leaves["image_logits"], made.leaves["text_logits"]]
    total, terms = by_loops(made.outputs.image_hash, made.outputs.text_hash, candidates, settings)
    assert found.terms.keys() == terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(found.terms[name], value, rtol=1e-12, atol=0, msg=name)
    torch.testing.assert_close(found.total, total, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(found.total, leaves, retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(total, leaves), rtol=1e-10, atol=1e-14)


def state_of(count, bits=8, seed=0):
    random = torch.Generator().manual_seed(seed)
    memory = torch.randn(count, bits, generator=random)
    return TrainingState(count, {MEMORY: memory / memory.norm(dim=1, keepdim=True)})


def test_first_epoch_equals_loops_over_the_batch(deep_model, deep_batch):
    model = deep_model("ucch", classes=(), alpha=0.3, margin=0.1, shift=0.4)
    made, state = deep_batch(6), state_of(20)
    mean = [unit(a) + unit(b) for a, b in zip(made.outputs.image_hash, made.outputs.text_hash, strict=True)]
    codes = [signs(row) for row in mean]
    candidates = [[codes[i], *codes[:i], *codes[i + 1 :]] for i in range(6)]
    batch = {"labels": torch.arange(6), "row": torch.tensor([7, 3, 19, 0, 4, 11])}
    found = model.objective(batch, made.outputs, state)
    assert_equal_with_gradients(found, made, candidates, model.objective.settings)
    # Without numbered pairs it is the same, in every epoch.
    model.objective.epochs.advance()
    bare = model.objective({"labels": torch.arange(6)}, made.outputs, TrainingState())
    assert torch.equal(bare.total, found.total)


def test_later_epochs_equal_loops_over_the_drawn_rows(deep_model, deep_batch, monkeypatch):
    model = deep_model("ucch", classes=(), negatives=9, warmup_epochs=2)
    made, state, drawn = deep_batch(6), state_of(20), []
    for _ in range(2):
        model.objective.on_epoch_end(state)
    draw = ucch._own_and_drawn
    monkeypatch.setattr(ucch, "_own_and_drawn", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    memory, batch = state.tables[MEMORY], {"labels": torch.arange(6), "row": torch.tensor([7, 3, 19, 0, 4, 11])}
    found = model.eval().objective(batch, made.outputs, state)
    assert drawn[0].shape == (6, 10)
    candidates = [[signs(memory[row]) for row in rows] for rows in drawn[0].tolist()]
    assert_equal_with_gradients(found, made, candidates, model.objective.settings)


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_draws_are_other_rows_by_the_global_generator(count, negatives, seed):
    rows = torch.arange(count)
    torch.manual_seed(seed)
    drawn = ucch._own_and_drawn(rows, count, negatives)
    torch.manual_seed(seed)
    assert torch.equal(drawn, ucch._own_and_drawn(rows, count, negatives))
    assert drawn.shape == (count, 1 + min(negatives, count - 1))
    assert torch.equal(drawn[:, 0], rows)
    assert (drawn[:, 1:] != rows[:, None]).all()
    assert ((drawn >= 0) & (drawn < count)).all()


def test_every_other_row_is_drawn_equally_often():
    torch.manual_seed(0)
    drawn = ucch._own_and_drawn(torch.full((5000,), 2), 5, 4)[:, 1:]
    counts = torch.bincount(drawn.flatten(), minlength=5)
    assert counts[2] == 0
    assert (counts[[0, 1, 3, 4]] - 5000).abs().max() < 400


def test_memory_moves_towards_the_mean_codes_in_a_new_table(deep_model, deep_batch):
    model = deep_model("ucch", classes=(), momentum=0.25)
    made, state, rows = deep_batch(3), state_of(5), [4, 0, 2]
    first, batch = state.tables[MEMORY], {"labels": torch.arange(3), "row": torch.tensor(rows)}
    untouched, expected = first.clone(), first.clone().double()
    means = [unit(unit(a) + unit(b)) for a, b in zip(made.outputs.image_hash, made.outputs.text_hash, strict=True)]
    for momentum in (0, 0.25):  # of the first epoch, and of the next
        for row, mean in zip(rows, means, strict=True):
            expected[row] = unit(momentum * expected[row] + (1 - momentum) * mean.detach())
        model.objective(batch, made.outputs, state)
        torch.testing.assert_close(state.tables[MEMORY].double(), expected, rtol=0, atol=1e-6)
        model.objective.on_epoch_end(state)
    assert torch.equal(first, untouched)
    kept = state.tables[MEMORY]
    model.eval().objective(batch, made.outputs, state)
    assert state.tables[MEMORY] is kept


def test_first_memory_is_random_codes_of_length_1(deep_model):
    model, state = deep_model("ucch", classes=()), TrainingState(300)
    torch.manual_seed(1)
    model.objective.on_train_begin(state)
    memory = state.tables[MEMORY]
    assert memory.shape == (300, 8)
    torch.testing.assert_close(memory.abs(), torch.full_like(memory, 8**-0.5))
    assert abs(memory.sign().mean()) < 0.1
    stream = TrainingState()
    model.objective.on_train_begin(stream)
    assert stream.tables == {}


@given(st.integers(0, 2**31 - 1), st.integers(1, 6), st.floats(0, 2), st.floats(0, 2))
def test_ranking_loss_is_at_least_the_margin(seed, count, margin, shift):
    cosines = torch.rand(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    found = ranking_loss(cosines, margin, shift)
    assert found >= margin - 1e-12
    # A shift only helps, and so does a nearer partner.
    assert found <= ranking_loss(cosines, margin, 0) + 1e-12
    assert ranking_loss(cosines + 0.5 * torch.eye(count), margin, 0) <= ranking_loss(cosines, margin, 0) + 1e-12


def test_lengths_and_the_order_of_modalities_do_not_matter(deep_model, deep_batch):
    model, made = deep_model("ucch", classes=()), deep_batch(5)
    image, text = made.outputs.image_hash, made.outputs.text_hash

    def total(image_hash, text_hash):
        outputs = CMFAHForPreTrainingOutput(
            image_hash=image_hash, text_hash=text_hash, image_features=image, text_features=text
        )
        return model.objective({"labels": torch.arange(5)}, outputs, TrainingState()).total

    expected = total(image, text)
    torch.testing.assert_close(total(image / 3, text / 7), expected)
    torch.testing.assert_close(total(text, image), expected)
    assert total(0 * image, text).isfinite()


def test_training_brings_partners_together(deep_model, deep_trainer):
    model = deep_model("ucch", classes=(), normalize_features=True)
    trainer = deep_trainer(model, similarity=PairSimilarity(), num_train_epochs=30, logging_strategy="epoch")
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[1] - 0.1  # in the first epoch, there are fewer others
    assert int(model.objective.epochs) == 30
    image, text = trainer.predict(trainer.train_dataset).predictions
    cosines = torch.nn.functional.normalize(torch.tensor(image)) @ torch.nn.functional.normalize(torch.tensor(text)).T
    assert cosines.diagonal().mean() > cosines.mean() + 0.4


def test_codes_do_not_depend_on_the_batch(deep_model, assert_codes_ignore_the_batch):
    assert_codes_ignore_the_batch(deep_model("ucch", classes=(), normalize_features=True))


@pytest.mark.parametrize("step", [3, 5])
def test_resumed_training_ends_alike_and_the_model_loads(resume, reload, step):
    whole, resumed, _ = resume("ucch", step, similarity=PairSimilarity(), classes=())
    assert torch.equal(resumed.training_state.tables[MEMORY], whole.training_state.tables[MEMORY])
    assert int(reload(whole.model).objective.epochs) == 3


def test_pairs_must_be_numbered(deep_model, deep_trainer):
    trainer = deep_trainer(deep_model("ucch", classes=()), similarity=PairSimilarity(), codes_update="batch")
    with pytest.raises(DataError, match="ucch keeps values of all training pairs"):
        trainer.train()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("alpha", 1.5), ("momentum", 1), ("temperature", 0), ("negatives", 0), ("warmup_epochs", -1), ("margin", -0.1)],
)
def test_invalid_settings_are_named(deep_model, setting, value):
    with pytest.raises(ValueError, match=f"{setting} is {value}; give "):
        deep_model("ucch", classes=(), **{setting: value})
