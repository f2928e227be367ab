"""Small replicas of the releases with every file and defect, and their content as NumPy matrices."""

import io
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

from cmfah_hf.data.releases.mirflickr import CLASSES, MIRFlickrRelease
from cmfah_hf.data.releases.nus_wide_files import MOST_FREQUENT, NUSWideRelease
from cmfah_hf.data.releases.wikipedia import WikipediaRelease

_CONCEPTS = (
    "airport animal beach bear birds boats book bridge buildings cars castle cat cityscape clouds computer coral cow "
    "dancing dog earthquake elk fire fish flags flowers food fox frost garden glacier grass harbor horses house lake "
    "leaf map military moon mountain nighttime ocean person plane plants police protest railroad rainbow reflection "
    "road rocks running sand sign sky snow soccer sports statue street sun sunset surf swimmers tattoo temple tiger "
    "tower town toy train tree valley vehicle water waterfall wedding whales window zebra"
)
CONCEPTS = _CONCEPTS.split()


@dataclass(frozen=True)
class Replica:
    """A release on disk.

    `ids`, `tags` `(N, V)` and `labels` `(N, C)` are its content; `release` holds the counts that a preparation expects.
    """

    root: Path
    release: Any
    ids: list[str]
    tag_names: list[str]
    tags: np.ndarray
    class_names: list[str]
    labels: np.ndarray
    images: list[Path]


