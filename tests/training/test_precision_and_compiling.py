"""Low precision and loss scaling, compiled towers, metric-driven schedules, row types, gradient accumulation."""

from copy import deepcopy

import pytest
import torch
from torch.amp import GradScaler

from cmfah_hf.methods import TrainingState
from cmfah_hf.training.batch_norm import use_global_statistics
from cmfah_hf.training.evaluate import encode_pairs
from cmfah_hf.training.processes import detached


def by_player(model):
    players = {"towers": {}, "discriminators": {}}
    for name, tensor in model.state_dict().items():
        if ".backbone." not in name:
            players["discriminators" if "_discriminator." in name else "towers"][name] = tensor.clone()
    return players


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=tolerance, msg=lambda text: name + text)  # noqa: B023


def test_bfloat16_trains_with_losses_and_weights_in_float32(make_model, make_trainer):
    arguments = {"logging_strategy": "steps", "logging_steps": 1, "num_train_epochs": 2, "learning_rate": 0.01}
    full = make_trainer(make_model(normalize_features=True), **arguments)
    full.train()
    model = make_model(normalize_features=True)
    before = deepcopy(model.state_dict())
    trainer = make_trainer(model, bf16=True, **arguments)
    seen = {"inside": set(), "losses": set()}
    model.cmfah.text_model.hash_head.dense.register_forward_hook(
        lambda module, inputs, output: seen["inside"].add(output.dtype) if model.training else None
    )
    losses = model.objective.forward

    def forward(batch, outputs, state):
        paired = outputs.image_model_output, outputs.text_model_output
        tensors = (outputs.image_hash, outputs.text_features, *(tower.hash_values for tower in paired))
        found = losses(batch, outputs, state)
        seen["losses"] |= {tensor.dtype for tensor in (*tensors, found.total, *found.terms.values())}
        return found

    model.objective.forward = forward
    trainer.train()
    assert seen == {"inside": {torch.bfloat16}, "losses": {torch.float32}}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses_of(trainer) == pytest.approx(losses_of(full), rel=0.03)
    assert losses_of(trainer) != losses_of(full)
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any("text_model" in name for name in moved)
    assert any("discriminator" in name for name in moved)


def scales(trainer):
    return trainer.accelerator.scaler.get_scale(), trainer.players["discriminator"].scaler.get_scale()


def scaled(trainer, towers: float, discriminators: float, growth_interval: int = 2000):
    """Enables loss scaling for both players, as for float16, which accelerate restricts to accelerators."""
    trainer.accelerator.scaler = GradScaler("cpu", init_scale=towers, growth_interval=growth_interval)
    trainer.create_optimizer()
    player = trainer.players["discriminator"]
    assert player.scaler is not None
    player.scaler = GradScaler("cpu", init_scale=discriminators, growth_interval=growth_interval)
    return trainer


def test_each_player_has_its_own_scale(make_model, make_pairs, make_trainer):
    """Powers of two change no digit, also when they grow after each step of two micro batches."""
    arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    plain, model = make_model(), make_model()
    make_trainer(plain, make_pairs(16), **arguments).train()
    trainer = scaled(make_trainer(model, make_pairs(16), **arguments), 2.0**9, 2.0**5, growth_interval=1)
    trainer.train()
    assert_close(by_player(plain)["towers"], by_player(model)["towers"], 1e-6)
    assert_close(by_player(plain)["discriminators"], by_player(model)["discriminators"], 1e-6)
    assert scales(trainer) == (2.0**13, 2.0**9)


def test_both_scales_are_in_the_checkpoint(make_trainer, tmp_path):
    trainer = scaled(make_trainer(save_strategy="epoch"), 2.0**9, 2.0**5, growth_interval=1)
    trainer.train()
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-3")
    fresh = scaled(make_trainer(), 1.0, 1.0)
    fresh.create_scheduler(3)
    fresh._load_scaler(str(checkpoint))
    fresh.players["discriminator"].load(checkpoint)
    assert scales(fresh) == (2.0**12, 2.0**8)


