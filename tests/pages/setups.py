"""Prerequisites of a page: files on the reader's disk, repositories on the Hub, names in Python."""

import bz2
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dual_encoders import write_dual_encoder
from hub_server import HubServer
from PIL import Image

from pages.blocks import DOCS, ROOT, blocks
from pages.session import PageSession

_WORDS = ("dog beach sea", "dog sea waves", "cat sofa", "beach sea sand", "boat sea sun", "house tree sun")
_CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*.parquet\n---\n"


def set_up(page: str, session: PageSession, hub: HubServer, patch: pytest.MonkeyPatch) -> None:
    """Creates the prerequisites of the page."""
    if page == "docs/data.md":
        _data(session, patch)
    elif page in _SETUPS:
        _SETUPS[page](session, hub)
    if page == "docs/training.md":
        patch.setenv("TRACKIO_DIR", str(session.folder / "trackio"))


def _write_images(folder: Path, split: str = "train", count: int = 12, **columns: Any) -> None:
    """A folder of small images with captions, labels and additional columns."""
    (folder / split).mkdir(parents=True)
    rng = np.random.default_rng(len(folder.name))
    with (folder / split / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(count):
            words = _WORDS[number % len(_WORDS)]
            name = f"{folder.name}-{number}.png"
            pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((64, 64)).save(folder / split / name)
            row = {"file_name": name, "text": words, "labels": words.split()[:1]}
            row |= {column: values[number] for column, values in columns.items()}
            lines.write(json.dumps(row) + "\n")


def _add_to_hub(hub: HubServer, name: str) -> None:
    """A data set with images, tags and years, as Parquet with a card."""
    import datasets

    pixels = np.random.default_rng(1).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    rows = datasets.Dataset.from_dict(
        {
            "id": [f"{name}-{number}" for number in range(8)],
            "image": [Image.fromarray(values).resize((64, 64)) for values in pixels],
            "text": [_WORDS[number % 6] for number in range(8)],
            "tags": [_WORDS[number % 6] for number in range(8)],
            "year": [2020 + number for number in range(8)],
        },
        features=datasets.Features(
            {
                "id": datasets.Value("string"),
                "image": datasets.Image(),
                **{column: datasets.Value("string") for column in ("text", "tags")},
                "year": datasets.Value("int64"),
            }
        ),
    )
    buffer = Path(f"{name.replace('/', '-')}.parquet")
    rows.to_parquet(buffer)
    hub.add(name, {"README.md": _CARD.encode(), "data/train-00000-of-00001.parquet": buffer.read_bytes()})
    buffer.unlink()


def _data(session: PageSession, patch: pytest.MonkeyPatch) -> None:
    """Replicas of all releases, with their counts; matrices in the usual research layout."""
    from cmfah_hf.data import prepare_mirflickr25k, prepare_nus_wide, prepare_wikipedia

    spec = importlib.util.spec_from_file_location("release_replicas", ROOT / "tests" / "data" / "release_replicas.py")
    replicas = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = replicas  # dataclasses look up their module
    spec.loader.exec_module(replicas)
    downloads = session.folder / "downloads"
    (downloads / "mirflickr").mkdir(parents=True)
    (downloads / "nus-wide").mkdir()
    for make, prepare in (
        (replicas.make_mirflickr, prepare_mirflickr25k),
        (replicas.make_nus_wide, prepare_nus_wide),
    ):
        folder = downloads / make.__name__.removeprefix("make_").replace("_", "-")
        patch.setitem(prepare.__kwdefaults__, "release", make(folder, archives=True).release)
    release = replicas.make_wikipedia(downloads / "wikipedia").release
    patch.setitem(prepare_wikipedia.__kwdefaults__, "release", release)
    import scipy.io

    rng = np.random.default_rng(0)
    (downloads / "matrices").mkdir()
    tags = (rng.random((40, 10)) < 0.3).astype(np.uint8)
    labels = (rng.random((40, 5)) < 0.4).astype(np.uint8)
    labels[:, 0] |= ~labels.any(1)
    images = np.sort(rng.integers(0, 256, (32, 24, 3, 40), dtype=np.uint8), axis=0)[::-1]
    for name, values in {"IAll": images, "YAll": tags, "LAll": labels}.items():
        scipy.io.savemat(downloads / "matrices" / f"mirflickr25k-{name.lower()}.mat", {name: values})
    names = "".join(f"tag{number} 1\n" for number in range(10))
    (downloads / "common_tags.txt").write_text(names, encoding="utf-8")
    _photos_and_shards(session.folder)


def _photos_and_shards(folder: Path) -> None:
    """Photos with sidecars, a table of them, and three shards."""
    from shards import write_shard

    _write_images(folder / "photos", split="2023")
    (folder / "photos" / "2023" / "metadata.jsonl").unlink()
    images = sorted((folder / "photos" / "2023").glob("*.png"))
    for image in images[:8]:
        image.with_suffix(".txt").write_text("a dog on the beach", encoding="utf-8")
    rows = "".join(f"{image.name},a cat on a sofa\n" for image in images)
    (folder / "captions.csv").write_text(f"photo,says\n{rows}", encoding="utf-8")
    for number in range(3):
        own = {f"{row:03d}": {"png": image.read_bytes(), "txt": "dog"} for row, image in enumerate(images[:4])}
        write_shard(folder / "shards" / f"x-{number:03d}.tar", own)


def _expansion(session: PageSession, hub: HubServer) -> None:
    """Captions of images, a corpus file, and a dump in MediaWiki's format."""
    _write_images(session.folder / "data" / "coco-pairs")
    texts = ["A dog barks at a cat.", "Waves roll over the sand of the beach.", "The sun is over the sea."] * 4
    (session.folder / "text").mkdir()
    corpus = "".join(json.dumps({"title": f"T{n}", "text": text}) + "\n" for n, text in enumerate(texts))
    (session.folder / "text" / "wikipedia-vital-articles.jsonl").write_text(corpus, encoding="utf-8")
    articles = "".join(
        f"<page><title>T{n}</title><ns>0</ns><id>{n}</id><revision><text>{text}</text></revision></page>"
        for n, text in enumerate(texts)
    )
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">'
    dump = f"{head}<siteinfo></siteinfo>{articles}</mediawiki>".encode()
    (session.folder / "enwiki-pages-articles.xml.bz2").write_bytes(bz2.compress(dump))


def _hub(session: PageSession, hub: HubServer) -> None:
    """A trainer that has finished."""
    from cmfah_hf import CMFAHForPreTraining, CMFAHProcessor, CMFAHTrainer, CMFAHTrainingArguments

    args = CMFAHTrainingArguments(
        "runs/pushed", use_cpu=True, hub_model_id="owner/trained", disable_tqdm=True, eval_strategy="no",
        load_best_model_at_end=False,
    )  # fmt: skip
    model = CMFAHForPreTraining.from_pretrained("my-model")
    session.names["trainer"] = CMFAHTrainer(model, args, processing_class=CMFAHProcessor.from_pretrained("my-model"))


def _method(session: PageSession, hub: HubServer) -> None:
    """`my-model` is a SCAHN model there."""
    import shutil

    from cmfah_hf.training import parse_run, train

    shutil.rmtree("my-model")
    small = ["--dataset", "my-images", "--output_dir", "my-model", "--num_train_epochs", "1", "--refit", "false"]
    train(parse_run(ROOT / "hub_configs" / "scahn-scenes.yaml", [*small, "--use_cpu", "true"]))


def _scaling(session: PageSession, hub: HubServer) -> None:
    """An index with columns, and the continuous codes of two queries."""
    from cmfah_hf import HashIndex

    values = np.tanh(np.random.default_rng(0).normal(size=(300, 64)))
    index = HashIndex(bits=64)
    columns = {"year": [2015 + n % 10 for n in range(300)], "caption": [f"image {n}" for n in range(300)]}
    index.add(values, ids=[f"p{n}" for n in range(300)], metadata=columns)
    index.save("images.index")
    session.names["hash_values"] = values[:2]


def _search(session: PageSession, hub: HubServer) -> None:
    _add_to_hub(hub, "my-name/my-images")
    _add_to_hub(hub, "my-name/my-data-set")
    _write_images(session.folder / "photos-2024", "train", 4, year=[2024] * 4)
    _write_images(session.folder / "more-photos", "train", 4, year=[2025] * 4)
    photos = {"photos/beach.jpg": "khaki", "photos/street.jpg": "gray"}
    photos |= dict.fromkeys(("cam2023/IMG_0001.jpg", "archive/cam2023/IMG_0001.jpg"), "navy")
    for name, color in photos.items():
        (session.folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), color).save(session.folder / name)