def jpeg(seed: int, gray: bool = False) -> bytes:
    """A different image for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((32, 24))
    buffer = io.BytesIO()
    (image.convert("L") if gray else image).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def pack(root: Path, names: list[str], archive: str) -> None:
    """Moves folders or files below `root` into an archive next to them."""
    target = root / archive
    files = [file for name in names for file in sorted((root / name).rglob("*")) if file.is_file()]
    files += [root / name for name in names if (root / name).is_file()]
    if archive.endswith(".zip"):
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as opened:
            for file in files:
                opened.write(file, file.relative_to(root).as_posix())
    else:
        with tarfile.open(target, "w") as opened:
            for file in files:
                opened.add(file, file.relative_to(root).as_posix())
    for name in names:
        shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def make_mirflickr(root: Path, num_rows: int = 60, archives: bool = False, images: bool = True) -> Replica:
    """MIRFlickr: some Windows line ends, Latin-1 tags, tags with commas and emoji, `*_r1.txt`."""
    rng = np.random.default_rng(0)
    names = ["nikon", "explore", "rock,roll", "🌅", "café", "2008", "null", "new-york", "bw", "a&b"]
    tags = (rng.random((num_rows, len(names))) < 0.25).astype(np.uint8)
    labels = (rng.random((num_rows, len(CLASSES))) < 0.06).astype(np.uint8)
    tags[:4], tags[4] = 0, 1
    labels[3], labels[4], labels[5] = 0, 1, 0
    meta = root / "mirflickr"
    common = "".join(f"{name} {tags[:, number].sum()}\n" for number, name in enumerate(names))
    write(meta / "doc/common_tags.txt", common.encode())
    rare = ["onlyonce", "o'hara", "mañana"]
    paths = []
    for row in range(num_rows):
        own = [names[number] for number in np.flatnonzero(tags[row])]
        lines = [*rng.permutation(own + rare[: row % 4]), *own[:1]]  # one of them repeated
        text = ("\r\n" if row % 3 == 0 else "\n").join(lines) + ("\n" if row % 2 else "")
        encoding = "latin-1" if row % 5 == 0 and "🌅" not in own else "utf-8"
        write(meta / f"meta/tags/tags{row + 1}.txt", text.encode(encoding))
        write(meta / f"meta/tags_raw/tags{row + 1}.txt", b"Another File\nOf The Same Name\n")
        write(meta / f"meta/license/license{row + 1}.txt", b"Attribution License\n")
        paths.append(meta / f"im{row + 1}.jpg")
        if images:
            write(paths[-1], jpeg(row, gray=row == 7))
    annotations = root / "mirflickr25k_annotations_v080"
    for number, name in enumerate(CLASSES):
        rows = np.flatnonzero(labels[:, number]) + 1
        end = "\r\n" if number % 2 else "\n"
        write(annotations / f"{name}.txt", "".join(f"{row}{end}" for row in rows).encode())
        if number < 14:
            write(annotations / f"{name}_r1.txt", "".join(f"{row}{end}" for row in rows[::2]).encode())
    write(annotations / "README.txt", b"Annotations\n")
    if archives:
        pack(root, ["mirflickr"], "mirflickr25k.zip")
        pack(root, ["mirflickr25k_annotations_v080"], "mirflickr25k_annotations_v080.zip")
    labeled = labels.any(1)
    release = MIRFlickrRelease(
        num_rows=num_rows,
        num_tags=len(names),
        tag_ones=int(tags.sum()),
        label_ones=int(labels.sum()),
        variants={int((labeled & tags.any(1)).sum()): True, int(labeled.sum()): False},
        queries=8,
        train=14,
    )
    ids = [f"im{row + 1}" for row in range(num_rows)]
    return Replica(root, release, ids, names, tags, list(CLASSES), labels, paths)


def make_nus_wide(
    root: Path, num_rows: int = 90, archives: bool = False, images: bool = True, prefix: str = "", end: str = "\r\n"
) -> Replica:
    """NUS-WIDE: backslashes, an invalid label value, two repeated photo ids, and `AllTags1k` unlike `All_Tags`."""
    rng = np.random.default_rng(1)
    rates = np.where(np.isin(CONCEPTS, MOST_FREQUENT[21]), 0.05, 0.005)
    labels = (rng.random((num_rows, len(CONCEPTS))) < rates).astype(np.uint8)
    final = [f"tag{number}" for number in range(17)] + ["st.louis", "🌵", "müll"]
    names = ["🌵", "müll", "tag3", "tag1", "tag5", "tag8", "st.louis"]
    every = (rng.random((num_rows, len(final))) < 0.15).astype(np.uint8)
    tags = every[:, [final.index(name) for name in names]].copy()
    tags[:5] = 0
    every[:3] = 0
    tags[10, 2], every[10, final.index("tag3")] = 0, 1  # the only difference between the two, apart from rows 3 and 4
    labels[:2, CONCEPTS.index("sky")] = 1
    folders = ["actor", "albatross", "lake", "zebra"]
    photos = [100_000 + 37 * row for row in range(num_rows)]
    photos[num_rows - 1], photos[num_rows - 2] = photos[0], photos[1]
    labels[num_rows - 1] = 1 - labels[0]
    ids = [f"{folders[4 * row // num_rows]}/{row:04d}_{photos[row]}" for row in range(num_rows)]

    windows = [prefix + row_id.replace("/", "\\") + ".jpg" for row_id in ids]
    write(root / "ImageList/Imagelist.txt", (end.join(windows) + end).encode())
    for part, half in (("Train", slice(0, None, 2)), ("Test", slice(1, None, 2))):
        write(root / f"ImageList/{part}Imagelist.txt", (end.join(windows[half]) + end).encode())
        for number, name in enumerate(CONCEPTS):
            column = [str(value) for value in labels[half, number]]
            if (name, part) == ("lake", "Train"):
                column[20] = "-1130179"
            path = root / f"Groundtruth/TrainTestLabels/Labels_{name}_{part}.txt"
            write(path, (end.join(column) + end).encode())
    for number, name in enumerate(CONCEPTS):
        text = end.join(str(value) for value in labels[:, number]) + end
        write(root / f"Groundtruth/AllLabels/Labels_{name}.txt", text.encode())
    write(root / "ConceptsList/Concepts81.txt", (end.join(CONCEPTS) + end).encode())
    folder = root / "NUS_WID_Tags"
    write(folder / "TagList1k.txt", (end.join(names) + end).encode())
    write(folder / "Final_Tag_List.txt", (end.join(final) + end).encode())
    write(folder / "AllTags1k.txt", "".join("\t".join(map(str, row)) + "\t" + end for row in tags).encode())
    lines = []
    for row in range(num_rows):
        own = [*rng.permutation([final[number] for number in np.flatnonzero(every[row])]), "unlisted,tag"]
        line = f"{photos[row]}      {' '.join(own)} "
        lines.append(line.encode("latin-1" if row % 4 == 0 and "🌵" not in own else "utf-8") + end.encode())
    write(folder / "All_Tags.txt", b"".join(lines))
    write(root / "NUS-WIDE-urls.rar", b"Rar!")
    paths = [root / "Flickr" / f"{row_id}.jpg" for row_id in ids]
    if images:
        for row, path in enumerate(paths):
            write(path, jpeg(row, gray=row == 9))
    if archives:
        for name in ("Groundtruth", "ConceptsList", "NUS_WID_Tags", "ImageList"):
            pack(root, [name], f"{name}.zip")
        if images:
            pack(root, ["Flickr"], "Flickr.tar")

    def counts(classes: list[str]) -> tuple[int, dict[int, bool]]:
        chosen = labels[:, [CONCEPTS.index(name) for name in classes]]
        labeled = chosen.any(1)
        return int(chosen.sum()), {int(labeled.sum()): False, int((labeled & tags.any(1)).sum()): True}

    by_number = {10: list(MOST_FREQUENT[10]), 21: list(MOST_FREQUENT[21]), 81: CONCEPTS}
    release = NUSWideRelease(
        num_rows=num_rows,
        num_tags={"1k": len(names), "5018": len(final)},
        tag_ones=int(tags.sum()),
        repeated_photos=2,
        label_ones={number: counts(classes)[0] for number, classes in by_number.items()},
        variants={number: counts(classes)[1] for number, classes in by_number.items()},
        queries=9,
        train=21,
    )
    return Replica(root, release, ids, names, tags, CONCEPTS, labels, paths)


@dataclass
class WikipediaReplica:
    """The Wikipedia release on disk, and its content."""

    root: Path
    release: WikipediaRelease
    class_names: list[str]
    arrays: dict[str, np.ndarray]  # by variable
    lines: dict[str, list[list[str]]]  # by split: text id, image id, class

    def write_arrays(self, **changed: Any) -> None:
        """Writes the features, some of them changed, or left out if None."""
        values = {name: value for name, value in {**self.arrays, **changed}.items() if value is not None}
        scipy.io.savemat(self.root / "raw_features.mat", values, do_compression=True)

    def write_list(self, split: str, lines: list[list[str]]) -> None:
        name = {"train": "trainset_txt_img_cat.list", "query": "testset_txt_img_cat.list"}[split]
        (self.root / name).write_text("".join("\t".join(line) + "\n" for line in lines))

    def expected(self, split: str) -> list[dict[str, Any]]:
        """The rows of a split."""
        ending = {"train": "tr", "query": "te"}[split]
        rows = []
        for number, (text_id, _, label) in enumerate(self.lines[split]):
            features = {"image_features": self.arrays[f"I_{ending}"], "text_features": self.arrays[f"T_{ending}"]}
            topics = features["text_features"][number].tolist()
            tags = [f"topic{topic}" for _, topic in sorted((-value, topic) for topic, value in enumerate(topics))[:3]]
            row = {"id": text_id, "text": " ".join(tags), "labels": [self.class_names[int(label) - 1]], "tags": tags}
            rows.append(row | {name: values[number].astype(np.float32).tolist() for name, values in features.items()})
        return rows


def make_wikipedia(root: Path) -> WikipediaReplica:
    """Wikipedia: 12 and 5 articles of 3 classes, 6 visual words and 4 topics, which are equal in one article."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    names = ["art", "royalty", "sport & games"]
    arrays, lines = {}, {}
    for split, ending, count in (("train", "tr", 12), ("query", "te", 5)):
        arrays |= {f"I_{ending}": rng.dirichlet(np.ones(6), count), f"T_{ending}": rng.dirichlet(np.ones(4), count)}
        lines[split] = [[f"{split}{row:02d}-1.{row}", f"{split}-{row}", str(1 + row * 2 % 3)] for row in range(count)]
    arrays["T_tr"][3] = 0.25
    release = WikipediaRelease(rows=(12, 5), classes=3, image_features=6, text_features=4)
    replica = WikipediaReplica(root, release, names, arrays, lines)
    replica.write_arrays()
    for split, rows in lines.items():
        replica.write_list(split, rows)
    (root / "categories.list").write_text("".join(f"{name}\n" for name in names))
    return replica