@pytest.mark.parametrize("player", ["towers", "discriminators"])
def test_overflow_skips_the_step_of_one_player_only(make_model, make_pairs, make_trainer, player):
    model = make_model()
    trainer = make_trainer(model, make_pairs(24), lr_scheduler_type="linear")
    scaled(trainer, 2.0**9, 2.0**9)
    module = model.objective.label_head if player == "towers" else model.objective.image_discriminator.dense_out
    passes, states, rates = [], [by_player(model)], []

    def overflow(gradient):
        passes.append(1)
        return gradient * float("inf") if len(passes) == 2 else gradient

    module.bias.requires_grad_(True)
    module.bias.register_hook(overflow)
    module.bias.requires_grad_(player == "towers")
    step = trainer.training_step

    def training_step(*args, **kwargs):
        optimizers = trainer.optimizer, trainer.players["discriminator"].optimizer
        rates.append(tuple(optimizer.param_groups[0]["lr"] for optimizer in optimizers))
        return step(*args, **kwargs)

    trainer.training_step = training_step
    model.zero_grad, zero_grad = (
        lambda *args, **kwargs: (states.append(by_player(model)), zero_grad())[1],
        model.zero_grad,
    )
    trainer.train()
    states = states[-4:]  # before the first step, and after each of the three
    skips = {
        name: [all(torch.equal(a[name][key], b[name][key]) for key in a[name]) for a, b in zip(states, states[1:])]  # noqa: B905, RUF007
        for name in ("towers", "discriminators")
    }
    other = "towers" if player == "discriminators" else "discriminators"
    assert skips == {player: [False, True, False], other: [False, False, False]}
    scales = {
        "towers": trainer.accelerator.scaler.get_scale(),
        "discriminators": trainer.players["discriminator"].scaler.get_scale(),
    }
    assert scales == {player: 2.0**8, other: 2.0**9}
    # Both schedules are still in step.
    assert [towers / discriminators for towers, discriminators in rates] == pytest.approx([2.0] * 3)
    third = 1 / 3 if player == "discriminators" else 2 / 3
    assert [towers for towers, _ in rates] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 * third])
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["recorded", "inductor"])
def test_compiled_towers_match_plain_ones(make_model, make_pairs, make_trainer, backend, monkeypatch):
    arguments = {"per_device_train_batch_size": 6, "logging_strategy": "steps", "logging_steps": 1}
    settings = {"attention": "none", "dropout": 0.0, "num_concepts": 2}
    plain = make_trainer(make_model(**settings).double(), make_pairs(18), **arguments)
    plain.train()
    graphs, calls, compile_ = [], [], torch.compile

    def recording(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes if node.op.startswith("call_")})

        def run(*args):
            calls.append(torch.is_grad_enabled())
            return graph.forward(*args)

        return run

    if backend == "recorded":
        monkeypatch.setattr(torch, "compile", lambda model, **kwargs: compile_(model, backend=recording))
    torch._dynamo.reset()
    model = make_model(**settings).double()
    name = "eager" if backend == "recorded" else backend
    trainer = make_trainer(model, make_pairs(18), torch_compile=True, torch_compile_backend=name, **arguments)
    trainer.train()
    torch._dynamo.reset()
    assert losses_of(trainer) == pytest.approx(losses_of(plain), rel=1e-9)
    assert len(losses_of(trainer)) == 3
    assert_close(plain.model.state_dict(), model.state_dict(), 1e-10)
    assert type(trainer.model_wrapped).__name__ == "OptimizedModule"
    if backend == "recorded":
        # Each of the three steps ran a compiled graph that contains the towers up to their continuous codes.
        assert len(calls) == 3 * len(set(map(frozenset, graphs)))
        assert all(calls)
        assert any("conv1d" in name for graph in graphs for name in graph)
        assert any("tanh" in name for graph in graphs for name in graph)


def test_plateau_schedule_updates_both_players(make_trainer):
    trainer = make_trainer(
        num_train_epochs=4, eval_strategy="epoch", lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"mode": "max", "patience": 0, "factor": 0.1},
    )  # fmt: skip
    maps = iter([0.5, 0.4, 0.6, 0.3])
    trainer.task.evaluator = lambda *_: dict.fromkeys(("hamming/i2t/map", "hamming/t2i/map", "random/map"), next(maps))
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.01)  # after the second and the fourth
    assert trainer.players["discriminator"].optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.01)


class TorchRows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


@pytest.mark.parametrize("codes_update", ["epoch", "batch"])
def test_any_row_container_trains_like_a_data_set(make_model, make_pairs, make_trainer, codes_update):
    def trained(make):
        model = make_model()
        trainer = make_trainer(
            model, make(make_pairs(20)), make(make_pairs(7, seed=1)), num_train_epochs=2, codes_update=codes_update
        )
        trainer.train()
        return by_player(model), trainer.training_state.tables.get("codes"), trainer.evaluate()["eval_map"]

    expected, codes, value = trained(lambda rows: rows)
    assert (codes is None) == (codes_update == "batch")
    for kind in (list, TorchRows):
        weights, own_codes, own_value = trained(lambda rows, kind=kind: kind(list(rows)))
        for player in expected:
            assert_close(expected[player], weights[player], 0.0)
        assert codes is None or torch.equal(codes, own_codes)
        assert own_value == value


def test_rows_of_a_list_are_evaluated_without_augmentation(make_model, make_pairs, make_trainer):
    import numpy as np

    pairs = list(make_pairs(10, region_features_mirrored=np.full((10, 4, 16), 7.0, np.float32)))
    trainer = make_trainer(make_model(), pairs, pairs, num_train_epochs=1)
    trainer.train()
    plain = make_trainer(trainer.model, make_pairs(10), make_pairs(10))
    assert trainer.evaluate()["eval_map"] == plain.evaluate()["eval_map"]
    plain.end_epoch()
    assert torch.equal(trainer.training_state.tables.get("codes"), plain.training_state.tables.get("codes"))
    assert "row" not in pairs[0]


