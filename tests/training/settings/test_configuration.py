"""A run's settings: YAML file, command-line overrides, types, and one-line error messages."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cmfah_hf.errors import CMFAHError
from cmfah_hf.models import CMFAHConfig
from cmfah_hf.training import CMFAHTrainingArguments, bundled_configuration, parse_run
from cmfah_hf.training.settings.arguments import DataArguments
from cmfah_hf.training.settings.configuration import write_settings
from cmfah_hf.training.settings.yaml_files import merged, read_chain

ROOT = Path(__file__).parents[3]


@pytest.fixture
def read(tmp_path):
    """A function that parses the text of a file and additional arguments."""

    def parse(text: str = "", *arguments: str):
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding="utf-8")
        return parse_run(file, ["--use_cpu", "true", *arguments])

    return parse


def test_every_section_is_parsed(read):
    run = read("""
model: {hash_bits: 32, attention: image}
data: {dataset: images, walk_length: 3}
training: {learning_rate: 0.25, codes_update: batch}
""")
    assert run.model == {"hash_bits": 32, "attention": "image"}
    assert (run.data.dataset, run.data.walk_length) == ("images", 3)
    assert (run.training.learning_rate, run.training.codes_update) == (0.25, "batch")
    # Settings that are not given keep their defaults.
    assert (run.data.top_k, run.training.discriminator_learning_rate) == (10, 8e-4)


def test_defaults_are_those_of_the_paper():
    run = parse_run(None, ["--use_cpu"])
    training = run.training
    assert run.model == {}
    assert (training.learning_rate, training.discriminator_learning_rate) == (7e-4, 8e-4)
    assert (training.per_device_train_batch_size, training.num_train_epochs) == (128, 150)
    assert (training.optim, training.codes_update) == ("sgd", "epoch")
    assert (run.objective, run.setting("margin")) == ({}, 0.5)


def test_adamax_is_an_optimizer_of_runs_and_their_files(tmp_path):
    run = parse_run(bundled_configuration("paper/agah.yaml"), ["--use_cpu"])
    assert (run.training.optim, run.training.weight_decay) == ("adamax", 5e-4)
    assert replace(run.training, num_train_epochs=1).optim == "adamax"
    assert parse_run(write_settings(run, tmp_path), ["--use_cpu"]).training.optim == "adamax"
    assert json.loads(run.training.to_json_string())["optim"] == "adamax"
    with pytest.raises(CMFAHError, match="adamex"):
        parse_run(None, ["--use_cpu", "--optim", "adamex"])


def test_the_command_line_overrides_the_file(read):
    run = read(
        "model: {hash_bits: 32, dropout: 0.1}\ndata: {top_k: 4, dataset: a}\ntraining: {learning_rate: 0.5, seed: 3}\n",
        "--hash_bits", "16", "--top_k=7", "--learning-rate", "1e-3",
    )  # fmt: skip
    assert run.model == {"hash_bits": 16, "dropout": 0.1}
    assert (run.data.top_k, run.data.dataset) == (7, "a")
    assert (run.training.learning_rate, run.training.seed) == (1e-3, 3)


def test_backbone_on_the_command_line_replaces_that_of_the_file(read):
    file = "model: {backbone_config: {model_type: resnet, depths: [1]}}"
    assert read(file, "--backbone", "vgg11").model == {"backbone": "vgg11"}
    other = read(file, "--backbone_config", "{model_type: convnext}").model
    assert other == {"backbone_config": {"model_type": "convnext"}}
    assert CMFAHConfig(**read(file, "--backbone", "vgg11").model).backbone == "vgg11"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2.5e-4", 2.5e-4),
        ("1E+2", 100.0),
        ("-1e-3", -1e-3),
        (".5", 0.5),
        ("7", 7.0),
        ("'0.125'", 0.125),
    ],
)
def test_number_formats(read, text, value):
    if text.startswith("-"):
        assert read(f"model: {{margin: {text}}}").objective["margin"] == value
        return
    found = read(f"model: {{margin: {text}}}\ntraining: {{learning_rate: {text}}}")
    assert found.training.learning_rate == value
    assert isinstance(found.training.learning_rate, float)
    if "'" not in text:
        assert found.objective["margin"] == value
        found = read("", "--margin", text, "--learning_rate", text)
        assert (found.objective["margin"], found.training.learning_rate) == (value, value)


def test_lists_booleans_and_null_in_a_file(read):
    run = read("""
