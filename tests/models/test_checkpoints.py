"""Saving and loading: single file, shards, half precision, single towers, a new process, and without the package."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoProcessor,
    BertConfig,
    BertModel,
    ResNetConfig,
    ResNetModel,
)

from cmfah_hf.methods import CMFAHDiscriminator, CMFAHForPreTraining
from cmfah_hf.models import CMFAHConfig, CMFAHImageModel, CMFAHModel, CMFAHProcessor, CMFAHTextModel

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
CLASSES = (CMFAHModel, CMFAHForPreTraining, CMFAHImageModel, CMFAHTextModel, CMFAHDiscriminator)


def assert_equal_weights(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("max_shard_size", ["5GB", "8KB"])
def test_round_trip_is_bit_equal_and_silent(make_model, silence, tmp_path, cls, max_shard_size):
    model = make_model(cls, normalize_features=True)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    names = {path.name for path in tmp_path.iterdir()}
    weights = {name for name in names if "model" in name and not name.endswith(".py")}
    if max_shard_size == "5GB":
        assert weights == {"model.safetensors"}
    elif cls is not CMFAHDiscriminator:
        assert "model.safetensors.index.json" in weights
        assert sum(name.endswith(".safetensors") for name in weights) > 2
    with silence():
        again = cls.from_pretrained(tmp_path)
    assert not again.training
    assert_equal_weights(again, model)


def test_tensor_alignment_does_not_depend_on_the_file_header(make_model, tmp_path):
    """The header of a file shifts the tensors after it; some processors then round differently."""
    model = make_model(CMFAHModel)
    model.save_pretrained(tmp_path)
    path, starts = tmp_path / "model.safetensors", set()
    weights = load_file(path)
    for further in range(0, 64, 8):
        save_file(weights, path, metadata={"format": "pt", "further": "x" * further})
        starts.add((8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64)
        again, _ = CMFAHModel.from_pretrained(tmp_path, output_loading_info=True)
        assert all(tensor.data_ptr() % 64 == 0 for tensor in (*again.parameters(), *again.buffers()))
        assert_equal_weights(again, model)
    assert starts == set(range(0, 64, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(pretraining, pretraining_folder, batch, silence, tmp_path, dtype):
    with silence():
        model = CMFAHModel.from_pretrained(pretraining_folder, dtype=dtype)
    for name, value in pretraining.cmfah.state_dict().items():
        expected = value.to(dtype) if value.is_floating_point() else value
        assert torch.equal(model.state_dict()[name], expected), name
    outputs, exact = model(**batch), pretraining.cmfah(**batch)
    for name in ("image_hash", "text_hash"):
        assert outputs[name].dtype == dtype
        assert (outputs[name].float() - exact[name]).abs().max() < (0.01 if dtype == torch.float16 else 0.06), name
        assert outputs[name].isfinite().all()
    model.save_pretrained(tmp_path)
    assert_equal_weights(CMFAHModel.from_pretrained(tmp_path), model)  # a checkpoint records its dtype
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("cls", CLASSES)
def test_models_built_on_the_meta_device_take_their_weights(make_config, make_model, cls):
    with torch.device("meta"):
        model = cls(make_config(normalize_features=True))
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    expected = make_model(cls, normalize_features=True)
    model.load_state_dict(expected.state_dict(), assign=True)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert_equal_weights(model, expected)


def test_fresh_weights_follow_the_configuration(make_config):
    torch.manual_seed(0)
    model = CMFAHModel(make_config(word_dim=200, vocab_size=200, initializer_range=0.5, hidden_size=64, guidance="add"))
    for weights in (model.text_model.embeddings.embed_tokens.weight[1:], model.image_model.encoder.concepts):
        assert weights.std().item() == pytest.approx(0.5, rel=0.1)
        assert abs(weights.mean().item()) < 0.1
    assert not model.text_model.embeddings.embed_tokens.weight[0].any()  # [PAD]
    for parameter in model.parameters():
        assert parameter.isfinite().all()


# One checkpoint, several classes


def test_towers_of_a_training_checkpoint(pretraining, pretraining_folder, silence):
    with silence():
        model = CMFAHModel.from_pretrained(pretraining_folder)
    assert_equal_weights(model, pretraining.cmfah)


def test_training_continues_from_a_model(pretraining, model_folder):
    model, report = CMFAHForPreTraining.from_pretrained(model_folder, output_loading_info=True)
    assert_equal_weights(model.cmfah, pretraining.cmfah)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"objective"}
    assert {name.split(".")[1] for name in report["missing_keys"]} == {
        "image_concept_head",
        "image_discriminator",
        "text_concept_head",
        "text_discriminator",
        "label_head",
    }
    assert not report["unexpected_keys"]


@pytest.mark.parametrize("folder", ["pretraining_folder", "model_folder"])
@pytest.mark.parametrize(("cls", "name"), [(CMFAHImageModel, "image_model"), (CMFAHTextModel, "text_model")])
def test_one_tower_of_a_checkpoint(request, pretraining, batch, silence, tmp_path, folder, cls, name):
    with silence():
        tower, report = cls.from_pretrained(request.getfixturevalue(folder), output_loading_info=True)
    assert not any(report.values())
    expected = getattr(pretraining.cmfah, name)
    assert_equal_weights(tower, expected)
    values = batch[tower.main_input_name]
    with torch.no_grad():
        assert torch.equal(tower(values).hash_values, expected(values).hash_values)
    # A tower taken from a checkpoint can be saved, by itself and as a part of a model with both towers.
    tower.save_pretrained(tmp_path)
    with silence():
        assert_equal_weights(cls.from_pretrained(tmp_path), expected)
    both, report = CMFAHModel.from_pretrained(tmp_path, output_loading_info=True)
    assert_equal_weights(getattr(both, name), expected)
    assert {key.split(".")[0] for key in report["missing_keys"]} == {"image_model", "text_model"} - {name}


def test_unexpected_weights_are_reported(pretraining_folder, model_folder):
    """A tower ignores the other tower's weights; a model with both towers must not ignore any."""
    for cls, folder in ((CMFAHModel, model_folder), (CMFAHForPreTraining, pretraining_folder)):
        _, report = cls.from_pretrained(folder, use_lstm=False, output_loading_info=True)
        prefix = "cmfah." if cls is CMFAHForPreTraining else ""
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        expected = {f"{prefix}{side}_model.encoder.layers.0.lstm.{x}" for side in ("image", "text") for x in names}
        assert set(report["unexpected_keys"]) == expected
        assert not report["missing_keys"]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, cls):
    bert = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])).save_pretrained(tmp_path / "resnet")
    BertModel(bert).save_pretrained(tmp_path / "bert")
    for name in ("resnet", "bert"):
        with pytest.raises(ValueError, match=f"a checkpoint of '{name}', not of 'cmfah'") as raised:
            cls.from_pretrained(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_auto_classes_load_the_models(pretraining, pretraining_folder, model_folder, silence):
    with silence():
        config = AutoConfig.from_pretrained(pretraining_folder)
        model = AutoModel.from_pretrained(pretraining_folder)
        again = AutoModel.from_pretrained(model_folder)
        training = AutoModelForPreTraining.from_pretrained(pretraining_folder)
    assert [type(each) for each in (config, model, again, training)] == [
        CMFAHConfig,
        CMFAHModel,
        CMFAHModel,
        CMFAHForPreTraining,
    ]
    assert_equal_weights(model, pretraining.cmfah)
    assert_equal_weights(again, pretraining.cmfah)
    assert_equal_weights(training, pretraining)
    assert type(AutoModel.from_config(config)) is CMFAHModel
    assert type(AutoModelForPreTraining.from_config(config)) is CMFAHForPreTraining


# In a new process

SCRIPT = """
import sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cmfah_hf":
            raise ImportError(f"{name} is hidden")

here, mode = Path(sys.argv[1]), sys.argv[2]
if mode == "hidden":
    sys.meta_path.insert(0, Hidden())
import logging, warnings
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
import torch
torch.set_num_threads(1)
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor
logging.getLogger("transformers").addHandler(handler)
if mode == "hidden":
    try:
        import cmfah_hf
        raise SystemExit("cmfah_hf can be imported")
    except ImportError:
        pass
    options = {"trust_remote_code": True}
else:
    from cmfah_hf import CMFAHForPreTraining  # registers all models with the Auto classes
    options = {}
processor = AutoProcessor.from_pretrained(here / "model", **options)
inputs = processor(
    images=[Image.open(here / f"{i}.png") for i in range(3)],
    text=(here / "texts.txt").read_text(encoding="utf-8").split("|"),
    return_tensors="pt",
)
found = dict(inputs)
with torch.no_grad():
    pairs = [("model", AutoModel), ("pretraining", AutoModel), ("pretraining", AutoModelForPreTraining)]
    for name, auto in pairs[:2] if mode == "hidden" else pairs:  # training code is not saved
        model = auto.from_pretrained(here / name, **options)
        base = model.cmfah if hasattr(model, "cmfah") else model
        module = sys.modules[type(base).__module__]
        assert module.__name__.startswith("transformers_modules." if mode == "hidden" else "cmfah_hf.models."), module
        key = f"{name}.{type(model).__name__}"
        found[f"{key}.image"] = base.get_image_hash(inputs["pixel_values"])
        found[f"{key}.text"] = base.get_text_hash(inputs["input_ids"], inputs["attention_mask"])
        outputs = base(**inputs)
        found[f"{key}.paired_image"], found[f"{key}.paired_text"] = outputs.image_hash, outputs.text_hash
    folder = here / "pretraining"
    found["towers.image"] = module.CMFAHImageModel.from_pretrained(folder)(inputs["pixel_values"]).hash_values
    found["towers.text"] = module.CMFAHTextModel.from_pretrained(folder)(inputs["input_ids"]).hash_values
model.save_pretrained(here / mode)
processor.save_pretrained(here / mode)
assert lines == [], lines
save_file({name: value.contiguous() for name, value in found.items()}, here / f"{mode}.safetensors")
"""


@pytest.fixture(scope="module")
def saved_with_code(make_model, tmp_path_factory):
    """A training model, the folder of its checkpoint and of its towers', three images and texts, and the inputs."""
    pretraining = make_model(CMFAHForPreTraining)  # a separate configuration: saving also writes to it
    here = tmp_path_factory.mktemp("saved")
    vocabulary = ["beach", "dog", "海", "हिन्दी", "on", "the"]
    processor = CMFAHProcessor.from_vocabulary(pretraining.config, vocabulary, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    pretraining.save_pretrained(here / "pretraining")
    pretraining.cmfah.save_pretrained(here / "model")
    processor.save_pretrained(here / "pretraining")
    processor.save_pretrained(here / "model")
    texts = ["A dog on the beach!", "", "海 हिन्दी unknown"]
    (here / "texts.txt").write_text("|".join(texts), encoding="utf-8")
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)),
        Image.fromarray(rng.integers(0, 256, (32, 32, 4)).astype(np.uint8)),
        Image.fromarray(rng.integers(0, 65536, (20, 20)).astype(np.uint16)),
    ]
    for i, image in enumerate(images):
        image.save(here / f"{i}.png")
    images = [Image.open(here / f"{i}.png") for i in range(3)]
    return pretraining, here, processor(images=images, text=texts, return_tensors="pt")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["installed", "hidden"])