def test_codes_are_those_of_the_images_and_not_of_their_mirror_images(make_model, make_pairs, make_trainer):
    import numpy as np

    plain, mirrored = make_pairs(10), make_pairs(10, region_features_mirrored=np.full((10, 4, 16), 7.0, np.float32))
    trainer = make_trainer(make_model(), plain, plain)
    towers, processor = trainer.model.cmfah, trainer.processing_class
    expected, found = (encode_pairs(towers, processor, pairs, "text") for pairs in (plain, mirrored))
    np.testing.assert_array_equal(found.images, expected.images)


def test_last_incomplete_accumulation_averages_its_micro_batches(make_model, make_pairs, make_trainer):
    """Five micro batches in twos: the fifth is a step of its own with its full gradients, for both players."""
    model = make_model().double()
    trainer = make_trainer(
        model, make_pairs(20), per_device_train_batch_size=4, gradient_accumulation_steps=2, codes_update="batch"
    )
    batches, gradients, states = [], [], []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(collate(rows)) or batches[-1]
    trainer.create_optimizer()

    def record(*_):
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        states.append(deepcopy(model.state_dict()))

    trainer.optimizer.register_step_pre_hook(record)
    trainer.players["discriminator"].optimizer.register_step_pre_hook(record)
    trainer.train()
    assert trainer.state.global_step == 3
    assert len(gradients) == 6  # of each player, discriminators first

    def expected(state, towers_state, micro_batches):
        """Mean gradients of each player over the micro batches, by plain autograd."""
        sums = {}
        for number, batch in enumerate(micro_batches):
            reference = make_model().double()
            reference.load_state_dict(state)
            reference.train()
            names = ("region_features", "input_ids", "attention_mask")
            outputs = reference(**{name: batch[name] for name in names})
            players = {n: p for n, p in reference.named_parameters() if "_discriminator." in n}
            loss = reference.objective.players()[0].loss({}, detached(outputs), TrainingState())
            found = dict(zip(players, torch.autograd.grad(loss, players.values()), strict=True))
            # The towers of the last micro batch train against the discriminators just updated.
            if number == len(micro_batches) - 1:
                with torch.no_grad():
                    for name, parameter in players.items():
                        parameter.copy_(towers_state[name])
            loss = reference.objective({"labels": batch["labels"]}, outputs, TrainingState()).total
            towers = {n: p for n, p in reference.named_parameters() if n not in players and p.requires_grad}
            found |= dict(zip(towers, torch.autograd.grad(loss, towers.values()), strict=True))
            for name, gradient in found.items():
                sums[name] = sums.get(name, 0) + gradient / len(micro_batches)
        return sums

    for step, micro_batches in enumerate((batches[:2], batches[2:4], batches[4:])):
        found = {**gradients[2 * step], **gradients[2 * step + 1]}
        discriminators = {name: g for name, g in gradients[2 * step].items() if "_discriminator." in name}
        sums = expected(states[2 * step], states[2 * step + 1], micro_batches)
        for name, gradient in {**found, **discriminators}.items():
            torch.testing.assert_close(gradient, sums[name], rtol=0, atol=1e-12, msg=lambda text: name + text)  # noqa: B023
        assert set(sums) == set(found) | set(discriminators)


def test_batch_of_one_pair_is_normalized_by_the_running_statistics(make_model, make_pairs, make_trainer):
    model = make_model(normalize_features=True)
    trainer = make_trainer(model, make_pairs(9), per_device_train_batch_size=4)  # the last batch is a single pair
    trainer.train()
    assert trainer.state.global_step == 3
    assert model.cmfah.image_model.hash_head.norm.num_batches_tracked == 2
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_global_statistics_of_one_process_match_the_local_ones():
    torch.manual_seed(0)
    for plain, shape in ((torch.nn.BatchNorm1d(3), (6, 3)), (torch.nn.BatchNorm2d(3), (4, 3, 2, 2))):
        own = deepcopy(plain)
        names = list(own.state_dict())
        use_global_statistics(own)
        for _ in range(2):
            features = torch.randn(shape) * 3 + 1
            assert torch.equal(own(features), plain(features))
        own.eval(), plain.eval()
        assert torch.equal(own(features), plain(features))
        assert list(own.state_dict()) == names
        assert all(torch.equal(own.state_dict()[name], plain.state_dict()[name]) for name in names)
        assert isinstance(own, type(plain))


def test_find_unused_parameters_is_off(make_trainer):
    assert make_trainer().args.ddp_find_unused_parameters is False
    with pytest.raises(ValueError, match="ddp_find_unused_parameters"):
        make_trainer(ddp_find_unused_parameters=True)
