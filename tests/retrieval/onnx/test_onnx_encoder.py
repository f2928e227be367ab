"""Search by ONNX files: the codes of PyTorch, in processes without PyTorch, and files that do not fit refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cmfah_hf.cli import main
from cmfah_hf.errors import CheckpointError, CMFAHError, HashIndexError, QueryError
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex, ImageOptions
from cmfah_hf.retrieval.onnx.comparison import NEAR_ZERO, compared

# What a search by ONNX files must not import; SciPy comes with the word graph alone.
HEAVY = {"torch", "torchvision", "transformers", "datasets", "pandas", "numba", "networkx", "gensim", "accelerate"}
# Runs a command, then prints the top-level modules of the process to standard error.
COMMAND = """
import sys
from cmfah_hf.cli import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    assert not left.code, left.code
print(*sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def images(trained):
    """The bytes of all image files of the scenes."""
    return [path.read_bytes() for path in sorted(trained.scenes.rglob("*.png"))]


@pytest.fixture(scope="module")
def texts(trained):
    rows = [json.loads(line) for path in trained.scenes.rglob("metadata.jsonl") for line in path.open(encoding="utf-8")]
    return [*(row["text"] for row in rows), "", "zzz", "[PAD] Boat, the SEA"]


@pytest.fixture(scope="module")
def by_torch(exported):
    return CrossMediaRetriever.from_pretrained(exported, device="cpu")


@pytest.fixture(scope="module")
def by_onnx(exported):
    return CrossMediaRetriever.from_pretrained(exported, backend="onnx")


@pytest.fixture(scope="module")
def index(by_torch, trained, tmp_path_factory):
    """An index of the scenes with codes of PyTorch."""
    by_torch.add_source(trained.scenes, split="query", metadata=["text"])
    by_torch.images.save(path := tmp_path_factory.mktemp("indexed") / "query.index")
    return path


def test_codes_of_raw_images_and_texts_are_those_of_pytorch(by_torch, by_onnx, images, texts):
    """Bits may differ where a value is within 1e-4 of 0; the figures of the bundled model are in docs/search.md."""
    for name, values in (("encode_images", images), ("encode_texts", texts)):
        found = compared(getattr(by_torch, name)(values), getattr(by_onnx, name)(values, batch_size=7))
        assert found.items == len(values) > 60
        assert found.clearly == 0
        assert found.largest < NEAR_ZERO
    wanted = by_torch.processor(images=[by_torch_image(image) for image in images], return_tensors="np")
    with by_onnx.prepare([images], lambda image, _: (None, by_torch_image(image))) as prepared:
        assert np.array_equal(next(prepared).pixel_values, wanted["pixel_values"])


def by_torch_image(content):
    from cmfah_hf.data.images import decode_image

    return decode_image(content)


def test_both_backends_search_alike(by_torch, by_onnx, index, images):
    assert (by_onnx.fingerprint, by_onnx.hash_bits) == (by_torch.fingerprint, by_torch.hash_bits)
    by_onnx.images = by_onnx.load_index(index)
    queries = ({"text": "boat"}, {"image": images[3]}, {"text": ["sun", "boat"], "image": images[5]})
    for query in queries:
        wanted, found = by_torch.search(**query, k=16), by_onnx.search(**query, k=16)
        assert found.ids.tolist() == wanted.ids.tolist()
        np.testing.assert_allclose(found.scores, wanted.scores, atol=2e-3)  # queries are rounded to 2^-14
    assert by_onnx.ignored_words("boat qqq") == by_torch.ignored_words("boat qqq") == ["qqq"]
    with pytest.raises(QueryError, match="No word of 'qqq'"):
        by_onnx.search(text="qqq")


def test_an_index_of_both_backends_is_the_same(by_torch, by_onnx, images, tmp_path):
    filled = {}
    for retriever in (by_torch, by_onnx):
        retriever.images = HashIndex(retriever.hash_bits)
        retriever.add_images([*images[:5], b"no image"])
        filled[retriever.encoder.backend] = retriever.images
    assert filled["onnx"].codes.tolist() == filled["torch"].codes.tolist()
    assert filled["onnx"].model == filled["torch"].model == by_torch.fingerprint


def run(environment, *arguments):
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), set(done.stderr.splitlines()[-1].split())


def test_commands_do_without_pytorch_and_transformers(exported, index, trained, environment, tmp_path, capsys):
    options = ["--backend", "onnx", "--json"]
    image = next((trained.scenes / "query").glob("*.png"))
    queries = (["--text", "boat"], ["--image", image, "--not", "sun"])
    for query in queries:
        answers, modules = run(environment, "search", exported, index, *query, *options)
        assert modules & HEAVY == set()
        with pytest.raises(SystemExit):
            main(list(map(str, ["search", exported, index, *query, "--json"])))
        wanted = json.loads(capsys.readouterr().out)
        assert [hit["id"] for hit in answers["results"]] == [hit["id"] for hit in wanted["results"]]
    shutil.copytree(trained.scenes / "query", tmp_path / "photos", ignore=shutil.ignore_patterns("*.jsonl"))
    own = tmp_path / "own.index"
    done, modules = run(environment, "index", exported, tmp_path / "photos", "-o", own, *options)
    assert modules & HEAVY <= {"datasets", "pandas"}  # which look for data sets in a folder
    assert done["added"] == 16
    assert codes_by_name(own) == codes_by_name(index)


