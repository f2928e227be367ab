"""User errors: exit code 2, nothing on standard output, and one line with the error and its remedy."""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import BertConfig, CLIPConfig, LlavaConfig, ViTConfig

from cmfah_hf.cli import main
from cmfah_hf.errors import CMFAHError
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex


@dataclass
class Files:
    """Valid and broken files for commands, by name."""

    paths: dict[str, str] = field(default_factory=dict)

    def fill(self, text: str) -> str:
        for name, path in self.paths.items():
            text = text.replace("{" + name + "}", path)
        return text


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory, write_config):
    root = tmp_path_factory.mktemp("bench")
    paths = {"model": trained.folder, "scenes": trained.scenes, "config": trained.config, "root": root}

    images = sorted((trained.scenes / "train").glob("*.png"))
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    retriever.add_images(images[:5])
    retriever.images.save(root / "sound.index")
    other = HashIndex(32)
    other.add(np.ones((2, 32)))
    other.save(root / "other.index")
    content = bytearray((root / "sound.index").read_bytes())
    content[-3] ^= 1
    (root / "flipped.index").write_bytes(content)
    (root / "cut.index").write_bytes(content[:-20])
    (root / "cut.png").write_bytes(images[0].read_bytes()[:400])
    (root / "notes.png").write_text("these are words")
    (root / "empty.png").write_bytes(b"")
    (root / "nothing").mkdir()
    (root / "bare").mkdir()
    shutil.copy(images[0], root / "bare" / "one.png")

    def folder(name, rows):
        (root / name).mkdir()
        for number in range(2):
            Image.new("RGB", (20, 20), (90 * number, 10, 10)).save(root / name / f"im{number}.png")
        (root / name / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    sound = [{"file_name": f"im{i}.png", "text": "boat", "labels": ["boat"], "id": str(i)} for i in range(2)]
    folder("absent-image", [sound[0], {**sound[1], "file_name": "im7.png"}])
    folder("one-id", [sound[0], {**sound[1], "id": "0"}])
    folder("no-labels", [{name: row[name] for name in ("file_name", "text")} for row in sound])
    folder("no-text", [{"file_name": row["file_name"], "labels": ["boat"]} for row in sound])
    folder("odd-json", [])
    (root / "odd-json" / "metadata.jsonl").write_text('{"file_name": "im0.png", "text": "boat"}\n{"file_name": \n')
    folder("unreadable", sound)
    for number in range(2):
        (root / "unreadable" / f"im{number}.png").write_bytes(b"broken")

    for config in (BertConfig(), CLIPConfig(), LlavaConfig(), ViTConfig()):
        config.save_pretrained(root / config.model_type)
    for name, file in (("half-model", "model.safetensors"), ("no-words", "tokenizer.json")):
        shutil.copytree(trained.folder, root / name, ignore=shutil.ignore_patterns("checkpoint-*", "plots"))
        if name == "half-model":
            (root / name / file).write_bytes((root / name / file).read_bytes()[:2000])
        else:
            (root / name / file).unlink()
    (root / "bad.yaml").write_text("model: {hash_bits: [1,")
    write_config(root / "unknown.yaml", model={"hash_bit": 16})
    paths |= {path.name: path for path in root.iterdir()}
    return Files({name: str(path) for name, path in paths.items()})


# A command, and a pattern for its one line.
CASES = {
    "search: no such index": (
        "search {model} {root}/absent.index --text boat",
        ["{root}/absent.index is not a file", "give the file that an index was saved to"],
    ),
    "search: no such model": (
        "search {root}/absent {sound.index} --text boat",
        ["{root}/absent: "],
    ),
    "search: no such image": (
        "search {model} {sound.index} --image {root}/absent.jpg",
        ["{root}/absent.jpg: there is no such file; check the path."],
    ),
    "search: a corrupt image": (
        "search {model} {sound.index} --image {cut.png}",
        ["{cut.png}: damaged or cut short", "replace or remove it"],
    ),
    "search: no image at all": (
        "search {model} {sound.index} --image {notes.png}",
        ["{notes.png}: not an image"],
    ),
    "search: an empty file": (
        "search {model} {sound.index} --image {empty.png}",
        ["{empty.png}: the file is empty"],
    ),
    "search: a folder as image": (
        "search {model} {sound.index} --image {bare}",
        ["{bare}: this is a folder"],
    ),
    "search: unknown words": (
        "search {model} {sound.index} --text xyzzy",
        ["No word of 'xyzzy' is known to the model", "use other words"],
    ),
    "search: neither": (
        "search {model} {sound.index}",
        ["Give a text or an image to search with, or both."],
    ),
    "search: a weight above 1": (
        "search {model} {sound.index} --text boat --image {bare}/one.png --image-weight 2",
        ["image_weight is 2; give a share"],
    ),
    "search: terms that cancel out": (
        "search {model} {sound.index} --text boat --not boat:1",
        ["The terms 'boat - boat' cancel out"],
    ),
    "search: an infinite weight": (
        "search {model} {sound.index} --text boat:inf",
        ["The weight of 'boat' is inf; give a number from -1000 to 1000."],
    ),
    "search: a condition without a value": (
        "search {model} {sound.index} --text boat --where year",
        ["A condition is 'column=value'", "not 'year'."],
    ),
    "search: a condition on no column": (
        "search {model} {sound.index} --text boat --where year=3",
        ["no metadata column 'year'; it has none."],
    ),
    "index: a column that is not there": (
        "index {model} {scenes} --keep year",
        ["no column 'year'; it has id, image, text, labels"],
    ),
    "index: columns of mere images": (
        "index {model} {bare}/one.png --keep year",
        ["images without a data set have no column 'year' to keep."],
    ),
    "index: adding to nothing": (
        "index {model} {bare} --add --output {bare}/absent.index",
        ["absent.index is not a file"],
    ),
    "search: k of 0": (
        "search {model} {sound.index} --text boat -k 0",
        ["k must be a whole number of at least 1, not 0"],
    ),
    "search: an unknown ranking": (
        "search {model} {sound.index} --text boat --metric cosine",
        ["'cosine'", "hamming, aqd"],
    ),
    "search: other bits": (
        "search {model} {other.index} --text boat",
        ["{other.index} holds codes of 32 bits, where 16 were expected"],
    ),
    "search: a flipped bit": (
        "search {model} {flipped.index} --text boat",
        ["{flipped.index} is damaged", "save the index anew"],
    ),
    "search: a cut index": (
        "search {model} {cut.index} --text boat",
        ["{cut.index} is damaged", "save the index anew"],
    ),
    "search: another file": (
        "search {model} {model}/model.safetensors --text boat",
        ["{model}/model.safetensors is a safetensors file but not a hash index"],
    ),
    "search: another architecture": (
        "search {bert} {sound.index} --text boat",
        ["{bert}: ", "a checkpoint of 'bert', not of 'cmfah'"],
    ),
    "search: half a model": (
        "search {half-model} {sound.index} --text boat",
        ["{half-model}: no CMFAHModel can be loaded"],
    ),
    "search: no words": (
        "search {no-words} {sound.index} --text boat",
        ["{no-words}: no CMFAHProcessor can be loaded"],
    ),
    "index: no such folder": (
        "index {model} {root}/absent/folder",
        ["{root}/absent/folder: there is no such folder"],
    ),
    "index: an empty folder": (
        "index {model} {nothing}",
        ["{nothing}: no image below this folder"],
    ),
    "index: into a folder": (
        "index {model} {bare} --output {nothing}",
        ["{nothing} is a folder, which is left alone; name a file"],
    ),
    "index: no such split": (
        "index {model} {scenes} --split test",
        ["{scenes}: there is no split 'test'"],
    ),
    "index: not one readable image": (
        "index {model} {unreadable} -o {root}/none.index",
        ["{unreadable}: none of its 2 images can be read"],
    ),
    "index: texts of mere images": (
        "index {model} {bare} --texts",
        ["{bare}: holds neither a metadata file"],
    ),
    "index: batches of nothing": (
        "index {model} {bare} --batch-size 0",
        ["batch_size is 0; give 1 or more."],
    ),
    "export: no such index": (
        "export {root}/absent.index --to vespa -o {root}/exported",
        ["{root}/absent.index is not a file"],
    ),
    "export: a flipped bit": (
        "export {flipped.index} --to milvus -o {root}/exported",
        ["{flipped.index} is damaged"],
    ),
    "export: an unknown database": (
        "export {sound.index} --to oracle -o {root}/exported",
        ["'oracle' is not a known database; use one of milvus, vespa, pgvector."],
    ),
    "export: into a folder of images": (
        "export {sound.index} --to pgvector -o {bare} --overwrite",
        ["{bare} holds 'one.png', which is not part of an export; name another folder."],
    ),
    "export: onto a file": (
        "export {sound.index} --to pgvector -o {notes.png}",
        ["{notes.png} is a file; name a folder for the export."],
    ),
    "export: a name that is none": (
        "export {sound.index} --to pgvector -o {root}/exported --name my-table",
        ["The name 'my-table' does not fit"],
    ),
    "evaluate: no such data": (
        "evaluate {model} {root}/absent/folder",
        ["{root}/absent/folder: there is no such folder"],
    ),
    "evaluate: no such split": (
        "evaluate {model} {scenes} --query-split test",
        ["{scenes}: there is no split 'test'; there are train, query."],
    ),
    "evaluate: no such protocol": (
        "evaluate {model} {scenes} --protocol both",
        ["There is no protocol 'both'; choose one of single, paired."],
    ),
    "evaluate: no labels": (
        "evaluate {model} {no-labels} --query-split train --protocol paired",
        ["{no-labels}: the split 'train' has no labels", "add them"],
    ),
    "evaluate: another architecture": (
        "evaluate {bert} {scenes}",
        ["{bert}: ", "a checkpoint of 'bert'"],
    ),
    "train: no such configuration": (
        "train {root}/absent.yaml",
        ["{root}/absent.yaml: this configuration does not exist"],
    ),
    "train: malformed YAML": (
        "train {bad.yaml}",
        ["{bad.yaml} is not valid YAML"],
    ),
    "train: an unknown setting": (
        "train {unknown.yaml}",
        ["{unknown.yaml}: model has no setting 'hash_bit'; did you mean 'hash_bits'"],
    ),
    "train: an unknown argument": (
        "train {config} --hash_bitz 16",
        ["--hash_bitz; did you mean 'hash_bits'"],
    ),
    "train: a value of the wrong type": (
        "train {config} --learning_rate fast",
        ["--learning_rate", "'fast'"],
    ),
    "train: a model's value of the wrong type": (
        "train {config} --hash_bits many {out}",
        ["hash_bits", "'many'"],
    ),
    "train: bits that fill no bytes": (
        "train {config} --hash_bits 20 {out}",
        ["hash_bits is 20; a code is stored in whole bytes, so give a multiple of 8."],
    ),
    "train: an unknown kind of backbone": (
        'train {config} --backbone_config {"model_type":"nope"} {out}',
        ["backbone_config has the model_type 'nope'"],
    ),
    "train: a backbone from nowhere": (
        "train {config} --backbone nobody/nothing {out}",
        ["'nobody/nothing' is no backbone of torchvision, of timm, in a folder or on the Hub"],
    ),
    "train: a text model as dual encoder": (
        "train {config} --dual_encoder {bert} {out}",
        ["dual_encoder: a bert model encodes no images; give a dual encoder"],
    ),
    "train: a model that generates text as dual encoder": (
        "train {config} --dual_encoder {llava} {out}",
        ["a llava model encodes no texts into a common space; give a dual encoder"],
    ),
    "train: a dual encoder as text model": (
        "train {config} --text_backbone {clip} {out}",
        ["text_backbone: a clip model encodes images too; give it as dual_encoder"],
    ),
    "train: an image model as text model": (
        "train {config} --text_backbone {vit} {out}",
        ["text_backbone: a vit model encodes no texts; give a text model"],
    ),
    "train: a text model as image backbone": (
        "train {config} --backbone {clip} {out}",
        ["backbone: a clip model is no image backbone; give one"],
    ),
    "compress: an encoder of the Hub without a network": (
        "compress nobody/nothing {bare} --output {root}/out",
        ["nobody/nothing: ", "Or give a folder; where there is a network, `hf download nobody/nothing --local-dir"],
    ),
    "train: a text encoder of the Hub without a network": (
        "train {config} --text_backbone nobody/nothing {out}",
        ["'nobody/nothing' is no text model, in a folder or on the Hub", "; check it, or give a folder."],
    ),
    "train: no such data": (
        "train {config} --dataset {root}/absent/folder {out}",
        ["{root}/absent/folder: there is no such folder"],
    ),
    "train: a folder without metadata": (
        "train {config} --dataset {bare} {out}",
        ["{bare}: holds neither a metadata file nor Parquet files", "write a metadata.jsonl next to the images"],
    ),
    "train: a row whose image is missing": (
        "train {config} --dataset {absent-image} {out}",
        ["{absent-image}/metadata.jsonl, line 2: the image {absent-image}/im7.png does not exist"],
    ),
    "train: two rows with one id": (
        "train {config} --dataset {one-id} {out}",
        ["{one-id}/metadata.jsonl: lines 1 and 2 have the same id '0'", "unique"],
    ),
    "train: a line that is no JSON": (
        "train {config} --dataset {odd-json} {out}",
        ["{odd-json}/metadata.jsonl, line 2 is not valid JSON"],
    ),
    "train: no labels": (
        "train {config} --dataset {no-labels} {out}",
        ["{no-labels}", "'train'", "no labels"],
    ),
    "train: no text": (
        "train {config} --dataset {no-text} {out}",
        ["{no-text}", "text"],
    ),
    "train: not one readable image": (
        "train {config} --dataset {unreadable} {out}",
        ["rows", "validation"],
    ),
    "train: no such weights": (
        "train {config} --backbone_weights {root}/absent.safetensors {out}",
        ["{root}/absent.safetensors: "],
    ),
    "space: no such model": (
        "space {root}/absent --data scenes",
        ["{root}/absent: "],
    ),
    "space: no such data": (
        "space {model} --data {root}/absent/folder",
        ["{root}/absent/folder: there is no such folder"],
    ),
    "space: a model without images": (
        "space {model}",
        ["{model}: name what this model is to search: cmfah space {model} FOLDER, or an index."],
    ),
    "space: no images": (
        "space --limit 0",
        ["limit=0: a Space shows from 1 to 20,000 images."],
    ),
    "demo: no scenes": (
        "demo --output {root}/demo --train-scenes 0",
        ["num=0: scenes need 1 or more."],
    ),
}
# Known only after some work: progress bars and image names may precede the line.
AFTER_WORK = {
    "index: a column that is not there",
    "index: no such split",
    "index: not one readable image",
    "train: not one readable image",
    "train: no such weights",
    "evaluate: no labels",
}


@pytest.fixture(scope="module")
def outcomes(files, run_in_a_new_process, tmp_path_factory, datasets_cache):
    commands = [
        [files.fill(word) for word in command.replace("{out}", "--output_dir {root}/out --use_cpu").split()]
        for command, _ in CASES.values()
    ]
    home = tmp_path_factory.mktemp("home")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = own | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return dict(zip(CASES, run_in_a_new_process(commands, environment), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_error_is_one_line_that_names_it(case, outcomes, files):
    outcome = outcomes[case]
    assert outcome.code == 2, outcome
    *before, error = outcome.err.splitlines()
    assert error.startswith("cmfah: ")
    for part in CASES[case][1]:
        assert files.fill(part) in error
    if case in AFTER_WORK:
        assert all("Left out" in line or "/s]" in line for line in before if line), before
    else:
        assert before == []
    if not case.startswith(("demo", "space: no such")):  # one reports its progress, the other its address
        assert outcome.out == ""


def test_unknown_commands_and_options_show_the_usage(cmfah):
    for arguments in (["explode"], ["search", "--explode"], ["search", "model", "index", "-k", "many"]):
        outcome = cmfah(*arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert "Usage: " in outcome.err


def test_debugging_shows_the_traceback(monkeypatch, datasets_cache):
    monkeypatch.setenv("CMFAH_DEBUG", "1")
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    with pytest.raises(CMFAHError, match="this configuration does not exist"):
        main(["train", "absent.yaml"])


@pytest.mark.parametrize("kind", [ZeroDivisionError, ValueError, KeyError])
def test_a_bug_is_not_reported_as_a_user_error(cmfah, monkeypatch, capsys, kind):
    def broken(*args, **kwargs):
        raise kind("a defect")

    monkeypatch.setattr("cmfah_hf.training.parse_run", broken)
    with pytest.raises(SystemExit) as left:
        main(["train"])
    assert left.value.code == 70
    line = capsys.readouterr().err
    assert line.startswith(f"cmfah: {kind.__name__}: ")
    assert line.endswith("(a bug; CMFAH_DEBUG=1 shows the traceback)\n")
    monkeypatch.setenv("CMFAH_DEBUG", "1")
    with pytest.raises(kind):
        main(["train"])
