"""Training from a dual encoder: the head begins at the compressed code, and what is saved searches."""

import json

import numpy as np
import pytest
import torch
from dual_encoders import write_dual_encoder
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from transformers import CLIPModel

from cmfah_hf.data import load_image_text
from cmfah_hf.errors import DataError, QueryError
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import bundled_configuration, parse_run, preparation, train
from cmfah_hf.training.compression import compress
from cmfah_hf.training.dual_encoders import fit_head, image_vectors
from cmfah_hf.training.evaluate import evaluate_folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_dual_encoder("clip", tmp_path_factory.mktemp("encoders") / "clip")


def run_of(encoder, scenes, output, *further):
    arguments = {
        "dataset": scenes, "dual_encoder": encoder, "hash_bits": 16, "hidden_size": 24, "num_concepts": 4,
        "use_lstm": "false", "num_train_epochs": 1, "per_device_train_batch_size": 20, "output_dir": output,
        "report_to": "none", "refit": "false",
    }  # fmt: skip
    return parse_run(
        None, [*(part for name, value in arguments.items() for part in (f"--{name}", str(value))), *further]
    )


@pytest.mark.parametrize("method", ["cmfah", "scahn"])
def test_training_begins_at_the_compressed_code(method, encoder, scenes_folder, tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr(preparation, "fit_head", lambda *arguments: fitted.append(fit_head(*arguments)) or fitted[0])
    rates = ("--learning_rate", "1e-9", "--discriminator_learning_rate", "1e-9")
    switches = ("--use_label_graph", "false") if method == "scahn" else ()
    metrics = train(run_of(encoder, scenes_folder, tmp_path / "out", "--method", method, *rates, *switches))
    assert metrics["query"]["hamming/t2i/map"] > 0
    (begun,) = fitted
    retriever = CrossMediaRetriever.from_pretrained(tmp_path / "out")
    model, processor = retriever.model, retriever.processor
    pairs = load_image_text(str(scenes_folder))["train"]
    found = retriever.encode_images(list(pairs["image"]))
    # The vectors alone decide, and half of the training images have each bit.
    assert not model.image_model.hash_head.dense.weight.abs().max() > 1e-6
    assert np.abs((found >= 0).mean(axis=0) - 0.5).max() < 0.4
    for tower, weight in ((model.image_model, begun.image_weight), (model.text_model, begun.text_weight)):
        np.testing.assert_allclose(tower.hash_head.vectors.weight.detach().numpy(), weight, atol=1e-6)
    vectors = image_vectors(model, processor, list(pairs["image"]))
    np.testing.assert_allclose(found, np.tanh(begun.images(vectors)), atol=1e-5)


def test_float_reference_ranks_by_the_cosine_of_the_encoder_itself(scenes_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    encoder = write_dual_encoder("clip", tmp_path / "clip")
    lively = CLIPModel.from_pretrained(encoder)
    with torch.no_grad():  # vectors that differ by more than the rounding of kept ones
        for parameter in lively.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    lively.save_pretrained(encoder)
    compress(str(encoder), scenes_folder, tmp_path / "model", bits=16, split="train")
    figures = evaluate_folder(str(tmp_path / "model"), str(scenes_folder), reference="float")
    processor = CrossMediaRetriever.from_pretrained(tmp_path / "model").processor
    own, splits, vectors = CLIPModel.from_pretrained(encoder).eval(), load_image_text(str(scenes_folder)), {}
    with torch.inference_mode():
        for name in ("query", "train"):
            inputs = processor(images=list(splits[name]["image"]), text=list(splits[name]["text"]), return_tensors="pt")
            vectors["images", name] = own.get_image_features(inputs["pixel_values"]).pooler_output.double().numpy()
            texts = own.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
            vectors["texts", name] = texts.double().numpy()
    labels = {name: [set(names) for names in splits[name]["labels"]] for name in ("query", "train")}
    relevant = np.array([[bool(a & b) for b in labels["train"]] for a in labels["query"]])
    for way, asked, found in (("i2t", "images", "texts"), ("t2i", "texts", "images")):
        cosines = cosine_similarity(vectors[asked, "query"], vectors[found, "train"])
        rows = relevant.any(axis=1)
        expected = np.mean([average_precision_score(r, s) for r, s in zip(relevant[rows], cosines[rows], strict=True)])
        assert figures[f"float/{way}/map"] == pytest.approx(expected, abs=5e-3)  # kept in float16
        assert 0 <= figures[f"pairs/float/{way}/recall@10"] <= 1
    with pytest.raises(QueryError, match="no reference 'exact'"):
        evaluate_folder(str(tmp_path / "model"), str(scenes_folder), reference="exact")


def test_training_changes_the_heads_and_not_the_encoder(encoder, scenes_folder, tmp_path):
    train(run_of(encoder, scenes_folder, tmp_path / "out", "--learning_rate", "1e-2"))
    model = CrossMediaRetriever.from_pretrained(tmp_path / "out").model
    from safetensors.torch import load_file

    weights = load_file(encoder / "model.safetensors")
    for tower in (model.image_model, model.text_model):
        own = tower.embeddings.backbone.encoder.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in own.items())
        assert tower.hash_head.dense.weight.abs().max() > 1e-3
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dual_encoder_config"]["model_type"] == "clip"


TERMS = ("pair_contrast", "distillation", "orthogonality", "code_buffer")


def test_training_without_labels_by_the_similarity_of_the_encoder(encoder, scenes_folder, tmp_path):
    weights = [part for name in TERMS if name != "distillation" for part in (f"--{name}_weight", "0.5")]
    layers = ("--bit_queries", "true", "--shared_mlp_size", "16", "--num_train_epochs", "2", "--save_total_limit", "2")
    layers += ("--load_best_model_at_end", "false")
    metrics = train(run_of(encoder, scenes_folder, tmp_path / "out", "--similarity", "embeddings", *weights, *layers))
    assert (metrics["similarity"], metrics["query"]["hamming/t2i/map"] > 0) == ("embeddings", True)
    settings = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["objective"]
    assert (settings["distillation_weight"], settings["label_weight"]) == (1, 0)
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text("utf-8"))["log_history"]
    first, second = (log for log in history if "loss" in log)
    last = [log["eval_map"] for log in history if "eval_map" in log][-1]
    assert (metrics["epoch"], metrics["validation"]) == (2, last)
    assert {f"loss_{name}" for name in TERMS} - set(second) == set()
    assert first.get("loss_code_buffer", 0) == 0  # there is no table in the first epoch
    straight = CrossMediaRetriever.from_pretrained(tmp_path / "out").encode_texts(["a boat"])
    assert np.isfinite(straight).all()
    # Resumed after its first epoch, it ends at the same weights.
    step = min(int(path.name.rpartition("-")[2]) for path in (tmp_path / "out").glob("checkpoint-*"))
    again = ("--resume_from_checkpoint", str(tmp_path / "out" / f"checkpoint-{step}"))
    train(run_of(encoder, scenes_folder, tmp_path / "again", "--similarity", "embeddings", *weights, *layers, *again))
    ends = [load_file(tmp_path / name / f"checkpoint-{2 * step}" / "model.safetensors") for name in ("out", "again")]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_embeddings_need_a_dual_encoder(scenes_folder, tmp_path):
    run = parse_run(
        None,
        [
            "--dataset",
            str(scenes_folder),
            "--similarity",
            "embeddings",
            "--backbone",
            "vgg11",
            "--output_dir",
            str(tmp_path / "out"),
            "--report_to",
            "none",
        ],
    )
    with pytest.raises(DataError, match="compares the vectors of a dual encoder; give --dual_encoder"):
        train(run)


