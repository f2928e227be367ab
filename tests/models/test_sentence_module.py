"""Saved models as `SentenceTransformer`s: codes of texts and images, saving, and other processes."""

import base64
import json
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
import torch
from dual_encoders import write_dual_encoder
from PIL import Image

from cmfah_hf.models import (
    CMFAHModel,
    CMFAHProcessor,
    CMFAHTextModel,
    FeatureHashConfig,
    FeatureHashModel,
    SCAHNConfig,
    SCAHNModel,
)
from cmfah_hf.models.image_inputs import open_image
from cmfah_hf.training.dual_encoders import load_dual_encoder

WORDS = [f"word{number}" for number in range(24)] + ["beach", "dog", "sea", "street"]
TEXTS = ["a dog", "beach and sea", "nothing known", "", "street sea dog beach dog"]
OPTIONS = {"trust_remote_code": True, "device": "cpu", "local_files_only": True}

IN_A_PROCESS = """
import json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cmfah_hf":
            raise ImportError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
assert type(model[0].model).__module__.startswith("transformers_modules."), type(model[0].model)
model.save_pretrained(sys.argv[2])
again = SentenceTransformer(sys.argv[2], trust_remote_code=True, device="cpu")
items = json.loads(sys.argv[3])
print(json.dumps([model.encode(items).tolist(), again.encode(items).tolist()]))
"""


@pytest.fixture(scope="module")
def folders(make_model, make_config, tmp_path_factory):
    """Saved models by name: CMFAH, SCAHN, and a head over a dual encoder."""
    root = tmp_path_factory.mktemp("folders")
    cmfah = make_model(CMFAHModel)
    settings = {name: value for name, value in cmfah.config.to_dict().items() if name != "model_type"}
    torch.manual_seed(1)
    words = partial(CMFAHProcessor.from_vocabulary, vocabulary=WORDS, image_mean=[0.5] * 3, image_std=[0.2] * 3)
    scahn = SCAHNModel(SCAHNConfig(**settings)).eval()
    made = {"cmfah": (cmfah, words(cmfah.config)), "scahn": (scahn, words(scahn.config))}
    made["dual"] = load_dual_encoder(str(write_dual_encoder("clip", root / "clip")), 16)
    for name, parts in made.items():
        for part in parts:
            part.save_pretrained(root / name)
    return {name: root / name for name in made}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 30 + i, 3)).astype(np.uint8)) for i in range(4)]


@pytest.fixture(scope="module")
def load():
    from sentence_transformers import SentenceTransformer

    return lambda folder, **options: SentenceTransformer(str(folder), **{**OPTIONS, **options})


@pytest.fixture(scope="module", params=["cmfah", "scahn", "dual"])
def loaded(request, folders, load):
    """A model as this package loads it, its processor, and as a `SentenceTransformer`."""
    folder = folders[request.param]
    kind = SCAHNModel if request.param == "scahn" else CMFAHModel
    return kind.from_pretrained(folder), CMFAHProcessor.from_pretrained(folder), load(folder)


@torch.inference_mode()
def text_codes(model, processor, texts):
    inputs = processor(text=texts, return_tensors="pt")
    return model.get_text_hash(inputs["input_ids"], inputs["attention_mask"]).numpy()


@torch.inference_mode()
def image_codes(model, processor, images):
    return model.get_image_hash(processor(images=images, return_tensors="pt")["pixel_values"]).numpy()


def test_codes_are_those_of_the_towers(loaded, images):
    model, processor, sentences = loaded
    assert sentences.get_embedding_dimension() == model.config.hash_bits == 16
    with pytest.warns(FutureWarning, match="renamed"):
        assert sentences.get_sentence_embedding_dimension() == 16
    assert (sentences.similarity_fn_name, sentences.device.type) == ("dot", "cpu")
    assert sentences.supports("text")
    assert sentences.supports("image")
    assert not sentences.supports("audio")
    of_texts, of_images = text_codes(model, processor, TEXTS), image_codes(model, processor, images)
    for batch_size in (32, 2):
        assert sentences.encode(TEXTS, batch_size=batch_size) == pytest.approx(of_texts, abs=1e-6)
        assert sentences.encode(images, batch_size=batch_size) == pytest.approx(of_images, abs=1e-6)
    assert sentences.encode_query("a dog") == pytest.approx(of_texts[0], abs=1e-6)
    assert sentences.encode_document(images[0], convert_to_tensor=True).numpy() == pytest.approx(of_images[0], abs=1e-6)
    found = sentences.similarity(of_texts, of_images)
    assert found.numpy() == pytest.approx(of_texts @ of_images.T, abs=1e-5)
    assert sentences.encode([]).size == 0


