"""SCAHN through the trainer and whole runs: updates by hand, saved folder, resuming, streams, invalid input."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from unittest.mock import ANY

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from settings import pretraining_model
from sklearn.preprocessing import MultiLabelBinarizer

from cmfah_hf.cli import main
from cmfah_hf.data import load_image_text, train_validation_split
from cmfah_hf.errors import CheckpointError, CMFAHError, DataError
from cmfah_hf.evaluation.label_graph import read_label_graph
from cmfah_hf.expansion import SkipGramEmbedding
from cmfah_hf.expansion.label_vectors import label_vectors
from cmfah_hf.methods import SCAHNForPreTraining, TrainingState
from cmfah_hf.models import SCAHNConfig, SCAHNModel
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import bundled_configuration, parse_run, train
from cmfah_hf.training.data.shards import split_stream
from cmfah_hf.training.data.streaming import read_notes
from cmfah_hf.training.evaluate import evaluate_folder


def products(rows, classes):
    binary = MultiLabelBinarizer(classes=classes).fit_transform([set(row) for row in rows]).astype(int)
    return (binary.T @ binary).tolist()


@pytest.mark.slow
def test_folder_is_read_by_the_same_tools_as_cmfah(trained_scahn, tmp_path, capsys):
    folder, scenes = trained_scahn.folder, trained_scahn.scenes
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["method"] == "scahn"
    retriever = CrossMediaRetriever.from_pretrained(folder)
    assert type(retriever.model) is SCAHNModel
    retriever.add_source(scenes, split="train")
    assert len(retriever.search(text="house tree", k=3).ids[0]) == 3
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder), str(scenes), "--json"])
    assert not ended.value.code
    figures = json.loads(capsys.readouterr().out)
    assert {name: figures[name] for name in metrics["query"]} == pytest.approx(metrics["query"], abs=1e-6)


@pytest.mark.slow
def test_graph_is_that_of_the_training_labels_and_words(trained_scahn):
    folder, scenes = trained_scahn.folder, trained_scahn.scenes
    model = SCAHNForPreTraining.from_pretrained(folder)
    classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
    pairs, _ = train_validation_split(load_image_text(str(scenes))["train"], 0.1, seed=0)
    assert model.objective.label_graph.counts.tolist() == products(pairs["labels"], classes)
    expected = label_vectors(classes, SkipGramEmbedding.load(folder))
    np.testing.assert_array_equal(model.objective.label_graph.vectors.numpy(), expected)
    assert read_label_graph(folder).number_of_nodes() == len(classes)
    # The queue is full of labeled pairs at the end.
    assert model.objective.contrast_queue.labels.any(dim=1).all()
    state = json.loads((folder / "trainer_state.json").read_text())
    terms = {name for log in state["log_history"] for name in log if name.startswith("loss_")}
    assert {"loss_graph", "loss_cross_contrast", "loss_intra_contrast", "loss_adversarial_hash"} < terms
    assert "loss_intra_hash" not in terms


@pytest.mark.slow
def test_resumed_run_ends_like_the_uninterrupted_one(trained_scahn, tmp_path):
    folder, config = trained_scahn.folder, trained_scahn.config
    first = min(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert (load_file(first / "model.safetensors")["objective.contrast_queue.labels"] != 0).any()
    shutil.copytree(first, tmp_path / first.name)
    for name in ("expander", "skip_gram"):
        for path in folder.glob(f"{name}.*"):
            shutil.copy(path, tmp_path)
    arguments = ["--output_dir", str(tmp_path), "--resume_from_checkpoint", "last"]
    train(parse_run(config, ["--method", "scahn", *arguments]))
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    # Changed settings of either kind are named, and a CMFAH run does not resume from it.
    for name, value, message in (
        ("contrast_temperature", "0.5", "whose contrast_temperature is 0.2 and not 0.5"),
        ("num_concepts", "5", "whose num_concepts is 4 and not 5"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train(parse_run(config, ["--method", "scahn", *arguments, f"--{name}", value]))


@pytest.mark.slow
def test_runs_of_the_two_methods_do_not_mix(trained_scahn, trained, tmp_path):
    for method, folder in (("cmfah", trained_scahn.folder), ("scahn", trained.folder)):
        checkpoint = next(folder.glob("checkpoint-*"))
        given = [
            "--method",
            method,
            "--output_dir",
            str(tmp_path / method),
            "--resume_from_checkpoint",
            str(checkpoint),
        ]
        with pytest.raises(ValueError, match=r"a checkpoint of '(scahn|cmfah)', not of '(scahn|cmfah)'"):
            train(parse_run(trained.config, given))


@pytest.mark.slow
def test_a_stream_and_labels_in_other_scripts(scenes_folder, write_config, tmp_path, caplog):
    names = {"house": "дом", "tree": "木", "ball": "qqq zzz"}
    shutil.copytree(scenes_folder, tmp_path / "pairs")
    for file in (tmp_path / "pairs").glob("*/metadata.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            row["labels"] = [names.get(name, name) for name in row["labels"]]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = write_config(
        tmp_path / "run.yaml",
        model={"model_type": "scahn"},
        data={"dataset": str(tmp_path / "pairs"), "streaming": True},
        training={"num_train_epochs": 1, "save_strategy": "no", "load_best_model_at_end": False},
    )
    train(parse_run(config, ["--output_dir", str(tmp_path / "model"), "--word_labels", "false"]))
    assert "labels have no word with a vector, so those of the label graph are drawn from the names" in caplog.text
    model = SCAHNForPreTraining.from_pretrained(tmp_path / "model")
    classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
    assert {"дом", "木", "qqq zzz"} <= set(classes)
    stream, _ = split_stream(load_image_text(str(tmp_path / "pairs"), streaming=True, images=False)["train"], 0.1, 0)
    assert model.objective.label_graph.counts.tolist() == products([row["labels"] for row in stream], classes)


def test_notes_of_a_stream_count_co_occurrences(tmp_path):
    rows = [{"id": str(n), "text": "a", "labels": labels} for n, labels in enumerate([["b", "a"], ["a"], [], ["b"]])]
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "labels": datasets.List(datasets.Value("string")),
        }
    )
    notes = read_notes(datasets.Dataset.from_list(rows, features=features).to_iterable_dataset(num_shards=2), "rows")
    assert notes.classes == ["a", "b"]
    assert notes.together == {"a": {"a": 2, "b": 1}, "b": {"a": 1, "b": 2}}


# Trainer


@pytest.fixture
def make_scahn(make_config):
    def make(**settings):
        cmfah = make_config()
        shared = {
            name: getattr(cmfah, name)
            for name in ("hash_bits", "image_size", "hidden_size", "word_dim", "text_filters", "num_concepts")
        }
        shared |= {"vocab_size": cmfah.vocab_size, "use_lstm": False, "text_kernel_sizes": [1, 3]}
        shared |= {"id2label": cmfah.id2label, "label2id": cmfah.label2id}
        backbone = cmfah.backbone_config.to_dict()
        torch.manual_seed(0)
        model = pretraining_model("scahn", **{**shared, "backbone_config": backbone, **settings})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "concepts" in name or "embed_tokens" in name:
                    parameter.normal_()
        return model

    return make


def disagreement(model, kind, image, text):
    total = 0.0
    for name, own, other in (("image", image, text), ("text", text, image)):
        discriminator = getattr(model.objective, f"{name}{kind}_discriminator")
        total = total - discriminator(own).logits.sigmoid().log().mean()
        total = total - (1 - discriminator(other).logits.sigmoid()).log().mean()
    return total


@pytest.mark.parametrize("adversarial", ["both", "hash", "none"])
def test_one_update_of_both_players_by_hand(make_scahn, make_trainer, make_pairs, adversarial):
    model = make_scahn(adversarial=adversarial, adversarial_weight=0.4, queue_size=4).double()
    expected = deepcopy(model)
    pairs = make_pairs(8)
    trainer = make_trainer(model, pairs, max_steps=1)
    trainer.train()

    expected.train()
    batch = trainer.data_collator([pairs[row] for row in range(8)])  # one batch: the order does not matter
    batch.pop("row", None)
    labels = batch.pop("labels")
    outputs = expected(**batch)
    kinds = {"both": ("", "_hash"), "hash": ("_hash",), "none": ()}[adversarial]
    values = {
        "": (outputs.image_features, outputs.text_features),
        "_hash": (outputs.image_hash, outputs.text_hash),
    }
    if kinds:
        loss = sum(disagreement(expected, kind, *(x.detach() for x in values[kind])) for kind in kinds)
        step(loss, expected, lambda name: "discriminator" in name, 0.05)
    loss = expected.objective({"labels": labels}, outputs, TrainingState()).total
    step(loss, expected, lambda name: "discriminator" not in name, 0.1)
    for name, value in expected.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], value, rtol=0, atol=1e-12, msg=name)
    moved = {name for name, value in model.state_dict().items() if "hash_discriminator" in name}
    assert bool(moved) == (adversarial in ("both", "hash"))


def step(loss, model, chosen, rate):
    parameters = [p for name, p in model.named_parameters() if chosen(name) and ".backbone." not in name]
    for parameter in parameters:
        parameter.requires_grad_(True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                parameter -= rate * gradient


@pytest.mark.parametrize("labels", [["boat"], ["boat", "cat"]], ids=["one class", "no co-occurrence"])
def test_uninformative_labels_train_to_finite_weights(make_scahn, make_trainer, make_pairs, labels):
    pairs = make_pairs(8)
    rows = [{**pairs[row], "labels": [labels[row % len(labels)]]} for row in range(8)]
    model = make_scahn(id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)})
    trainer = make_trainer(model, rows, rows, num_train_epochs=2)
    trainer.train()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert trainer.evaluate()["eval_map"] > 0


# Invalid input


def test_method_of_the_command_line_overrides_that_of_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {model_type: scahn, queue_size: 8, hash_bits: 32}")
    run = parse_run(file, ["--use_cpu", "--contrast_temperature", "0.5"])
    assert (run.method, run.config_class) == ("scahn", SCAHNConfig)
    assert run.model == {"hash_bits": 32}
    assert run.objective == {"queue_size": 8, "contrast_temperature": 0.5}
    file.write_text("model: {hash_bits: 32}\nmethod: {name: scahn, queue_size: 8}")
    assert parse_run(file, ["--use_cpu", "--contrast_temperature", "0.5"]) == replace(run, training=ANY)
    file.write_text("model: {model_type: scahn, queue_size: 8, hash_bits: 32}")
    assert (run.setting("use_label_graph"), run.setting("intra_hash_weight"), run.setting("nothing")) == (True, 0, None)
    assert parse_run(None, ["--use_cpu", "--method=scahn"]).method == "scahn"
    assert parse_run(None, ["--use_cpu"]).method == "cmfah"
    assert parse_run(None, ["--use_cpu"]).setting("use_label_graph") is None
    with pytest.raises(CMFAHError, match="model has no setting 'queue_size', which is a setting of --method scahn"):
        parse_run(file, ["--method", "cmfah"])
    with pytest.raises(CMFAHError, match="no argument --use_label_graph, which is a setting of --method scahn"):
        parse_run(None, ["--use_label_graph", "false"])
    for arguments, message in (
        (["--method", "xyz"], "^--method is 'xyz'; choose one of cmfah, scahn"),
        (["--method"], "expected one argument; choose one of cmfah, scahn"),
        (["--metod", "scahn"], "no argument --metod; did you mean 'method'"),
    ):
        with pytest.raises(CMFAHError, match=message):
            parse_run(None, arguments)
    file.write_text("model: {model_type: bert}")
    with pytest.raises(CMFAHError, match=r"run.yaml: model_type is 'bert'; choose one of cmfah, scahn"):
        parse_run(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--similarity", "tags"], "scahn builds its label graph from labels, which --similarity tags does not use"),
        (
            ["--similarity", "pairs", "--use_label_graph", "false", "--queue_size", "4"],
            "scahn builds its queue from labels, which --similarity pairs does not use",
        ),
    ],
)
def test_missing_labels_are_reported_in_one_line_before_any_read(run_of, monkeypatch, arguments, message):
    monkeypatch.setattr("cmfah_hf.training.data.pairs.load_image_text", lambda *args, **kwargs: pytest.fail("read"))
    with pytest.raises(DataError, match=message) as raised:
        train(run_of("--method", "scahn", *arguments))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_without_labels_and_graph_it_trains_on_tags(run_of, tmp_path):
    metrics = train(run_of("--method", "scahn", "--similarity", "tags", "--use_label_graph", "false"))
    assert metrics["similarity"] == "tags"
    assert evaluate_folder(str(tmp_path / "out"), run_of().data.dataset)["hamming/i2t/map"] > 0


@pytest.mark.parametrize("name", ["scenes", "cluttered-scenes", "coco-pairs"])
def test_bundled_configurations_match_cmfah_except_for_the_method(name):
    runs = [parse_run(bundled_configuration(f"{method}-{name}.yaml"), ["--use_cpu"]) for method in ("scahn", "cmfah")]
    assert [run.method for run in runs] == ["scahn", "cmfah"]
    # The hinges kept from CMFAH, and the weights of SCAHN's own terms.
    terms = ("feature_weight", "_hash_weight", "graph_weight", "contrast_weight")
    assert runs[0].model == runs[1].model
    shared = {name: value for name, value in runs[0].objective.items() if not name.endswith(terms)}
    assert shared == runs[1].objective
    assert runs[0].data == runs[1].data
    assert runs[0].training.to_dict() == {**runs[1].training.to_dict(), **clock(runs[0])}
    if "scenes" in name:
        assert SCAHNConfig(**runs[0].model).hash_bits == 64


def clock(run):
    return {key: value for key, value in run.training.to_dict().items() if key in ("logging_dir", "run_name")}