model: {text_kernel_sizes: [1, 3], use_lstm: false, backbone_config: {model_type: resnet, depths: [1]}}
data: {word_corpus: [a.txt, b.jsonl], image_mean: [0.1, 2e-1, 1], mirror: true, query_split: null, expand: no}
training: {save_total_limit: null, lr_scheduler_kwargs: {num_cycles: 0.5}, load_best_model_at_end: false}
""")
    assert run.model["text_kernel_sizes"] == [1, 3]
    assert run.model["use_lstm"] is False
    assert run.model["backbone_config"] == {"model_type": "resnet", "depths": [1]}
    assert run.data.word_corpus == ["a.txt", "b.jsonl"]
    assert run.data.image_mean == [0.1, 0.2, 1.0]
    assert (run.data.mirror, run.data.expand, run.data.query_split) == (True, False, None)
    assert run.training.save_total_limit is None
    assert run.training.lr_scheduler_kwargs == {"num_cycles": 0.5}
    assert run.training.load_best_model_at_end is False


def test_one_value_for_a_list_is_a_list_of_one(read):
    assert read("data: {word_corpus: text/all.jsonl}").data.word_corpus == ["text/all.jsonl"]
    assert read("", "--word_corpus", "text/all.jsonl").data.word_corpus == ["text/all.jsonl"]


def test_lists_booleans_and_null_on_the_command_line(read):
    run = read(
        "data: {backbone_weights: somewhere, query_split: query}\ntraining: {early_stopping_patience: 3}",
        "--text_kernel_sizes", "1", "3", "--use_lstm", "false", "--freeze_word_vectors", "--dropout=0.25",
        "--image_mean", "0.1", "0.2", "0.3", "--mirror", "--no_keep_regions",
        "--backbone_weights", "none", "--query_split", "null", "--early_stopping_patience", "None",
    )  # fmt: skip
    assert run.model == {
        "text_kernel_sizes": [1, 3],
        "use_lstm": False,
        "freeze_word_vectors": True,
        "dropout": 0.25,
    }
    assert run.data.image_mean == [0.1, 0.2, 0.3]
    assert (run.data.mirror, run.data.keep_regions) == (True, False)
    assert (run.data.backbone_weights, run.data.query_split) == (None, None)
    assert run.training.early_stopping_patience is None
    assert read("", "--text_kernel_sizes=[1, 5]").model["text_kernel_sizes"] == [1, 5]
    assert read("", "--attention", "none").model["attention"] == "none"  # here a valid value, not null
    assert read("", "--report_to", "none").training.report_to == []


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", ["--hash_bitz", "32"], "There is no argument --hash_bitz; did you mean 'hash_bits'."),
        ("", ["--learning_rat=1"], "There is no argument --learning_rat; did you mean 'learning_rate'."),
        ("", ["--qwertyuiop", "1"], "There is no argument --qwertyuiop."),
        ("", ["--vocab_size", "9"], "There is no argument --vocab_size"),
        ("", ["--seed", "1", "stray"], "'stray' is not an argument; give arguments as --name value."),
        ("", ["--seed", "one"], "--seed: invalid int value: 'one'"),
        ("", ["--seed"], "--seed: expected one argument"),
        ("model: {hash_bit: 3}", [], "{file}: model has no setting 'hash_bit'; did you mean 'hash_bits'."),
        ("model: {learning_rate: 3}", [], "{file}: model has no setting 'learning_rate'"),
        ("data: {dataset: a, topk: 3}", [], "{file}: data has no setting 'topk'; did you mean 'top_k'."),
        ("model: {1: 2}", [], "{file}: model has no setting 1."),
        ("modle: {}", [], "{file}: there is no section 'modle'; there are model, method, data, training."),
        ("- a\n- b", [], "{file}: a configuration has the sections model, method, data, training, each with its"),
        ("just words", [], "{file}: a configuration has the sections"),
        ("model: {a: [1, 2", [], "{file} is not valid YAML ("),
        ("model:\n\thash_bits: 2", [], "{file} is not valid YAML ("),
        ("training: {learning_rate: fast}", [], "{file}, section training: argument --learning_rate"),
        ("training: {learning_rate: [1, 2]}", [], "{file}, section training: learning_rate is one value, not a list."),
        ("training: {learning_rate: null}", [], "{file}, section training: learning_rate cannot be null."),
        ("training: {seed: 1.5}", [], "{file}, section training: argument --seed: invalid int value: '1.5'"),
        ("data: {mirror: perhaps}", [], "{file}, section data: argument --mirror:"),
        ("model: {model_type: [x]}", [], "{file}: model_type is a list; choose one of cmfah, scahn, "),
        ("model: {model_type: {a: 1}}", [], "{file}: model_type is a dict; choose one of"),
        ("training: {learning_rate: {a: 1}}", [], "{file}, section training: learning_rate is one value, not a map"),
        ("training: {hub_token: {a: 1}}", [], "{file}, section training: hub_token is one value, not a mapping."),
        ("data: {word_corpus: [[a]]}", [], "{file}, section data: word_corpus is a list of single values."),
        ("training: {1: 2, a: 3}\n1: {}\na: {}", [], "{file}: there is no section 1;"),
        ("model: {dropout: 0.1, hash_bits: 8, dropout: 0.2}", [], "{file}: line 1 gives 'dropout', as line 1 does;"),
        ("data:\n  top_k: 3\n  dataset: a\n  top_k: 4", [], "{file}: line 4 gives 'top_k', as line 2 does;"),
        ("data: {}\ndata: {}", [], "{file}: line 2 gives 'data', as line 1 does;"),
        ("model: " + "[" * 3000, [], "{file}"),
        ("model: {a: !!python/object/apply:os.system [ls]}", [], "{file} is not valid YAML (could not determine a"),
        ("training: {seed: 0x" + "f" * 9000 + "}", [], "{file}, section training: seed is a number of 36000 bits;"),
        ("training: {seed: " + "9" * 9000 + "}", [], "{file} is not valid YAML ("),
        ("model: {margin: .nan}", [], "margin is nan; give a finite number."),
        ("model: {backbone_config: {model_type: resnet, a: [1, .inf]}}", [], "backbone_config, 'a' is inf; give a fin"),
        ("", ["--hash_bits", "[[[["], "--hash_bits is not valid YAML ("),
        ("", ["--hash_bits", "!!python/name:os.system"], "--hash_bits is not valid YAML ("),
        ("", ["--hash_bits", "[" * 3000], "--hash_bits"),
        ("", ["--margin", ".nan"], "margin is nan; give a finite number."),
        ("training: {accelerator_config: {nothing: 1}}", [], "The settings of the training cannot be used: "),
        ("training: {accelerator_config: /dev/zero}", [], "/dev/zero is not a regular file; give one."),
        ("training: {lr_scheduler_kwargs: '{\"a\": [1'}", [], "lr_scheduler_kwargs is not valid JSON ("),
        ("training: {metric_for_best_model: loss}", [], "metric_for_best_model is 'loss'; choose one of map, map_i2t,"),
        (
            "training: {early_stopping_patience: 2, eval_strategy: no, load_best_model_at_end: false}",
            [],
            "early_stopping_patience counts evaluations;",
        ),
    ],
)
def test_errors_are_one_line_that_names_the_setting(read, tmp_path, text, arguments, message):
    with pytest.raises(CMFAHError) as caught:
        read(text, *arguments)
    assert message.replace("{file}", str(tmp_path / "run.yaml")) in str(caught.value)
    assert "\n" not in str(caught.value)


# Numbers with which a run could not train, or would not do as requested.
OUT_OF_RANGE = {
    "num_train_epochs": (0, -3, "nan", "inf"),
    "max_steps": (0, -2),
    "per_device_train_batch_size": (0, -1),
    "per_device_eval_batch_size": (0,),
    "gradient_accumulation_steps": (0, -2),
    "learning_rate": ("nan", -1e-3, "inf"),
    "discriminator_learning_rate": ("nan", -1),
    "warmup_steps": (-1, "nan"),
    "weight_decay": (-0.1, "nan"),
    "adam_beta1": (1, -0.1),
    "adam_epsilon": (0,),
    "max_grad_norm": (-1, "nan"),
    "logging_steps": (0, -1),
    "eval_steps": (0, -1),
    "save_steps": (0, "nan"),
    "save_total_limit": (0, -1),
    "seed": (-1, 2**32),
    "data_seed": (-1, 2**64),
    "dataloader_num_workers": (-1,),
    "early_stopping_patience": (0, -1),
    "paired_every": (0,),
    "shuffle_buffer": (-1,),
    "validation_fraction": (0, 1, 1.5, "nan"),
    "validation_seed": (-1,),
    "walk_length": (4, -1),
    "min_probability": (-0.1, 1.5, "nan"),
    "top_k": (-1,),
    "word_epochs": (0,),
    "word_window": (0,),
    "word_min_count": (0,),
    "word_workers": (0,),
    "word_seed": (-1,),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_out_of_range_numbers_are_refused(read, name, value):
    with pytest.raises(CMFAHError, match=rf"^{name} is .*; give [^\n]*\.$"):
        read("", f"--{name}={value}")


def test_numbers_from_python_code_are_checked_too():
    for settings in ({"learning_rate": "3e-4"}, {"seed": 1.5}, {"per_device_train_batch_size": True}):
        with pytest.raises(CMFAHError, match=f"^{next(iter(settings))} is "):
            CMFAHTrainingArguments(use_cpu=True, **settings)
    with pytest.raises(CMFAHError, match=r"image_std is .*; give three numbers above 0"):
        DataArguments(image_std=[0.1, 0.2, 0.0])
    with pytest.raises(CMFAHError, match="word_tokenizer is 'german'; choose one of words, chinese"):
        DataArguments(word_tokenizer="german")
    with pytest.raises(CMFAHError, match="dataset is empty"):
        DataArguments(dataset=" ")


TOKEN = "hf_" + "AbCdEfGh" * 4


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (f"training: {{hub_token: [{TOKEN}]}}", []),
        (f"training: {{hub_token: {{a: {TOKEN}}}}}", []),
        (f"training: {{hub_tokn: {TOKEN}}}", []),
        (f"training:\n  hub_token: {TOKEN}: x", []),
        (f'training:\n  hub_token: "{TOKEN}', []),
        (f"training: {{hub_token: [{TOKEN}, {{}}]}}", []),
        (f"training: {TOKEN}", []),
        ("", ["--seed", "1", TOKEN]),
        ("", ["--hub_token", TOKEN, "--seed", "-1"]),
        ("", ["--hub_token", TOKEN, "--hub_strategy", "every_save"]),
    ],
)
def test_no_message_holds_the_token(read, text, arguments):
    with pytest.raises(CMFAHError) as caught:
        read(text, *arguments)
    error = caught.value
    while error is not None:
        assert TOKEN not in str(error)
        error = error.__cause__


def test_no_text_of_the_settings_holds_the_token(read, tmp_path):
    run = read(f"training: {{hub_token: {TOKEN}, push_to_hub: true, hub_model_id: me/model}}")
    assert run.training.hub_token == TOKEN
    written = write_settings(run, tmp_path).read_text(encoding="utf-8")
    for text in (repr(run), str(run.training), run.training.to_json_string(), written):
        assert TOKEN not in text


def test_alias_bomb_is_refused_quickly(read):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    text = "model:\n  " + "\n  ".join(lines) + "\ntraining: {learning_rate: *a8}\n"
    start = time.monotonic()
    with pytest.raises(CMFAHError, match="values, aliases written out; shorten it"):
        read(text)
    assert time.monotonic() - start < 5


def test_missing_or_binary_file(tmp_path):
    missing = tmp_path / "absent.yaml"
    with pytest.raises(CMFAHError, match=r"absent\.yaml: this configuration does not exist; give a file"):
        parse_run(missing)
    with pytest.raises(CMFAHError, match="this configuration does not exist"):
        parse_run("x" * 5000)
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    with pytest.raises(CMFAHError, match=r"fifo\.yaml is not a regular file"):
        parse_run(fifo)
    missing.write_bytes(b"model:\n  backbone: \xff\xfe")
    with pytest.raises(CMFAHError, match=r"absent\.yaml is not valid YAML"):
        parse_run(missing)


def test_empty_file_gives_the_defaults(read):
    assert read("").model == {}
    assert read("# only a comment\n").data.dataset == "scenes"


CONFIGURATIONS = ROOT / "hub_configs"
OTHERS = ("accelerate", "experiments")
ENCODERS = ("backbone", "text_backbone", "dual_encoder")
BUNDLED = sorted(path for path in CONFIGURATIONS.rglob("*.yaml") if path.parent.name not in OTHERS)


@pytest.mark.parametrize("file", BUNDLED, ids=lambda path: path.stem)
def test_bundled_configurations_match_their_files(file):
    assert bundled_configuration(file.relative_to(CONFIGURATIONS).as_posix()) == file
    run = parse_run(file, ["--use_cpu"])
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    for part, section in ((run.data, "data"), (run.training, "training")):
        for name, value in settings.get(section, {}).items():
            found = getattr(part, name)
            assert getattr(found, "value", found) == value, name
    # Encoders are not looked up: they may be timm's, or folders below CMFAH_DATA.
    model = {name: value for name, value in run.model.items() if name not in ENCODERS}
    config, objective = run.config_class(**model), run.objective_config()
    for name, value in settings.get("model", {}).items():
        if name in ENCODERS:
            assert run.model[name] == value, name
        elif name not in ("backbone_config", "model_type"):
            assert getattr(objective if name in run.objective else config, name) == value, name
    sections = merged(read_chain(file))
    named = sections.get("method", {}).get("name") or sections["model"].get("model_type", "cmfah")
    assert run.method == named
    for name, value in settings.get("method", {}).items():
        assert name == "name" or getattr(objective, name) == value, name


def test_missing_bundled_configuration():
    with pytest.raises(CMFAHError, match=r"nothing\.yaml: this configuration did not come with the package"):
        bundled_configuration("nothing.yaml")