def test_lists_of_both_kinds_keep_their_order(loaded, images):
    model, processor, sentences = loaded
    items = ["a dog", images[0], {"text": "beach and sea"}, {"image": images[1]}, TEXTS[4]]
    of_texts = text_codes(model, processor, ["a dog", "beach and sea", TEXTS[4]])
    of_images = image_codes(model, processor, images[:2])
    expected = np.stack([of_texts[0], of_images[0], of_texts[1], of_images[1], of_texts[2]])
    for batch_size in (32, 3, 1):
        assert sentences.encode(items, batch_size=batch_size) == pytest.approx(expected, abs=1e-6)


def test_a_pair_has_the_mean_of_both_guided_codes(loaded, images):
    model, processor, sentences = loaded
    inputs = processor(images=images[:2], text=TEXTS[:2], return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    expected = ((outputs.image_hash + outputs.text_hash) / 2).numpy()
    pairs = [{"image": image, "text": text} for image, text in zip(images[:2], TEXTS[:2], strict=True)]
    assert sentences.encode(pairs) == pytest.approx(expected, abs=1e-6)
    assert sentences.encode([*pairs, "a dog"])[:2] == pytest.approx(expected, abs=1e-6)


def test_messages_of_one_item(loaded, images):
    _, _, sentences = loaded
    expected = sentences.encode(["a dog", images[0], {"image": images[0], "text": "a dog"}])
    text, image = {"type": "text", "text": "a dog"}, {"type": "image", "image": images[0]}
    messages = [{"role": "user", "content": content} for content in ("a dog", [image], [image, text])]
    assert sentences.encode([[message] for message in messages]) == pytest.approx(expected, abs=1e-6)
    several = [messages[0], {"role": "assistant", "content": "a cat"}]
    for wrong in (several, [{"role": "user", "content": [text, text]}], [{"role": "user", "content": []}]):
        with pytest.raises(ValueError, match="A code is of one message"):
            sentences.encode(wrong)


def test_images_by_path_url_and_data(folders, load, images, tmp_path):
    sentences = load(folders["cmfah"])
    wide = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)  # 16 bits, which are scaled
    turned = images[0].copy()
    turned.getexif()[0x0112] = 6
    given = {"a.png": images[0], "wide.png": wide, "turned.png": turned}
    for name, image in given.items():
        image.save(tmp_path / name, exif=image.getexif())
    paths = [str(tmp_path / name) for name in given]
    expected = sentences.encode([images[0], wide, images[0].transpose(Image.Transpose.ROTATE_270)])
    assert np.array_equal(sentences.encode(paths), expected)
    data = f"data:image/png;base64,{base64.b64encode((tmp_path / 'wide.png').read_bytes()).decode()}"
    assert sentences.encode(data) == pytest.approx(expected[1], abs=1e-6)
    assert sentences.encode(np.asarray(images[0])) == pytest.approx(expected[0], abs=1e-6)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *arguments: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        assert np.array_equal(sentences.encode([f"{place}/{name}" for name in given]), expected)
        with pytest.raises(ValueError, match=r"absent\.png: not an image that can be read .*404"):
            sentences.encode(f"{place}/absent.png")
        server.shutdown()
    buffer = BytesIO()
    images[0].save(buffer, "JPEG")
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    for wrong in (str(tmp_path / "half.jpg"), "data:image/png;base64,?", {"image": str(tmp_path / "absent.bmp")}):
        with pytest.raises(ValueError, match="not an image that can be read"):
            sentences.encode(wrong)
    assert sentences.encode("no-such-file.png").shape == (16,)  # a text


def test_a_path_is_never_an_address(tmp_path):
    with pytest.raises(ValueError, match="not an image that can be read"):
        open_image(tmp_path / "http://127.0.0.1/image.png")


@pytest.mark.parametrize("wrong", [("a", "b"), {"text": ["a"]}, np.zeros((4, 4)), {"text": "a", "audio": "b"}, 3])
def test_items_of_other_kinds_are_refused(folders, load, wrong):
    with pytest.raises((ValueError, TypeError)):
        load(folders["cmfah"]).encode([wrong])