@pytest.mark.parametrize("how", [("--codes_update", "batch"), ("--streaming", "true")])
def test_the_code_buffer_needs_the_codes_of_all_pairs(how, encoder, scenes_folder, tmp_path):
    run = run_of(encoder, scenes_folder, tmp_path / "out", "--code_buffer_weight", "1", *how)
    with pytest.raises(DataError, match=r"code_buffer_weight compares .*; give --streaming false --codes_update epoch"):
        train(run)


@pytest.mark.parametrize(
    ("name", "family"), [("clip-unlabeled", "clip"), ("clip-labels", "clip"), ("siglip2-unlabeled", "siglip2")]
)
def test_bundled_configurations_train_on_an_encoder_of_their_kind(name, family, scenes_folder, tmp_path):
    encoder = write_dual_encoder(family, tmp_path / family)
    given = {"dual_encoder": encoder, "hidden_size": 24, "hash_bits": 16, "num_concepts": 4, "num_train_epochs": 1}
    given |= {"dataset": scenes_folder, "per_device_train_batch_size": 20, "output_dir": tmp_path / "out"}
    arguments = [part for setting, value in given.items() for part in (f"--{setting}", str(value))]
    run = parse_run(bundled_configuration(f"{name}.yaml"), [*arguments, "--use_cpu", "true"])
    metrics = train(run)
    assert metrics["similarity"] == ("labels" if name == "clip-labels" else "embeddings")
    assert metrics["pairs"]["hamming/t2i/recall@10"] > 0
    assert run.setting("distillation_weight") == 1
