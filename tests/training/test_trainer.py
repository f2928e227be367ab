"""`CMFAHTrainer`: B, checkpoints, resuming, model selection, logs, saved files."""

import json

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from cmfah_hf.evaluation import RetrievalEvaluator
from cmfah_hf.methods import CMFAHForPreTraining
from cmfah_hf.models import CMFAHModel, CMFAHProcessor

NAMES = ("region_features", "input_ids", "attention_mask")


def paired_codes(model, collator, pairs):
    """`sgn(H_v + H_t)` of each pair, each encoded separately in evaluation mode."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        outputs = [model.cmfah(**{name: collator([pair])[name] for name in NAMES}) for pair in pairs]
    model.train(was_training)
    totals = torch.cat([output.image_hash + output.text_hash for output in outputs])
    return torch.where(totals >= 0, 1, -1).to(torch.int8)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert differing == []


class Recorder(TrainerCallback):
    """Keeps the result of `record(state)` at the end of every epoch."""

    def __init__(self, record):
        self.record, self.kept = record, []

    def on_epoch_end(self, args, state, control, **kwargs):
        self.kept.append(self.record(state))


class ScriptedEvaluator:
    """An evaluator with predefined MAPs."""

    def __init__(self, maps):
        self.maps = iter(maps)

    def __call__(self, *hashes_and_labels):
        value = next(self.maps)
        return {"hamming/i2t/map": value, "hamming/t2i/map": value, "random/map": 0.1}


def test_codes_of_an_epoch_are_the_targets_of_the_next(make_model, make_pairs, make_trainer):
    model = make_model(dropout=0.2)  # the codes are computed without dropout
    pairs = make_pairs(20)
    trainer = make_trainer(model, pairs, num_train_epochs=3, per_device_train_batch_size=8)
    tables = trainer.training_state.tables
    recomputed = Recorder(lambda state: (paired_codes(model, trainer.data_collator, pairs), tables["codes"]))
    trainer.add_callback(recomputed)
    given, step, losses = [], trainer.training_step, model.objective.forward

    def training_step(model, inputs, *args, **kwargs):
        given.append([inputs["row"].clone(), None])
        return step(model, inputs, *args, **kwargs)

    def forward(batch, outputs, state):
        given[-1][1] = batch.get("codes")
        return losses(batch, outputs, state)

    trainer.training_step, model.objective.forward = training_step, forward
    trainer.train()

    assert len(given) == 9
    assert len(recomputed.kept) == 3
    for by_hand, kept in recomputed.kept:
        assert torch.equal(by_hand, kept)
    assert not torch.equal(recomputed.kept[0][0], recomputed.kept[2][0])  # otherwise an old B would pass as a new one
    for number, (rows, codes) in enumerate(given):
        if number < 3:
            assert codes is None
        else:
            assert torch.equal(codes, recomputed.kept[number // 3 - 1][0][rows])


def test_every_pair_has_a_code_with_drop_last(make_model, make_pairs, make_trainer):
    model, pairs = make_model(), make_pairs(11)
    trainer = make_trainer(
        model, pairs, dataloader_drop_last=True, per_device_train_batch_size=4, per_device_eval_batch_size=4
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert torch.equal(trainer.training_state.tables.get("codes"), paired_codes(model, trainer.data_collator, pairs))


def test_mirrored_regions_are_used_for_training_but_not_hashed(make_model, make_pairs, make_trainer):
    mirrored = np.full((10, 4, 16), 7.0, np.float32)
    pairs = make_pairs(10, region_features_mirrored=mirrored)
    model = make_model()
    trainer = make_trainer(model, pairs, num_train_epochs=4)
    seen, forward = {True: [], False: []}, model.forward

    def spy(**inputs):
        seen[model.training] += [bool((regions == 7).all()) for regions in inputs["region_features"]]
        return forward(**inputs)

    model.forward = spy
    trainer.train()
    assert 8 < sum(seen[True]) < 32  # of 40 fair coin flips
    plain = make_pairs(10)
    assert torch.equal(trainer.training_state.tables.get("codes"), paired_codes(model, trainer.data_collator, plain))


def test_streams_take_their_codes_per_batch(make_model, make_pairs, make_trainer):
    stream = make_pairs(24).with_format(None).to_iterable_dataset()
    model = make_model()
    before = weights(model)
    trainer = make_trainer(model, stream, max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.training_state.tables.get("codes") is None
    changed = [name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])]
    assert any("text_model" in name for name in changed)
    assert any("image_discriminator" in name for name in changed)


def test_evaluation_encodes_each_modality_alone(make_model, make_pairs, make_trainer):
    model = make_model()
    train, validation, other = make_pairs(24), make_pairs(9, seed=1), make_pairs(13, seed=2)
    trainer = make_trainer(model, train, validation, num_train_epochs=2)
    trainer.train()
    found = trainer.evaluate()
    model.eval()

    def encoded(pairs, paired=False):
        batch = trainer.data_collator(list(pairs))
        with torch.no_grad():
            if paired:
                outputs = model.cmfah(**{name: batch[name] for name in NAMES})
                return outputs.image_hash, outputs.text_hash
            return (
                model.cmfah.get_image_hash(region_features=batch["region_features"]),
                model.cmfah.get_text_hash(batch["input_ids"], batch["attention_mask"]),
            )

    def by_hand(database, paired=False):
        return RetrievalEvaluator(metrics=("map", "random"), ranking="hamming")(
            *encoded(validation, paired),
            *encoded(database, paired),
            list(validation["labels"]),
            list(database["labels"]),
        )

    expected = by_hand(train)
    assert found["eval_map_i2t"] == pytest.approx(expected["hamming/i2t/map"], abs=1e-12)
    assert found["eval_map_t2i"] == pytest.approx(expected["hamming/t2i/map"], abs=1e-12)
    assert found["eval_map"] == pytest.approx((found["eval_map_i2t"] + found["eval_map_t2i"]) / 2, abs=1e-12)
    assert found["eval_map_random"] == pytest.approx(expected["random/map"], abs=1e-12)
    assert found["eval_map_i2t"] != pytest.approx(by_hand(train, paired=True)["hamming/i2t/map"], abs=1e-6)

    trainer.task.database = other
    assert trainer.evaluate()["eval_map_t2i"] == pytest.approx(by_hand(other)["hamming/t2i/map"], abs=1e-12)


def test_class_only_in_the_validation_pairs_is_ignored(make_pairs, make_trainer, caplog):
    validation = make_pairs(6, seed=1)
    labels = [[*own, "zebra"] if row == 2 else own for row, own in enumerate(validation["labels"])]
    features = validation.features
    plain = validation.with_format(None).remove_columns("labels").add_column("labels", labels).cast(features)
    trainer = make_trainer(validation=plain.with_format("numpy", columns=["region_features"], output_all_columns=True))
    expected = make_trainer(validation=validation).evaluate()["eval_map"]
    assert trainer.evaluate()["eval_map"] == pytest.approx(expected, abs=1e-12)
    assert "'zebra' (1)" in caplog.text


@pytest.mark.parametrize("checkpoint", ["between epochs", "within an epoch"])
def test_resumed_run_matches_the_uninterrupted_one(make_model, make_pairs, make_trainer, tmp_path, checkpoint):
    arguments = {
        "num_train_epochs": 4,
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        "discriminator_learning_rate": 0.005,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "save_total_limit": None,
        "seed": 7,
        **(
            {"save_strategy": "epoch"}
            if checkpoint == "between epochs"
            else {"save_strategy": "steps", "save_steps": 5}
        ),
    }
    settings = {"dropout": 0.3, "normalize_features": True}
    uninterrupted = make_trainer(make_model(**settings), output_dir=str(tmp_path / "whole"), **arguments)
    uninterrupted.train()
    step = 6 if checkpoint == "between epochs" else 5

    torch.manual_seed(99)  # any generator state in the new process
    resumed = make_trainer(make_model(seed=5, **settings), output_dir=str(tmp_path / "resumed"), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))

    assert resumed.state.global_step == uninterrupted.state.global_step == 12
    assert_same_weights(weights(resumed.model), weights(uninterrupted.model))
    assert torch.equal(resumed.training_state.tables.get("codes"), uninterrupted.training_state.tables.get("codes"))
    for one, other in (
        (resumed.optimizer, uninterrupted.optimizer),
        (resumed.players["discriminator"].optimizer, uninterrupted.players["discriminator"].optimizer),
    ):
        for number, state in other.state_dict()["state"].items():
            for name, value in state.items():
                assert torch.equal(torch.as_tensor(one.state_dict()["state"][number][name]), torch.as_tensor(value))
    schedules = [trainer.players["discriminator"].schedule.state_dict() for trainer in (resumed, uninterrupted)]
    assert schedules[0] == schedules[1]


def test_a_checkpoint_holds_both_players_and_the_codes(make_model, make_pairs, make_trainer, tmp_path):
    model = make_model()
    trainer = make_trainer(
        model, num_train_epochs=2, save_strategy="epoch", save_total_limit=None, optim="adamw_torch", learning_rate=0.01
    )
    codes = Recorder(lambda state: trainer.training_state.tables.get("codes").clone())
    trainer.add_callback(codes)
    trainer.train()
    for epoch, step in enumerate((3, 6)):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        held = load_file(folder / "codes.safetensors")["codes"]
        assert held.dtype == torch.int8
        assert torch.equal(held, codes.kept[epoch])
        state = torch.load(folder / "discriminator_optimizer.pt", weights_only=True)
        assert {int(moments["step"]) for moments in state["optimizer"]["state"].values()} == {step}
        assert state["scheduler"]["last_epoch"] == step
    assert not torch.equal(codes.kept[0], codes.kept[1])
    kept = CMFAHForPreTraining.from_pretrained(tmp_path / "out" / "checkpoint-6")
    assert_same_weights(weights(kept), weights(model))


def test_best_epoch_is_saved(make_model, make_trainer, tmp_path):
    model = make_model()
    trainer = make_trainer(
        model, num_train_epochs=4, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="map", greater_is_better=True,
    )  # fmt: skip
    trainer.task.evaluator = ScriptedEvaluator([0.3, 0.8, 0.5, 0.7])
    epochs = Recorder(lambda state: weights(model))
    trainer.add_callback(epochs)
    trainer.train()
    assert trainer.state.best_metric == 0.8
    assert trainer.state.epoch == 4
    assert_same_weights(weights(trainer.model), epochs.kept[1])
    name = "objective.label_head.weight"
    assert not torch.equal(weights(trainer.model)[name], epochs.kept[3][name])


def test_early_stopping(make_trainer):
    trainer = make_trainer(
        num_train_epochs=9, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="map", greater_is_better=True, early_stopping_patience=2,
    )  # fmt: skip
    trainer.task.evaluator = ScriptedEvaluator([0.3, 0.8, 0.5, 0.7, 0.9, 1.0])
    trainer.train()
    assert trainer.state.epoch == 4  # the best, and two without improvement


def test_every_term_of_the_loss_is_logged(make_model, make_trainer):
    model = make_model(label_weight=2.0, quantization_weight=0.5, adversarial_weight=0.3)
    trainer = make_trainer(model, num_train_epochs=2, logging_strategy="epoch")
    seen, losses = [], model.objective.forward

    def forward(*args):
        found = losses(*args)
        seen.append({"total": found.total.item(), **{name: value.item() for name, value in found.terms.items()}})
        return found

    model.objective.forward = forward
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    for epoch, log in enumerate(logs):
        steps = seen[3 * epoch : 3 * epoch + 3]
        logged = {name.removeprefix("loss_"): value for name, value in log.items() if name.startswith("loss_")}
        terms = {"intra_feature", "intra_hash", "quantization", "inter_feature", "inter_hash", "similarity", "label"}
        assert logged.keys() == terms | {"concept", "adversarial"}
        for name, value in logged.items():
            assert value == pytest.approx(np.mean([step[name] for step in steps]), abs=1e-5), name
        assert log["loss"] == pytest.approx(np.mean([step["total"] for step in steps]), abs=1e-4)
        settings = model.objective.settings
        total = (
            sum(logged[name] for name in ("intra_feature", "intra_hash", "inter_feature", "inter_hash"))
            + settings.quantization_weight * logged["quantization"]
            + settings.similarity_weight * logged["similarity"]
            + settings.label_weight * logged["label"]
            + settings.concept_weight * logged["concept"]
            - settings.adversarial_weight * logged["adversarial"]
        )
        assert log["loss"] == pytest.approx(total, abs=1e-4)


def test_logged_loss_does_not_depend_on_micro_batches(make_trainer):
    """The mean over the batches, not a sum over the micro batches of each."""
    trainer = make_trainer(
        learning_rate=0.0,
        discriminator_learning_rate=0.0,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        codes_update="batch",
        logging_strategy="epoch",
    )
    trainer.train()
    log = next(log for log in trainer.state.log_history if "loss" in log)
    model = trainer.model
    ones = ("intra_feature", "intra_hash", "quantization", "inter_feature", "inter_hash", "label", "concept")
    total = sum(log[f"loss_{name}"] for name in ones) - log["loss_adversarial"]
    total += model.objective.settings.similarity_weight * log["loss_similarity"]
    assert log["loss"] == pytest.approx(total, abs=1e-4)


def test_saved_files_are_the_model_its_processor_and_text(make_model, make_trainer, tmp_path):
    model = make_model()
    trainer = make_trainer(model, save_strategy="epoch", learning_rate=0.025)
    trainer.train()
    trainer.save_model()
    out = tmp_path / "out"
    pickles = [path.name for path in out.rglob("*") if path.name == "training_args.bin"]
    pickles += [path.name for path in out.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    assert pickles == []
    arguments = json.loads((out / "training_args.json").read_text(encoding="utf-8"))
    assert (arguments["learning_rate"], arguments["discriminator_learning_rate"]) == (0.025, 0.05)
    assert arguments["codes_update"] == "epoch"

    towers = CMFAHModel.from_pretrained(out)
    assert_same_weights(weights(towers), weights(model.cmfah))
    processor = CMFAHProcessor.from_pretrained(out)
    assert processor.known_words("A red CAR, unheard of") == ["red", "car"]


def test_invalid_arguments_are_named(make_trainer):
    with pytest.raises(ValueError, match=r"paired_every is 0; give 1 or more\."):
        make_trainer(paired_every=0)
    with pytest.raises(ValueError, match=r"codes_update is 'never'; choose 'epoch' or 'batch'\."):
        make_trainer(codes_update="never")


def test_pairs_in_memory_and_on_disk_train_identically(make_model, make_pairs, make_trainer, tmp_path):
    pairs = make_pairs(16)
    pairs.save_to_disk(str(tmp_path / "pairs"))
    on_disk = datasets.load_from_disk(str(tmp_path / "pairs"))
    results = []
    for source in (pairs, on_disk):
        trainer = make_trainer(make_model(), source, num_train_epochs=2)
        trainer.train()
        results.append(weights(trainer.model))
    assert_same_weights(*results)