def codes_by_name(path):
    loaded = HashIndex.load(path)
    names = [item_id.rpartition("/")[2].removesuffix(".png") for item_id in loaded.ids]
    return dict(zip(names, loaded.codes.tolist(), strict=True))


@pytest.fixture
def copy(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy"


def change(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_onnx_files_of_another_model_than_the_index_are_refused(copy, index):
    change(copy / "onnx" / "cmfah.json", fingerprint="0" * 32)
    other = CrossMediaRetriever.from_pretrained(copy, backend="onnx")
    with pytest.raises(
        HashIndexError, match=r"query\.index holds codes of another model \(fingerprint .*; this model: 00000000"
    ):
        other.load_index(index)


@pytest.mark.parametrize("damage", ["a changed byte", "cut short", "missing", "of the other tower"])
def test_damaged_files_are_refused_in_one_line(copy, damage):
    path = copy / "onnx" / "text_model.onnx"
    content = bytearray(path.read_bytes())
    if damage == "a changed byte":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut short":
        path.write_bytes(content[:-100])
    elif damage == "missing":
        path.unlink()
    else:
        shutil.copy(copy / "onnx" / "vision_model.onnx", path)
    retriever = CrossMediaRetriever.from_pretrained(copy, backend="onnx")
    with pytest.raises(CheckpointError, match=r"text_model\.onnx") as caught:
        retriever.encode_texts(["boat"])
    assert len(str(caught.value).splitlines()) == 1
    assert "cmfah export onnx" in str(caught.value)


def test_a_file_that_is_no_model_is_refused(copy):
    path = copy / "onnx" / "text_model.onnx"
    path.write_bytes(b"not a model")
    from cmfah_hf.atomic import sha256_of

    description = json.loads((copy / "onnx" / "cmfah.json").read_text())
    description["files"]["text_model.onnx"] = {"bytes": 11, "sha256": sha256_of(path)}
    change(copy / "onnx" / "cmfah.json", **description)
    with pytest.raises(CheckpointError, match=r"text_model\.onnx: ONNX Runtime cannot open it"):
        CrossMediaRetriever.from_pretrained(copy, backend="onnx").encode_texts(["boat"])


def test_another_word_graph_is_refused(copy):
    change(copy / "onnx" / "cmfah.json", expander="0" * 64)
    with pytest.raises(CheckpointError, match=r"its word graph .* is not the one that its ONNX files were made with"):
        CrossMediaRetriever.from_pretrained(copy, backend="onnx")


def test_missing_parts_are_named(copy, trained):
    with pytest.raises(CheckpointError, match=r"has no onnx/cmfah\.json; make the ONNX files with `cmfah export onnx"):
        CrossMediaRetriever.from_pretrained(trained.folder, backend="onnx")
    for name in ("expander.json", "expander.safetensors", "tokenizer.json"):
        (copy / name).unlink()
        with pytest.raises(CheckpointError, match=name.partition(".")[0]):
            CrossMediaRetriever.from_pretrained(copy, backend="onnx")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "int8"}, CheckpointError, "no files of precision 'int8', only fp32"),
        ({"backend": "jax"}, QueryError, "backend is 'jax'; choose torch or onnx"),
        ({"backend": "torch", "precision": "fp16"}, QueryError, "precision='fp16' is for backend='onnx'"),
        ({"device": "cuda"}, QueryError, "ONNX Runtime runs on the CPU"),
        ({"dtype": "float16"}, QueryError, "dtype is for backend='torch'"),
        ({"image_options": ImageOptions(half=True)}, QueryError, "choose precision='fp16'"),
    ],
)
def test_options_that_do_not_fit_are_refused(exported, options, error, message):
    with pytest.raises(error, match=message):
        CrossMediaRetriever.from_pretrained(exported, **{"backend": "onnx", **options})


def test_without_onnx_runtime_the_extra_is_named(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CMFAHError, match=r"pip install 'cmfah-hf\[onnx\]'"):
        CrossMediaRetriever.from_pretrained(exported, backend="onnx")


def test_what_needs_pytorch_says_so(by_onnx, images):
    with pytest.raises(QueryError, match="needs the model in PyTorch"):
        by_onnx.encode_pairs(images[:1], ["boat"])
    with pytest.raises(QueryError, match="needs the model in PyTorch"):
        _ = by_onnx.model