def _serving(session: PageSession, hub: HubServer) -> None:
    """A folder of two photos."""
    for name, color in {"dog.jpg": "khaki", "sea.jpg": "navy"}.items():
        (session.folder / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), color).save(session.folder / "photos" / name)


def _training(session: PageSession, hub: HubServer) -> None:
    from cmfah_hf.hub import push_dataset

    push_dataset("my-images", "owner/name", progress=False)


def _adding_an_encoder(session: PageSession, hub: HubServer) -> None:
    """The settings shown on the page, in the file named there."""
    (shown,) = (block.text for block in blocks(DOCS / "adding-an-encoder.md") if block.language == "yaml")
    (session.folder / "my-run.yaml").write_text(shown, encoding="utf-8")


def _compression(session: PageSession, hub: HubServer) -> None:
    """A small CLIP on the Hub, under the name on the page."""
    folder = write_dual_encoder("clip", session.folder / "small-clip")
    hub.add_folder("openai/clip-vit-base-patch32", folder, "model")


_SETUPS: dict[str, Callable[[PageSession, HubServer], None]] = {
    "README.md": _compression,
    "docs/adding-an-encoder.md": _adding_an_encoder,
    "docs/compression.md": _compression,
    "docs/expansion.md": _expansion,
    "docs/hub.md": _hub,
    "docs/method.md": _method,
    "docs/scaling.md": _scaling,
    "docs/search.md": _search,
    "docs/serving.md": _serving,
    "docs/training.md": _training,
}