def test_new_process_computes_the_same_bits(saved_with_code, tmp_path, mode):
    """Also where `cmfah_hf` cannot be imported: the code saved next to the weights is enough."""
    pretraining, here, inputs = saved_with_code
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if mode == "installed":
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, *(["-I"] if mode == "hidden" else []), "-c", SCRIPT, str(here), mode],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    found = load_file(here / f"{mode}.safetensors")
    for name, value in inputs.items():
        assert torch.equal(found.pop(name), value), name
    model = pretraining.cmfah
    with torch.no_grad():
        outputs = model(**inputs)
        expected = {
            "image": model.get_image_hash(inputs["pixel_values"]),
            "text": model.get_text_hash(inputs["input_ids"], inputs["attention_mask"]),
            "paired_image": outputs.image_hash,
            "paired_text": outputs.text_hash,
        }
    assert {name.rpartition(".")[0] for name in found} == {
        "model.CMFAHModel",
        "pretraining.CMFAHModel",
        "towers",
        *(["pretraining.CMFAHForPreTraining"] if mode == "installed" else []),
    }
    for name, value in found.items():
        assert torch.equal(value, expected[name.rpartition(".")[2]]), name

    # The checkpoint saved by that process is the same here.
    if mode == "installed":
        assert_equal_weights(CMFAHForPreTraining.from_pretrained(here / mode), pretraining)
    assert_equal_weights(CMFAHModel.from_pretrained(here / mode), pretraining.cmfah)
    again = AutoProcessor.from_pretrained(here / mode)(text=["dog 海"], return_tensors="pt")
    assert again.input_ids.tolist() == [[3, 4]]
    auto_map = json.loads((here / mode / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel"}


def test_saved_code_is_that_of_the_models_only(model_folder):
    files = {path.name for path in model_folder.glob("*.py")}
    assert files == {
        "adapters.py",
        "codes.py",
        "configuration_cmfah.py",
        "configuration_files.py",
        "dual_encoder.py",
        "encoder_output.py",
        "fused_cmfah.py",
        "image_encoder.py",
        "image_inputs.py",
        "lstm_cmfah.py",
        "model_files.py",
        "modeling_cmfah.py",
        "modules_cmfah.py",
        "named_encoders.py",
        "outputs_cmfah.py",
        "pretrained_cmfah.py",
        "remote_code.py",
        "safe_weights.py",
        "sentence_files.py",
        "sentence_module.py",
        "text_encoder.py",
    }
    for name in files:
        assert "cmfah_hf." not in "".join(
            line for line in (model_folder / name).read_text().splitlines() if line.startswith(("import ", "from "))
        )


@torch.no_grad()
def test_checkpoints_of_earlier_versions_load(pretraining, pretraining_folder, silence, tmp_path):
    """Earlier versions kept the objective's settings among the model's, and its tensors had no `objective.` prefix."""
    tensors = load_file(pretraining_folder / "model.safetensors")
    file = tmp_path / "model.safetensors"
    save_file({name.removeprefix("objective."): value for name, value in tensors.items()}, file)
    config = json.loads((pretraining_folder / "config.json").read_text())
    section = config.pop("objective")
    assert section.pop("_name") == "cmfah"
    del config["class_concepts"]
    (tmp_path / "config.json").write_text(json.dumps({**config, **section}))
    with silence():
        whole, report = CMFAHForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
        towers, of_towers = CMFAHModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any([*report.values(), *of_towers.values()])
    assert_equal_weights(whole, pretraining)
    assert_equal_weights(towers, pretraining.cmfah)
    assert whole.config.objective == pretraining.config.objective
    again = deepcopy(whole)
    again.load_state_dict(load_file(file))  # as a trainer resumes
    assert_equal_weights(again, pretraining)


def test_code_of_another_method_is_reported(pretraining_folder, tmp_path):
    copytree(pretraining_folder, tmp_path / "other")
    file = tmp_path / "other" / "config.json"
    config = json.loads(file.read_text())
    config["objective"]["_name"] = "theirs"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"There is no method 'theirs' but cmfah, scahn.*; import the module"):
        CMFAHForPreTraining.from_pretrained(tmp_path / "other")
    CMFAHModel.from_pretrained(tmp_path / "other")  # the towers do not depend on the method