def test_prompts_precede_texts(folders, load):
    sentences = load(folders["cmfah"])
    expected = sentences.encode(["dog sea", "dog beach"])
    assert np.array_equal(sentences.encode(["sea", "beach"], prompt="dog "), expected)
    named = load(folders["cmfah"], prompts={"query": "dog "})
    assert np.array_equal(named.encode_query(["sea", "beach"]), expected)


@pytest.mark.parametrize(("name", "most"), [("cmfah", None), ("dual", 16)])
def test_texts_are_cut_off(folders, load, name, most):
    sentences = load(folders[name])
    assert sentences.max_seq_length == most
    # CLIP reads the place of the largest id, in configurations like this one: it has to be behind the cut.
    first, last = sorted(("sea", "beach"), key=lambda word: int(sentences.preprocess([word])["input_ids"].max()))
    text = " ".join([first] * 12 + [last] * 18)
    whole = sentences.encode(text)
    sentences.max_seq_length = 12
    assert sentences.max_seq_length == 12
    assert sentences.preprocess([text])["input_ids"].shape == (1, 12)
    assert not np.allclose(sentences.encode(text), whole, atol=1e-4)
    for wrong in (0, None, 10**40):
        with pytest.raises(ValueError, match="max_seq_length is"):
            sentences.max_seq_length = wrong


def test_saved_again_it_is_the_same(loaded, load, images, tmp_path):
    _, _, sentences = loaded
    sentences.save_pretrained(str(tmp_path))
    items = [*TEXTS, *images]
    again = load(tmp_path)
    assert again.encode(items) == pytest.approx(sentences.encode(items), abs=1e-6)
    assert again.similarity_fn_name == "dot"
    assert json.loads((tmp_path / "modules.json").read_text())[0]["type"] == "sentence_module.CMFAHSentenceModule"
    assert np.array_equal(
        CMFAHProcessor.from_pretrained(tmp_path)(text=["a dog"])["input_ids"],
        sentences.processor(text=["a dog"])["input_ids"],
    )


def test_precision_and_backend(folders, load):
    half = load(folders["cmfah"], model_kwargs={"dtype": torch.bfloat16})
    assert half.encode("a dog", convert_to_tensor=True).dtype == torch.bfloat16
    assert half.encode(["a dog"]) == pytest.approx(load(folders["cmfah"]).encode(["a dog"]), abs=0.1)
    with pytest.raises(ValueError, match="runs with the backend 'torch', and not with 'onnx'"):
        load(folders["cmfah"], backend="onnx")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(folders["cmfah"], trust_remote_code=False)


def test_only_models_of_texts_and_images_are_saved_so(make_model, pretraining_folder, model_folder, tmp_path):
    for folder in (pretraining_folder, model_folder):
        assert {"modules.json", "sentence_module.py", "image_inputs.py"} <= {path.name for path in folder.iterdir()}
    make_model(CMFAHTextModel).save_pretrained(tmp_path / "tower")
    FeatureHashModel(FeatureHashConfig(image_feature_dim=8, text_feature_dim=4)).save_pretrained(tmp_path / "features")
    for name in ("tower", "features"):
        assert not (tmp_path / name / "modules.json").exists()


@pytest.mark.slow
def test_another_process_encodes(folders, load, images):
    sentences = load(folders["scahn"])
    items = [*TEXTS, *images]
    pool = sentences.start_multi_process_pool(["cpu"])
    try:
        assert sentences.encode(items, pool=pool, chunk_size=2) == pytest.approx(sentences.encode(items), abs=1e-6)
    finally:
        sentences.stop_multi_process_pool(pool)


@pytest.mark.slow
def test_loads_and_saves_without_the_package(folders, load, images, environment, tmp_path):
    images[0].save(tmp_path / "image.png")
    items = ["a dog", str(tmp_path / "image.png"), "beach"]
    command = [sys.executable, "-c", IN_A_PROCESS, str(folders["scahn"]), str(tmp_path / "again"), json.dumps(items)]
    ended = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    expected = load(folders["scahn"]).encode(items)
    for found in json.loads(ended.stdout.splitlines()[-1]):
        assert np.array(found) == pytest.approx(expected, abs=1e-6)
