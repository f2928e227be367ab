"""`cmfah data from-folder`: a folder of photographs as it is, through the command line, up to a search."""

import json
import shutil

import pytest
from image_files import image_file
from PIL import Image
from shards import write_shard

from cmfah_hf.data import load_image_text

XMP = (
    '<x xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:Description xmlns:d="http://purl.org/dc/elements/1.1/">'
    "<d:description>{}</d:description><d:subject><r:Bag><r:li>lake</r:li></r:Bag></d:subject></r:Description></x>"
)


@pytest.fixture
def messy(tmp_path, scenes_folder):
    """Scenes as photographs from a telephone, a camera and programs, with damaged and foreign files among them."""
    root = tmp_path / "photos"
    (root / "2023").mkdir(parents=True)
    rows = [json.loads(line) for line in (scenes_folder / "train" / "metadata.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows[:24]):
        image = Image.open(scenes_folder / "train" / row["file_name"])
        name = root / ("2023" if number % 2 else ".") / f"IMG_{number:04d}"
        if number % 4 == 0:
            image.save(name.with_suffix(".jpg"))
            name.with_suffix(".txt").write_text(row["text"])
        elif number % 4 == 1:
            image.save(name.with_suffix(".heic"))
            taken = {"timestamp": str(1_580_000_000 + number)}
            document = {"title": f"{name.name}.heic", "description": row["text"], "photoTakenTime": taken}
            name.with_name(f"{name.name}.heic.json").write_text(json.dumps(document))
        elif number % 4 == 2:
            image.save(name.with_suffix(".png"))
            name.with_suffix(".xmp").write_text(XMP.format(row["text"]))
        else:
            exif = Image.Exif()
            exif[0x010E] = row["text"]
            exif.get_ifd(0x8769)[0x9003] = "2023:05:06 07:08:09"
            image.save(name.with_suffix(".jpg"), exif=exif)
    shutil.copy(root / "IMG_0000.jpg", root / "IMG_0000-copy.jpg")
    (root / "cut.jpg").write_bytes((root / "IMG_0000.jpg").read_bytes()[:700])
    (root / "film.mp4").write_bytes(b"film")
    (root / "bad.svg").write_text("<svg")
    (root / "IMG_0008.xmp").write_text("no XML")
    (root / "again").symlink_to(root)
    return root


@pytest.mark.slow
def test_from_a_messy_folder_to_a_search(messy, trained, tmp_path, run_in_a_new_process, environment):
    index, shards = tmp_path / "photos.index", tmp_path / "shards"
    for number in range(2):
        own = {f"{n}": {"jpg": image_file("jpg", 10 * number + n), "txt": "sun"} for n in range(3)}
        write_shard(shards / f"x-{number}.tar", own)
    commands = [
        ["data", "from-folder", messy, "--queries", "0.2", "--json"],
        ["data", "from-folder", messy, "--queries", "0.2"],
        ["data", "inspect", messy, "--json"],
        ["index", trained.folder, messy, "-o", index, "--keep", "year", "--json"],
        ["search", trained.folder, index, "--text", "boat", "--where", "year=2023", "-k", "3", "--json"],
        ["index", trained.folder, messy, "-o", index, "--keep", "year", "--json"],
        ["index", trained.folder, shards, "-o", tmp_path / "shards.index", "--json"],
    ]
    commands = [[str(part) for part in command] for command in commands]
    done, again, inspected, indexed, found, unchanged, of_shards = run_in_a_new_process(commands, environment)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["images"] == 25
    assert report["text_from"] == {"txt": 6, "json": 6, "xmp": 6, "exif": 6}
    assert (report["without_text"], report["unreadable"], report["identical_files"]) == (1, 2, 2)
    assert report["skipped"] == {"linked folders": 1, ".mp4": 1}
    assert report["problems"] == {".xmp sidecars": 1}
    assert any("IMG_0008.xmp is not valid XML" in line for line in report["named"])
    assert any("cut.jpg: damaged or cut short" in line for line in report["named"])
    assert again.code == 0
    assert "unchanged." in again.out
    assert json.loads(inspected.out)["splits"] == report["splits"]
    assert not [line for line in json.loads(inspected.out)["warnings"] if line.startswith("LEAKAGE")]
    assert json.loads(indexed.out)["items"] == 25, indexed.err
    assert all("2023/" in own["id"] for own in json.loads(found.out)["results"]), found.out
    assert json.loads(unchanged.out)["added"] == 0
    assert json.loads(of_shards.out)["items"] == 6, of_shards.err


@pytest.mark.slow
def test_training_and_evaluation_on_shards(scenes_folder, write_config, tmp_path, run_in_a_new_process, environment):
    rows = [json.loads(line) for line in (scenes_folder / "train" / "metadata.jsonl").read_text().splitlines()]
    for number in range(2):
        samples = {
            f"{n:03d}": {
                "png": (scenes_folder / "train" / row["file_name"]).read_bytes(),
                "json": json.dumps({"text": row["text"], "labels": row["labels"]}),
            }
            for n, row in enumerate(rows[24 * number : 24 * number + 24])
        }
        write_shard(tmp_path / "shards" / f"x-{number}.tar", samples)
    shards, model = str(tmp_path / "shards"), str(tmp_path / "model")
    config = write_config(tmp_path / "run.yaml", data={"dataset": shards})
    divided, trained, evaluated = run_in_a_new_process(
        [
            ["data", "from-folder", shards, "--queries", "0.25"],
            ["train", str(config), "--output_dir", model],
            ["evaluate", model, shards, "--json"],
        ],
        environment,
    )
    assert "48 images (" in divided.out, divided.err
    assert trained.code == 0, trained.err
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out)["protocol"] == "single"
    assert 4 <= len(load_image_text(shards, split="query")) <= 20


@pytest.mark.slow
def test_a_search_by_a_column_of_the_table(trained, scenes_folder, tmp_path, run_in_a_new_process, environment):
    folder, index = tmp_path / "photos", tmp_path / "photos.index"
    folder.mkdir()
    for number, name in enumerate(sorted((scenes_folder / "train").glob("*.png"))[:12]):
        shutil.copy(name, folder / f"{number}.png")
    rows = [f"{number}.png,a boat,{2000 + number},{number % 3}" for number in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["file,text,year,id", *rows]))
    described, indexed, found = run_in_a_new_process(
        [
            ["data", "from-folder", str(folder), "--csv", str(tmp_path / "t.csv")],
            ["index", str(trained.folder), str(folder), "-o", str(index), "--keep", "year"],
            ["search", str(trained.folder), str(index), "--text", "boat", "--where", "year>=2010", "--json"],
        ],
        environment,
    )
    assert "Further columns of the table: year, id as original_id." in described.out, described.err
    assert indexed.code == 0, indexed.err
    assert {own["id"].rpartition("/")[2] for own in json.loads(found.out)["results"]} == {"10.png", "11.png"}, found.err


