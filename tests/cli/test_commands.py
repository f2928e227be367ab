"""The commands on valid and on unusual input: printed, written and skipped parts."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import yaml
from PIL import Image

from cmfah_hf.data import load_image_text
from cmfah_hf.models import CMFAHModel
from cmfah_hf.retrieval import EXPORTERS, CrossMediaRetriever, HashIndex, Term
from cmfah_hf.training import CMFAHTrainer
from cmfah_hf.training.evaluate import evaluate_folder


@pytest.fixture(scope="module")
def index_file(trained, tmp_path_factory):
    """The images of the query scenes, indexed through the library."""
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    retriever.add_source(trained.scenes, split="query")
    path = tmp_path_factory.mktemp("index") / "query.index"
    retriever.images.save(path)
    return path


@pytest.fixture(scope="module")
def odd_images(trained, tmp_path_factory):
    """Images without metadata in all common kinds, one truncated and one not an image."""
    folder = tmp_path_factory.mktemp("odd") / "images"
    (folder / "deep" / "er").mkdir(parents=True)
    image = Image.open(sorted((trained.scenes / "train").glob("*.png"))[0]).convert("RGB")
    image.save(folder / "plain.png")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("CMYK").save(folder / "deep" / "cmyk.jpeg")
    image.convert("P").save(folder / "palette.gif")
    image.convert("RGBA").save(folder / "transparent.webp", lossless=True)
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
    image.save(folder / "deep" / "er" / "moving.gif", save_all=True, append_images=[image.rotate(90)])
    image.save(folder / "UPPER.JPG")
    (folder / "cut.jpg").write_bytes((folder / "UPPER.JPG").read_bytes()[:700])
    (folder / "none.png").write_text("no image")
    (folder / "notes.txt").write_text("neither")
    return folder


def test_help_of_the_program_and_of_each_command(cmfah):
    outcome = cmfah("--help")
    assert outcome.code == 0
    for command in ("demo", "train", "evaluate", "index", "search", "export", "data"):
        assert re.search(rf"\b{command}\b", outcome.out)
    for command, options in {
        "demo": ["--train-scenes", "--json", "--output"],
        "train": ["--json", "config"],
        "evaluate": ["--query-split", "--protocol", "--plots", "--json"],
        "index": ["--output", "--split", "--texts", "--keep", "--add", "--batch-size", "--json"],
        "search": [
            "--text",
            "--image",
            "--image-weight",
            "-k",
            "--metric",
            "--where",
            "--approximate",
            "--json",
            "--html",
            "--open",
            "--paths-only",
            "--null",
            "--thumbnails",
        ],
        "data prepare": [
            "--root",
            "--out",
            "--variant",
            "--classes",
            "--split",
            "--check-only",
            "--no-verify",
            "--json",
        ],
        "export": ["--to", "--output", "--name", "--overwrite", "--json"],
        "export onnx": ["--output", "--precision", "--images", "--opset", "--overwrite", "--json"],
    }.items():
        outcome = cmfah(*command.split(), "--help")
        assert (outcome.code, outcome.err) == (0, "")
        for option in options:
            assert option in outcome.out.lower(), (command, option)


def test_the_help_of_training_lists_the_settings_of_a_method(cmfah):
    for arguments, present, absent in (
        ([], "--similarity_weight", "--code_map_weight"),
        (["--method", "agah"], "--code_map_weight", "--similarity_weight"),
        (["--method=agah"], "--code_map_weight", "--similarity_weight"),
    ):
        outcome = cmfah("train", *arguments, "-h")
        assert (outcome.code, outcome.err) == (0, "")
        assert re.search(rf"{present} .*Weight|{present} .*gamma", outcome.out)
        assert absent not in outcome.out
        assert "--hash_bits" in outcome.out
        assert "--per_device_train_batch_size" in outcome.out
    outcome = cmfah("train", "--method", "nothing", "--help")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)


def test_the_version_is_that_of_the_package(cmfah):
    assert cmfah("--version").out == f"cmfah-hf {version('cmfah-hf')}\n"


def test_bundled_configurations_are_listed_and_shown(cmfah, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(r"^methods/scm +SCM \(", cmfah("configs").out, re.MULTILINE)
    listed = {file["name"]: file for file in json.loads(cmfah("configs", "--json").out)}
    assert listed["cmfah-scenes"]["about"].startswith("The demo")
    assert cmfah("configs", "scenes", "--path").out == f"{listed['cmfah-scenes']['path']}\n"
    shown = json.loads(cmfah("configs", "scenes", "--json").out)
    assert shown["model"]["hash_bits"] == 64  # of the file that it extends
    assert yaml.safe_load(cmfah("configs", "scenes").out) == shown
    assert yaml.safe_load(cmfah("configs", "experiments/wikipedia").out)["methods"]
    for arguments in (["gone"], ["--path"]):
        outcome = cmfah("configs", *arguments)
        assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)


def test_an_interrupted_training_says_how_to_go_on(cmfah, trained, tmp_path, monkeypatch):
    steps = iter([False] * 8 + [True] * 100)

    def stopped(*args, **kwargs):
        if next(steps):
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    step = CMFAHTrainer.training_step
    monkeypatch.setattr(CMFAHTrainer, "training_step", stopped)
    arguments = ["--output_dir", tmp_path / "out", "--num_train_epochs", "90", "--hash_bits", "8"]
    outcome = cmfah("train", trained.config, *arguments, "--save_strategy", "steps", "--save_steps", "2",
                    "--eval_strategy", "steps", "--eval_steps", "2")  # fmt: skip
    assert outcome.code == 130
    assert "--resume_from_checkpoint last" in outcome.err


def test_train_writes_a_model_and_prints_its_metrics(cmfah, trained, tmp_path):
    arguments = ["--output_dir", tmp_path / "out", "--num_train_epochs", "1", "--hash_bits", "8", "--seed=5"]
    outcome = cmfah("train", trained.config, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    written = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert outcome.document == written
    assert (written["hash_bits"], written["seed"]) == (8, 5)
    assert CMFAHModel.from_pretrained(tmp_path / "out").config.hash_bits == 8

    outcome = cmfah("train", trained.config, *arguments[:-1], "--seed=6", "--query_split", "none")
    assert outcome.code == 0, outcome.err
    assert f"Trained:{tmp_path / 'out'}" in "".join(outcome.out.split())
    assert re.search(r"hash_bits\W+8\b", outcome.out)
    assert "Test queries" not in outcome.out


def test_train_without_a_file_uses_the_command_line(cmfah, tmp_path):
    """The first argument is not mistaken for a file name."""
    outcome = cmfah("train", "--dataset", tmp_path / "absent" / "folder", "--output_dir", tmp_path / "out")
    assert outcome.code == 2
    assert f"{tmp_path / 'absent' / 'folder'}: there is no such folder" in outcome.err


def test_evaluate_matches_the_library(cmfah, trained, tmp_path):
    expected = evaluate_folder(str(trained.folder), str(trained.scenes))
    outcome = cmfah("evaluate", trained.folder, trained.scenes, "--json", "--plots", tmp_path / "plots")
    assert outcome.code == 0, outcome.err
    assert outcome.document == {"protocol": "single", **expected}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"precision_at_k.png", "precision_recall.png"}
    paired = cmfah("evaluate", trained.folder, trained.scenes, "--json", "--protocol", "paired").document
    assert paired["protocol"] == "paired"
    assert paired["aqd/i2t/map"] != expected["aqd/i2t/map"]

    table = cmfah("evaluate", trained.folder, trained.scenes).out
    assert f"{trained.scenes}, protocol 'single'".replace(" ", "") in "".join(table.split())
    row = next(line for line in table.splitlines() if re.search(r"hamming\W+map\b", line))
    numbers = [float(number) for number in re.findall(r"\d\.\d{3}", row)]
    assert numbers == [round(expected[f"hamming/{way}/map"], 3) for way in ("i2t", "t2i")]
    assert f"{expected['random/map']:.3f}" in table
    row = next(line for line in table.splitlines() if re.search(r"aqd\W+median_rank\b", line))
    numbers = [float(number) for number in re.findall(r"\d\.\d{3}", row)]
    assert numbers == [round(expected[f"pairs/aqd/{way}/median_rank"], 3) for way in ("i2t", "t2i")]
    assert re.search(r"random\W+median_rank\W+8\.500\W+8\.500", table)


def test_index_of_a_data_set_with_splits(cmfah, trained, tmp_path):
    outcome = cmfah("index", trained.folder, trained.scenes, "--output", tmp_path / "all.index", "--json")
    assert outcome.code == 0, outcome.err
    index = HashIndex.load(tmp_path / "all.index")
    assert outcome.document == {
        "index": str(tmp_path / "all.index"), "items": 64, "bits": 16, "model": index.model, "added": 64, "changed": 0,
        "renamed": 0, "removed": 0, "unchanged": 0, "left_out": 0, "kept": 0, "unreadable": [],
        "skipped": {}, "missing": [],
    }  # fmt: skip
    pairs = load_image_text(trained.scenes)
    assert index.ids.tolist() == [f"{name}/{item}" for name in ("train", "query") for item in pairs[name]["id"]]
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    values = retriever.encode_images(pairs["query"]["image"])
    np.testing.assert_array_equal(index.codes[48:], np.packbits(values >= 0, axis=1, bitorder="little"))

    outcome = cmfah(
        "index", trained.folder, trained.scenes, "-o", tmp_path / "texts.index", "--texts", "--split", "query"
    )
    counted = "16 new, 0 changed, 0 renamed, 0 removed, 0 as before, 0 unreadable"
    assert outcome.out == f"{tmp_path / 'texts.index'}: 16 items, 32 bytes of codes: {counted}.\n"
    index = HashIndex.load(tmp_path / "texts.index")
    assert index.ids.tolist() == pairs["query"]["id"][:]
    values = retriever.encode_texts(pairs["query"]["text"])
    np.testing.assert_array_equal(index.codes, np.packbits(values >= 0, axis=1, bitorder="little"))


def test_index_of_images_without_metadata_and_with_damaged_files(cmfah, trained, odd_images, tmp_path, caplog):
    outcome = cmfah(
        "index", trained.folder, odd_images, "-o", tmp_path / "new" / "odd.index", "--json", "--batch-size", 3
    )
    assert outcome.code == 0, outcome.err
    index = HashIndex.load(tmp_path / "new" / "odd.index")
    assert index.ids.tolist() == [
        "UPPER.JPG", "deep/cmyk.jpeg", "deep/er/moving.gif", "grey.jpg", "palette.gif", "plain.png", "sixteen.png",
        "transparent.webp",
    ]  # fmt: skip
    left_out = outcome.document["unreadable"]
    assert [reason.partition(": ")[0] for reason in left_out] == [str(odd_images / n) for n in ("cut.jpg", "none.png")]
    assert "cut short" in left_out[0]
    assert "not an image" in left_out[1]
    assert all(f"Left out: {reason}" in caplog.text for reason in left_out)
    # An opaque image equals its copy with an alpha band, and an animation is represented by its first frame.
    codes = dict(zip(index.ids.tolist(), index.codes.tolist(), strict=True))
    assert codes["plain.png"] == codes["transparent.webp"]


def test_index_of_several_sources_with_columns_and_additions(cmfah, trained, odd_images, tmp_path):
    """One image and a folder, each id with its source; then a folder with metadata is added to the file."""
    image, bare = odd_images / "plain.png", tmp_path / "bare"
    bare.mkdir()
    (bare / "own.png").write_bytes(image.read_bytes())
    path = tmp_path / "some.index"
    outcome = cmfah("index", trained.folder, image, bare, "-o", path, "--json")
    assert outcome.document["items"] == 2
    assert HashIndex.load(path).ids.tolist() == ["bare/own.png", "plain.png"]
    options = ("--split", "query", "--keep", "text", "--keep", "labels")
    cmfah("index", trained.folder, trained.scenes, *options, "-o", path, "--add")
    pairs = load_image_text(trained.scenes, split="query")
    index = HashIndex.load(path)
    assert index.ids.tolist()[2:] == [f"{trained.scenes.name}/{item_id}" for item_id in pairs["id"]]
    assert index.metadata["text"].to_pylist() == [None, None, *pairs["text"]]

    text = pairs[3]["text"]
    found = cmfah("search", trained.folder, path, "--text", "boat", "--where", f"text={text}", "--json").document
    expected = {f"{trained.scenes.name}/{row['id']}" for row in pairs if row["text"] == text}
    assert {hit["id"] for hit in found["results"]} == expected
    assert all(hit["metadata"]["text"] == text for hit in found["results"])
    assert text.split()[0] in cmfah("search", trained.folder, path, "--text", "boat", "--where", f"text={text}").out


def test_search_by_words_and_an_image(cmfah, trained, index_file, odd_images):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    retriever.images = HashIndex.load(index_file)
    image = odd_images / "plain.png"
    for weight in (0.2, 0.9):
        expected = retriever.search(text="boat", image=image, k=4, image_weight=weight)
        arguments = ("--text", "boat", "--image", image, "--image-weight", weight, "-k", 4, "--json")
        found = cmfah("search", trained.folder, index_file, *arguments).document
        assert found["query"] == f"boat + {image}"
        assert [hit["id"] for hit in found["results"]] == expected.ids[0].tolist()
        np.testing.assert_allclose([hit["score"] for hit in found["results"]], expected.scores[0])
    arguments = ("--text", "boat", "-t", "sun:2", "--not", "tree", "--not", "xyzzy", "--not-image", f"{image}:0.25")
    document = cmfah("search", trained.folder, index_file, *arguments, "-k", 4, "--json").document
    assert document["query"] == f"boat + sun:2 - tree:0.5 - xyzzy:0.5 - {image}:0.25"
    assert document["ignored_words"] == ["xyzzy"]
    terms = [Term("boat"), Term("sun", weight=2), Term("tree", weight=-0.5), Term(image=image, weight=-0.25)]
    expected = retriever.search(terms=terms, k=4)
    assert [hit["id"] for hit in document["results"]] == expected.ids[0].tolist()
    near = cmfah("search", trained.folder, index_file, "--text", "boat", "-k", 4, "--approximate", "--json").document
    assert [hit["id"] for hit in near["results"]] == retriever.search(text="boat", k=4, exact=False).ids[0].tolist()


def test_search_by_text_by_image_and_by_bits(cmfah, trained, index_file):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    retriever.images = HashIndex.load(index_file)
    for arguments, query in (
        (["--text", "boat sun"], {"text": "boat sun"}),
        (["-t", "boat sun", "--metric", "hamming"], {"text": "boat sun", "metric": "hamming"}),
        (
            ["--image", trained.scenes / "train" / "scene-000003.png"],
            {"image": trained.scenes / "train" / "scene-000003.png"},
        ),
    ):
        expected = retriever.search(k=4, **query)
        outcome = cmfah("search", trained.folder, index_file, *arguments, "-k", 4, "--json")
        assert (outcome.code, outcome.err) == (0, "")
        document = outcome.document
        assert document["query"] == str(next(iter(query.values())))
        assert document["metric"] == query.get("metric", "aqd")
        assert [hit["id"] for hit in document["results"]] == expected.ids[0].tolist()
        assert [hit["score"] for hit in document["results"]] == expected.scores[0].tolist()
        assert [hit["rank"] for hit in document["results"]] == [1, 2, 3, 4]

        table = cmfah("search", trained.folder, index_file, *arguments, "-k", 4).out
        rows = [re.findall(r"[\w.-]+", line) for line in table.splitlines() if "scene-9" in line]
        assert [row[1] for row in rows] == expected.ids[0].tolist()
        assert [row[0] for row in rows] == ["1", "2", "3", "4"]


def test_k_above_the_number_of_items_returns_all_with_a_note(cmfah, trained, index_file, caplog):
    outcome = cmfah("search", trained.folder, index_file, "--text", "boat", "-k", 99, "--json")
    assert outcome.code == 0
    assert len(outcome.document["results"]) == 16
    assert "k = 99 exceeds the 16 items of the index; all of them are returned." in caplog.text


def test_search_by_every_kind_of_image(cmfah, trained, index_file, odd_images):
    found = {}
    for name in ("plain.png", "transparent.webp", "grey.jpg", "palette.gif", "sixteen.png", "deep/cmyk.jpeg"):
        outcome = cmfah("search", trained.folder, index_file, "--image", odd_images / name, "-k", 3, "--json")
        assert outcome.code == 0, outcome.err
        found[name] = outcome.document["results"]
    assert found["plain.png"] == found["transparent.webp"]


def test_export_matches_the_library(cmfah, index_file, tmp_path):
    index = HashIndex.load(index_file)
    for to, exporter in EXPORTERS.items():
        written = exporter(index, tmp_path / "library" / to, name="images")
        arguments = ["export", index_file, "--to", to, "--output", tmp_path / "command" / to, "--name", "images"]
        outcome = cmfah(*arguments, "--json")
        assert (outcome.code, outcome.err) == (0, "")
        files = [tmp_path / "command" / to / file.name for file in written]
        known = {"to": to, "items": 16, "bits": 16, "model": index.model}
        assert outcome.document == {**known, "files": [str(file) for file in files]}
        assert [file.read_bytes() for file in files] == [file.read_bytes() for file in written]
        again = cmfah(*arguments)
        assert (again.code, again.out) == (2, "")
        assert f"{tmp_path / 'command' / to} holds an export already" in again.err
        again = cmfah(*arguments, "--overwrite")
        assert again.out == (
            f"{tmp_path / 'command' / to}: 16 items of 16 bits for {to}: {', '.join(file.name for file in files)}.\n"
        )


@pytest.mark.slow
def test_standard_input_and_clean_output_in_a_new_process(trained, index_file, odd_images, environment, tmp_path):
    """`cat image | cmfah search ... --image - --json | jq`: standard output contains only the document."""
    program = "import sys; from cmfah_hf.cli import main; main(sys.argv[1:])"
    arguments = ["search", trained.folder, index_file, "--image", "-", "-k", "3", "--json"]
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        input=(odd_images / "plain.png").read_bytes(),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    document = json.loads(process.stdout)
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    retriever.images = HashIndex.load(index_file)
    expected = retriever.search(image=odd_images / "plain.png", k=3)
    assert [hit["id"] for hit in document["results"]] == expected.ids[0].tolist()
    assert document["query"] == "-"
    assert process.stderr == b""


def test_incomplete_data_trains_and_skipped_parts_are_reported(cmfah, trained, tmp_path, caplog):
    """Empty texts, rows without labels, a label unknown to training, and a truncated image."""
    folder = tmp_path / "rough"
    shutil.copytree(trained.scenes, folder)
    for split in ("train", "query"):
        file = folder / split / "metadata.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows[0]["text"], rows[1]["labels"] = "", []
        if split == "query":
            rows[2]["labels"] = ["zebra"]
        else:
            image = folder / split / rows[3]["file_name"]
            image.write_bytes(image.read_bytes()[:500])
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    outcome = cmfah(
        "train",
        trained.config,
        "--dataset",
        folder,
        "--output_dir",
        tmp_path / "out",
        "--num_train_epochs",
        1,
        "--json",
    )
    assert outcome.code == 0, outcome.err
    figures = outcome.document
    assert figures["train_pairs"] + figures["validation_pairs"] == 47
    assert figures["query"]["queries"] == 16
    assert figures["query"]["queries_without_relevant"] >= 2
    assert figures["query"]["queries_without_labels"] == 1
    assert "Left out 1 of 48 images" in caplog.text
    # A text without words is encoded like any other, without a prompt.
    outcome = cmfah("index", tmp_path / "out", folder, "--texts", "-o", tmp_path / "texts.index", "--json")
    assert outcome.document["items"] == 64


@pytest.mark.slow
def test_the_demo_runs_end_to_end(cmfah, tmp_path):
    sizes = ["--train-scenes", 60, "--query-scenes", 20, "--epochs", 1]
    outcome = cmfah("demo", "--output", tmp_path / "demo", *sizes, "--json", "--text", "tree house")
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert document["metrics"] == json.loads((tmp_path / "demo/model/metrics.json").read_text(encoding="utf-8"))
    assert [len(ids) for ids in document["found"].values()] == [6, 6]
    assert 0 <= document["pointing"]["accuracy"] <= 1
    for name in ("attention", "search_by_text", "search_by_image"):
        with Image.open(tmp_path / "demo" / f"{name}.png") as plot:
            assert min(plot.size) > 100
    # The commands that it suggests work on its output.
    again = cmfah(
        "search",
        tmp_path / "demo" / "model",
        tmp_path / "demo" / "images.index",
        "--text",
        "tree house",
        "-k",
        6,
        "--json",
    )
    assert [hit["id"] for hit in again.document["results"]] == document["found"]["text"]
    assert "Drawing 60 + 20 scenes" in outcome.err
    # A second run starts over and gives the same result.
    twice = cmfah("demo", "--output", tmp_path / "demo", *sizes, "--json", "--text", "tree house")
    assert twice.code == 0, twice.err
    assert twice.document["metrics"]["query"] == document["metrics"]["query"]
    assert twice.document["found"] == document["found"]


def test_the_demo_does_not_replace_folders_of_others(cmfah, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine", encoding="utf-8")
    outcome = cmfah("demo", "--output", tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert "model is not from a demo and would be lost; remove it, or name another --output." in outcome.err
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "mine.txt"]
