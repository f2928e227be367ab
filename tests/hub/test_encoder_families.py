"""Dual encoders of every family, end to end: compressed, trained, pushed, and loaded without the package."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from dual_encoders import FAMILIES, write_dual_encoder
from hub_server import HubServer
from hub_server.client import use_hub
from PIL import Image

from cmfah_hf.hub import push_model
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training import parse_run, train
from cmfah_hf.training.compression import compress

ALL = (*FAMILIES, "vision-text-dual-encoder")
TEXTS = ["a dog", "two birds in the sky", "a boat on the sea"]
WITHOUT_THE_PACKAGE = """
import json, sys, traceback
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

repositories, images, texts = json.loads(sys.argv[1])
codes = {}
for name in repositories:
    try:
        model = AutoModel.from_pretrained(name, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules.")
        with torch.inference_mode():
            inputs = processor(images=[Image.open(path) for path in images], text=texts, return_tensors="pt")
            found = model.get_image_hash(inputs["pixel_values"]), model.get_text_hash(
                inputs["input_ids"], inputs["attention_mask"]
            )
        codes[name] = [each.tolist() for each in found]
    except Exception:
        codes[name] = traceback.format_exc()
print(json.dumps(codes))
"""


@dataclass
class Pushed:
    """A Hub with the models of the families so far, and their codes of some images and texts."""

    hub: HubServer
    folder: Path
    images: list[str]
    codes: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def push(self, folder: Path, name: str) -> None:
        retriever = CrossMediaRetriever.from_pretrained(folder)
        self.codes[name] = [retriever.encode_images(self.images), retriever.encode_texts(TEXTS)]
        push_model(folder, name, token="hf_writer", attention_image=False, progress=False)


@pytest.fixture(scope="module")
def pushed(scenes_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    images = sorted(str(path) for path in (scenes_folder / "train").glob("*.png"))[:3]
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        use_hub(hub, folder, patch)
        yield Pushed(hub, folder, images)


@pytest.fixture(scope="module")
def elsewhere(pushed):
    """The codes by all pushed models, or the error of each, in one new process."""
    environment = pushed.hub.environment(pushed.folder / "home", "hf_writer") | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    given = json.dumps([list(pushed.codes), pushed.images, TEXTS])
    ended = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE, given],
        env=environment, cwd=pushed.folder, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_encoder_is_compressed_trained_and_pushed(family, pushed, scenes_folder, tmp_path):
    encoder = write_dual_encoder(family, tmp_path / "encoder")
    compress(str(encoder), scenes_folder, tmp_path / "compressed", bits=16, split="train", progress=False)
    retriever = CrossMediaRetriever.from_pretrained(tmp_path / "compressed", index=True)
    together, alone = retriever.encode_texts(TEXTS), [retriever.encode_texts([text])[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert len({tuple(row) for row in np.round(together, 6)}) == len(TEXTS)
    assert len(np.unique(retriever.images.codes, axis=0)) > 1
    inputs = retriever.processor(images=[Image.open(pushed.images[0])], text=[TEXTS[1]], return_tensors="pt")
    both = retriever.model(**inputs, output_attentions=True)
    rows, columns = retriever.model.image_model.embeddings.region_grid()
    assert both.attentions[0].shape == (1, 1, rows * columns, inputs["input_ids"].shape[1])
    settings = {
        "dataset": scenes_folder, "dual_encoder": encoder, "hash_bits": 16, "hidden_size": 24, "num_concepts": 4,
        "use_lstm": "false", "num_train_epochs": 1, "per_device_train_batch_size": 20, "report_to": "none",
        "refit": "false", "use_cpu": "true", "output_dir": tmp_path / "trained",
    }  # fmt: skip
    metrics = train(parse_run(None, [part for name, value in settings.items() for part in (f"--{name}", str(value))]))
    assert metrics["query"]["hamming/t2i/map"] > 0
    for kind in ("compressed", "trained"):
        pushed.push(tmp_path / kind, f"org/{family}-{kind}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compressed", "trained"])
@pytest.mark.parametrize("family", ALL)
def test_pushed_model_has_the_same_codes_without_the_package(family, kind, pushed, elsewhere):
    name = f"org/{family}-{kind}"
    if name not in pushed.codes:
        pytest.fail(f"{name} was not pushed; run the whole file")
    assert not isinstance(elsewhere[name], str), elsewhere[name]
    for found, expected in zip(elsewhere[name], pushed.codes[name], strict=True):
        np.testing.assert_allclose(np.array(found, np.float32), expected, atol=1e-4)