@pytest.mark.slow
def test_a_folder_that_grows_gets_into_its_index(trained, scenes_folder, tmp_path, run_in_a_new_process, environment):
    folder, index = tmp_path / "my photos", tmp_path / "photos.index"
    (folder / "boats").mkdir(parents=True)
    names = sorted((scenes_folder / "train").glob("*.png"))
    for number, name in enumerate(names[:12]):
        Image.open(name).save(folder / "boats" / f"p{number:03d}.jpg")
        (folder / "boats" / f"p{number:03d}.txt").write_text("a boat at sea")
    describe = ["data", "from-folder", str(folder)]
    follow = ["index", str(trained.folder), str(folder), "-o", str(index)]
    first = run_in_a_new_process([describe, follow], environment)
    assert [own.code for own in first] == [0, 0], [own.err for own in first]
    before = load_image_text(folder, split="query")["id"][:]
    Image.open(names[12]).save(folder / "extra.jpg")
    remove = ["index", "remove", str(index), "train/extra.jpg"]
    forgotten, described, followed, removed = run_in_a_new_process(
        [follow, describe, [*follow, "--json"], remove], environment
    )
    assert "images without a row of metadata 1" in forgotten.err
    assert f"run `cmfah data from-folder '{folder}'`, then this command again." in forgotten.err
    assert described.code == 0, described.err
    assert "Images: 1 new, 12 as before, 0 gone." in described.out
    changes = json.loads(followed.out)
    assert (changes["added"], changes["removed"], changes["items"]) == (1, 0, 13), followed.err
    assert "hidden" not in followed.err
    assert "1 items removed, 12 left" in removed.out, removed.err  # the split precedes the path
    assert load_image_text(folder, split="query")["id"][:] == before


def test_what_it_says(cmfah, tmp_path):
    for number in range(12):
        (tmp_path / "in" / f"{number}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.jpg").write_bytes(image_file("jpg", number))
    (tmp_path / "t.csv").write_text("datei,text\n" + "\n".join(f"{number}.jpg,a dog" for number in range(10)))
    (tmp_path / "in" / "x.mp4").touch()
    outcome = cmfah("data", "from-folder", tmp_path / "in", "--csv", tmp_path / "t.csv")
    assert outcome.code == 2
    assert "present are: datei, text. Name it with --image-column." in outcome.err
    assert outcome.err.count("\n") == 1
    outcome = cmfah("data", "from-folder", tmp_path / "in", "--text-column", "text")
    assert (outcome.code, "pass --csv FILE" in outcome.err) == (2, True)
    options = ["--csv", tmp_path / "t.csv", "--image-column", "datei", "-o", tmp_path / "out"]
    outcome = cmfah("data", "from-folder", tmp_path / "in", *options)
    assert outcome.code == 0, outcome.err
    assert f"{tmp_path / 'out'}: 12 images (11 train, 1 query), written." in outcome.out
    assert "Texts: table 10; without text 2." in outcome.out
    assert "Images linked 12, copied 0." in outcome.out
    assert "Skipped: .mp4 1." in outcome.out
    assert load_image_text(tmp_path / "out", split="query")["text"][0] == "a dog"
    assert (tmp_path / "out" / "train" / "11.jpg").stat().st_nlink == 2
