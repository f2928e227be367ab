"""Configurations of the paper: every setting that it reports, and short runs on replicas of both releases."""

import json

import pytest
from data.release_replicas import make_mirflickr, make_nus_wide

from cmfah_hf.data.releases.mirflickr import prepare_mirflickr25k
from cmfah_hf.data.releases.nus_wide import prepare_nus_wide
from cmfah_hf.training import bundled_configuration, parse_run, train

NAMES = ["cmfah-mirflickr", "cmfah-nus-wide"]
# Overrides only sizes and lengths, and uses local files instead of downloads.
SMALL = [
    *("--image_size", "64", "--hidden_size", "16", "--word_dim", "12", "--text_filters", "4", "--hash_bits", "16"),
    *("--num_concepts", "4", "--num_train_epochs", "1", "--per_device_train_batch_size", "8", "--word_epochs", "1"),
    *("--backbone_weights", "none", "--use_cpu", "--disable_tqdm", "true"),
    # VGG19 adds 80 MB to each checkpoint.
    *("--save_strategy", "no", "--load_best_model_at_end", "false"),
]


@pytest.fixture
def paper_run(tmp_path):
    """A function from a configuration's name and arguments to its run."""
    return lambda name, *arguments: parse_run(bundled_configuration(f"paper/{name}.yaml"), ["--use_cpu", *arguments])


@pytest.mark.parametrize("name", NAMES)
def test_settings_match_the_paper(name, paper_run):
    run = paper_run(name)
    config = run.model_config()
    assert (run.method, config.backbone, config.freeze_backbone, config.image_size) == ("cmfah", "vgg19", True, 224)
    assert (config.word_dim, config.use_lstm, config.num_hidden_layers) == (1000, True, 1)
    assert (config.attention, config.guidance, run.setting("margin")) == ("both", "add", 0.5)
    for term in ("intra_feature", "intra_hash", "quantization", "inter_feature", "inter_hash", "adversarial", "paired"):
        assert run.setting(f"{term}_weight") == 1
    for term in ("label", "concept", "similarity"):  # not reported in the paper
        assert run.setting(f"{term}_weight") == 0
    assert not config.normalize_regions
    assert not config.normalize_features
    assert config.dropout == 0
    data, training = run.data, run.training
    assert (data.expand, data.walk_length, data.backbone_weights) == (True, 5, "torchvision")
    assert data.knowledge == ["wikimedia/wikipedia:20231101.en"]
    assert (training.optim, training.learning_rate, training.discriminator_learning_rate) == ("sgd", 7e-4, 8e-4)
    assert (training.per_device_train_batch_size, training.num_train_epochs) == (128, 150)
    assert (training.codes_update, training.paired_every, training.weight_decay) == ("epoch", 1, 0)
    assert (training.lr_scheduler_type, training.max_grad_norm, training.warmup_steps) == ("constant", 0, 0)


def test_the_two_configurations_differ_only_in_their_data(paper_run):
    first, second = (paper_run(name) for name in NAMES)
    assert (first.data.dataset, second.data.dataset) == ("mirflickr25k", "nus-wide")
    second.data.dataset = first.data.dataset
    assert (first.model, first.data) == (second.model, second.data)
    assert {**first.training.to_dict(), "logging_dir": None} == {**second.training.to_dict(), "logging_dir": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "prepare", "words"),
    [
        ("cmfah-mirflickr", make_mirflickr, prepare_mirflickr25k, "nikon explore café"),
        pytest.param("cmfah-nus-wide", make_nus_wide, prepare_nus_wide, "müll tag3 tag1", marks=pytest.mark.slow),
    ],
)
def test_one_command_trains_on_prepared_data(name, make, prepare, words, paper_run, tmp_path):
    replica = make(tmp_path / "release")
    prepare(replica.root, tmp_path / "prepared", release=replica.release)
    articles = tmp_path / "articles.txt"
    articles.write_text(f"{words} lens\n" * 30, encoding="utf-8")
    places = ["--dataset", str(tmp_path / "prepared"), "--output_dir", str(tmp_path / "out")]
    metrics = train(paper_run(name, *SMALL, *places, "--knowledge", str(articles)))
    assert metrics["source"] == {"kind": "local", "name": "prepared", "revision": None}
    assert metrics["train_pairs"] + metrics["validation_pairs"] == replica.release.train
    assert metrics["query"]["queries"] == replica.release.queries
    assert 0 < metrics["query"]["hamming/i2t/map"] <= 1
    assert (tmp_path / "out" / "knowledge.json").is_file()
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (config["guidance"], config["backbone"], config["use_lstm"]) == ("add", "vgg19", True)
