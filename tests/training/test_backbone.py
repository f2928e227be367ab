"""Published backbone weights: files, folders, a Hub over loopback HTTP, torchvision."""

import hashlib
import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from transformers import ConvNextBackbone, ConvNextConfig, ResNetBackbone, ResNetConfig, ResNetForImageClassification

from cmfah_hf.errors import CheckpointError
from cmfah_hf.models import CMFAHImageModel
from cmfah_hf.training.backbone import load_backbone_weights

PARTS = {"layer_type": "basic", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1]}


@pytest.fixture
def tower(make_config):
    return CMFAHImageModel(make_config())


@pytest.fixture(scope="module")
def vgg_features():
    """Features of a VGG11 under torchvision's names, in half precision, plus a tensor of the classifier."""
    torch.manual_seed(3)
    vgg = torchvision.models.vgg11(weights=None, init_weights=False)
    features = {name: tensor.half() for name, tensor in vgg.features.state_dict(prefix="features.").items()}
    return {**features, "classifier.6.bias": torch.zeros(1000).half()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders saved by `transformers`: a backbone, a classifier, a wider one, another architecture."""
    root = tmp_path_factory.mktemp("hub") / "me"
    torch.manual_seed(4)
    ResNetBackbone(ResNetConfig(**PARTS)).save_pretrained(root / "backbone")
    ResNetForImageClassification(ResNetConfig(**PARTS, num_labels=3)).save_pretrained(root / "classifier")
    ResNetBackbone(ResNetConfig(**{**PARTS, "hidden_sizes": [8, 24]})).save_pretrained(root / "wider")
    ConvNextBackbone(ConvNextConfig(hidden_sizes=[4] * 4, depths=[1] * 4)).save_pretrained(root / "convnext")
    return root


def backbone_of(tower):
    return {name: tensor.clone() for name, tensor in tower.embeddings.backbone.state_dict().items()}


def assert_loaded(tower, expected):
    found = backbone_of(tower)
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


@pytest.mark.parametrize("given", ["folder", "file"])
def test_auto_backbone_from_a_folder_or_file(tower, saved, given):
    before = backbone_of(tower)
    load_backbone_weights(tower, str(saved / "backbone" if given == "folder" else saved / "backbone/model.safetensors"))
    expected = load_file(saved / "backbone" / "model.safetensors")
    assert_loaded(tower, expected)
    assert not all(torch.equal(before[name], expected[name]) for name in before)


def test_backbone_inside_a_saved_classifier(tower, saved):
    load_backbone_weights(tower, str(saved / "classifier"))
    whole = load_file(saved / "classifier" / "model.safetensors")
    assert_loaded(tower, {name.removeprefix("resnet."): tensor for name, tensor in whole.items()})


@pytest.mark.slow
def test_timm_names_in_a_file(make_config, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(5)
    network = timm.create_model("test_efficientnet").eval()
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, tmp_path / "t.safetensors")
    tower = CMFAHImageModel(make_config(backbone="test_efficientnet", backbone_config=None)).eval()
    load_backbone_weights(tower, str(tmp_path / "t.safetensors"))
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_intermediates(pixel_values, intermediates_only=True)[-1]
        assert torch.equal(tower.embeddings.extract_regions(pixel_values), expected.flatten(2).mT)
    save_file({"conv_stem.weight": torch.zeros(1)}, tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match="tensors are missing, '_backbone"):
        load_backbone_weights(tower, str(tmp_path / "t.safetensors"))


def test_vgg_with_torchvision_names(make_config, vgg_features, tmp_path):
    save_file(vgg_features, tmp_path / "model.safetensors")
    tower = CMFAHImageModel(make_config(backbone="vgg11"))
    load_backbone_weights(tower, str(tmp_path))
    assert_loaded(tower, vgg_features)
    assert next(tower.embeddings.backbone.parameters()).dtype == torch.float32
    # The regions match those of torchvision's network with these weights.
    vgg = torchvision.models.vgg11(weights=None, init_weights=False).features.eval()
    vgg.load_state_dict({n.removeprefix("features."): t for n, t in vgg_features.items() if n.startswith("features.")})
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = vgg(pixel_values).flatten(2).mT
        assert torch.equal(tower.embeddings.extract_regions(pixel_values), expected)
    assert expected.shape == (2, 4, 512)


def test_path_below_cmfah_data(tower, saved, monkeypatch):
    monkeypatch.setenv("CMFAH_DATA", str(saved))
    load_backbone_weights(tower, "backbone/model.safetensors")
    assert_loaded(tower, load_file(saved / "backbone" / "model.safetensors"))


def cut(path: Path, target: Path) -> Path:
    target.write_bytes(path.read_bytes()[:-100])
    return target


def without_one(path: Path, target: Path) -> Path:
    tensors = load_file(path)
    del tensors["embedder.embedder.convolution.weight"]
    save_file(tensors, target)
    return target


def reshaped(path: Path, target: Path) -> Path:
    tensors = load_file(path)
    tensors["embedder.embedder.convolution.weight"] = torch.zeros(4, 3, 5, 5)
    save_file(tensors, target)
    return target


def not_tensors(path: Path, target: Path) -> Path:
    target.write_text("these are no tensors", encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "not a readable safetensors file"),
        (not_tensors, "not a readable safetensors file"),
        (without_one, "1 of the backbone's 42 tensors are missing, 'embedder.embedder.convolution.weight' first"),
        (reshaped, "has the shape (4, 3, 5, 5), the backbone's is (4, 3, 7, 7)"),
    ],
)
def test_unusable_file_changes_nothing(tower, saved, tmp_path, damage, message):
    before = backbone_of(tower)
    file = damage(saved / "backbone" / "model.safetensors", tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_backbone_weights(tower, str(file))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    assert_loaded(tower, before)


@pytest.mark.parametrize(
    ("folder", "message"),
    [("convnext", "42 of the backbone's 42 tensors are missing"), ("wider", "has the shape (24, 8, 3, 3)")],
)
def test_folder_of_another_backbone_is_refused(tower, saved, folder, message):
    before = backbone_of(tower)
    with pytest.raises(CheckpointError) as caught:
        load_backbone_weights(tower, str(saved / folder))
    assert message in str(caught.value)
    assert_loaded(tower, before)


def test_vgg_weights_for_another_backbone_are_refused(tower, vgg_features, tmp_path):
    save_file(vgg_features, tmp_path / "vgg.safetensors")
    with pytest.raises(CheckpointError, match="42 of the backbone's 42 tensors are missing"):
        load_backbone_weights(tower, str(tmp_path / "vgg.safetensors"))


@pytest.mark.parametrize("source", ["./nowhere", "not a name", "nowhere/at/all.safetensors"])
@pytest.mark.parametrize("backbone", ["vgg11", None])
def test_missing_source_is_named(make_config, source, backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tower = CMFAHImageModel(make_config(**({"backbone": backbone} if backbone else {})))
    with pytest.raises(CheckpointError) as caught:
        load_backbone_weights(tower, source)
    assert str(caught.value).startswith(source)
    assert "\n" not in str(caught.value)


def test_torchvision_weights(make_config, vgg_features, tmp_path, monkeypatch):
    """The file that torchvision would download, placed in its download folder."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    file = Path(torchvision.models.VGG11_Weights.IMAGENET1K_V1.url).name
    (tmp_path / "checkpoints").mkdir()
    torch.save({name: tensor.float() for name, tensor in vgg_features.items()}, tmp_path / "checkpoints" / file)
    tower = CMFAHImageModel(make_config(backbone="vgg11"))
    load_backbone_weights(tower, "torchvision")
    assert_loaded(tower, vgg_features)


def test_torchvision_weights_without_a_network(make_config, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    with pytest.raises(CheckpointError, match="--backbone_weights FOLDER") as caught:
        load_backbone_weights(CMFAHImageModel(make_config(backbone="vgg11")), "torchvision")
    assert str(caught.value).startswith("torchvision: no weights of vgg11 from https://")
    assert "\n" not in str(caught.value)


def test_torchvision_has_no_weights_for_other_backbones(tower):
    with pytest.raises(CheckpointError, match="'torchvision' only has weights for its VGGs"):
        load_backbone_weights(tower, "torchvision")


PROGRAM = """
import hashlib, json, sys
from cmfah_hf.errors import CheckpointError
from cmfah_hf.models import CMFAHConfig, CMFAHImageModel
from cmfah_hf.training.backbone import load_backbone_weights

resnet = {"model_type": "resnet", **json.loads(sys.argv[1])}
out = {}
for source, backbone in (
    ("me/backbone", {"backbone_config": resnet}), ("me/classifier", {"backbone_config": resnet}),
    ("me/wider", {"backbone_config": resnet}), ("me/convnext", {"backbone_config": resnet}),
    ("me/absent", {"backbone_config": resnet}), ("me/absent", {"backbone": "vgg11"}), ("me/vgg", {"backbone": "vgg11"}),
):
    tower = CMFAHImageModel(CMFAHConfig(hash_bits=8, hidden_size=8, image_size=32, **backbone))
    try:
        load_backbone_weights(tower, source)
        state = tower.embeddings.backbone.state_dict()
        found = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in state.items()}
    except CheckpointError as error:
        found = str(error)
    out[f"{source} {next(iter(backbone))}"] = found
print(json.dumps(out))
"""


def digests(tensors):
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


@pytest.mark.slow
def test_from_the_hub(saved, vgg_features, tmp_path, environment):
    spec = spec_from_file_location("model_server", Path(__file__).with_name("model_server.py"))
    server = module_from_spec(spec)
    spec.loader.exec_module(server)
    (saved / "vgg").mkdir()
    save_file(vgg_features, saved / "vgg" / "model.safetensors")
    with server.serving(saved.parent) as (address, asked):
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(PARTS)],
            env={**environment, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["me/backbone backbone_config"] == digests(load_file(saved / "backbone" / "model.safetensors"))
    inside = load_file(saved / "classifier" / "model.safetensors").items()
    inside = {name.removeprefix("resnet."): tensor for name, tensor in inside if name.startswith("resnet.")}
    assert found["me/classifier backbone_config"] == digests(inside)
    features = {name: tensor.float() for name, tensor in vgg_features.items() if name.startswith("features.")}
    assert found["me/vgg backbone"] == digests(features)
    assert "42 of the backbone's 42 tensors are missing" in found["me/convnext backbone_config"]
    assert "has the shape (24, 8, 3, 3), the backbone's is (16, 8, 3, 3)" in found["me/wider backbone_config"]
    assert found["me/absent backbone_config"].startswith("me/absent: no weights of a backbone can be loaded from there")
    assert found["me/absent backbone"].startswith(
        "me/absent: neither a file, a folder with model.safetensors, nor a Hub"
    )
    assert sum(line.startswith("GET /me/vgg/resolve/") for line in asked) == 1
    assert any(line.startswith("GET /me/backbone/resolve/") for line in asked)
