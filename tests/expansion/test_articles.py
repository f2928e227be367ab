"""Articles are the same from any source; a dump is read page by page."""

import bz2
import gzip
import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset

from cmfah_hf.errors import DataError
from cmfah_hf.expansion.articles import iterate_articles
from cmfah_hf.models.tokenization_cmfah import split_words

ROWS = [{"title": "Dog", "text": "A dog barks."}, {"title": "Hot dog", "text": "A sausage, not a dog."}]
EXPECTED = [(["a", "dog", "barks"], ["dog"], []), (["a", "sausage", "not", "a", "dog"], ["hot", "dog"], [])]

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en"><siteinfo></siteinfo>'


def page(title, text, ns=0, redirect=""):
    return (
        f"<page><title>{title}</title><ns>{ns}</ns><id>1</id>{redirect}<revision><id>2</id>"
        f'<text bytes="3" xml:space="preserve">{text}</text></revision></page>'
    )


DOG = (
    "{{Infobox|a=b}}'''Dogs''' bark at [[cat|cats]] on the [[Red Sea#Beach]].&lt;ref&gt;gone&lt;/ref&gt; "
    "[[File:x.jpg|thumb|a puppy]]"
)
PAGES = (
    page("Dog", DOG),
    page("Dogs", "#REDIRECT [[Dog]]", redirect='<redirect title="Dog" />'),
    page("Talk:Dog", "no article", ns=1),
    page("Sea", ""),
)


def articles(source, title="title", links=False):
    return [tuple(article) for article in iterate_articles(source, "text", title, split_words, links)]


def test_every_source_gives_the_same_articles(tmp_path):
    dataset = Dataset.from_list([{"id": "1", **row} for row in ROWS])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for source in (
        dataset, dataset.to_iterable_dataset(2), IterableDataset.from_generator(lambda: iter(ROWS)), ROWS, iter(ROWS),
        dataset.with_transform(lambda batch: {"text": batch["text"], "title": batch["title"]}),
        {"text": [row["text"] for row in ROWS], "title": [row["title"] for row in ROWS]},
        tmp_path / "a.jsonl", str(tmp_path / "a.parquet"), [tmp_path / "a.jsonl.gz"],
    ):  # fmt: skip
        assert articles(source) == EXPECTED
    assert articles([tmp_path / "a.jsonl", tmp_path / "a.parquet"]) == EXPECTED * 2
    assert (
        articles(dataset, title=None)
        == articles([row["text"] for row in ROWS])
        == [(w, [], []) for w, _, _ in EXPECTED]
    )
    (tmp_path / "a.txt").write_text("A dog barks.\n\nA sausage, not a dog.\n")
    assert articles(tmp_path / "a.txt") == [(words, [], []) for words, _, _ in EXPECTED]


@pytest.mark.parametrize("ending", [".xml", ".xml.bz2", ".xml.gz"])
def test_a_dump_gives_articles_without_markup_redirects_and_other_pages(tmp_path, ending):
    path = tmp_path / f"xwiki-pages-articles{ending}"
    text = (HEAD + "".join(PAGES) + "</mediawiki>").encode()
    # A multipart dump is several consecutive bz2 streams.
    pack = {
        ".xml": bytes,
        ".xml.bz2": lambda b: bz2.compress(b[:200]) + bz2.compress(b[200:]),
        ".xml.gz": gzip.compress,
    }
    path.write_bytes(pack[ending](text))
    words = split_words("dogs bark at cats on the red sea beach a puppy")
    assert articles(path) == [(words, ["dog"], []), ([], ["sea"], [])]
    assert articles(path, links=True) == [(words, ["dog"], ["cat", "red", "sea"]), ([], ["sea"], [])]


def test_memory_of_reading_a_dump_does_not_grow_with_its_pages(tmp_path):
    for name, pages in (("small", 500), ("large", 30_000)):
        with bz2.open(tmp_path / f"{name}.xml.bz2", "wt", compresslevel=1) as file:
            file.write(HEAD)
            file.writelines(page(f"T{number}", "dog") for number in range(pages))
            file.write("</mediawiki>")
    code = """
import re, sys
from pathlib import Path
from cmfah_hf.expansion.articles import _iterate_pages
def peak():  # in KiB, of this program; getrusage includes its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
for path in (Path(sys.argv[1]), Path(sys.argv[2])):
    print(sum(1 for _ in _iterate_pages(path)), peak())
"""
    output = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "small.xml.bz2"), str(tmp_path / "large.xml.bz2")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=120,
    ).stdout.split()  # fmt: skip
    assert output[::2] == ["500", "30000"]
    assert int(output[3]) - int(output[1]) < 1_000, "KiB; the bare nodes of the pages would take three times that"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", b"", "cannot be read as a MediaWiki dump"),
        ("a.xml", b"<mediawiki><page>", "cannot be read as a MediaWiki dump"),
        ("a.xml", b"<html><body/></html>", "holds 'html' instead of a MediaWiki dump"),
        ("a.xml.bz2", b"no bz2", "cannot be read as a MediaWiki dump"),
        ("a.xml.bz2", bz2.compress(HEAD.encode() * 50)[:-20], "cannot be read as a MediaWiki dump"),
        ("a.jsonl", b'{"title": "Dog"}\n', "line 1 has no column 'text', only 'title'"),
        ("a.jsonl", b'{"title": 5, "text": "dog"}\n', "line 1, title, holds 5"),
        ("a.doc", b"dog", "a corpus is a .jsonl, .txt or .parquet file"),
    ],
)
def test_unreadable_sources_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        articles(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_and_columns_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # do not contact the Hub
    for path in (tmp_path / "gone.xml.bz2", tmp_path / "gone.jsonl"):
        with pytest.raises(DataError, match="there is no such file"):
            articles(path)
    with pytest.raises(DataError, match="has no column 'text', only 'body'"):
        articles(Dataset.from_dict({"body": ["dog"]}))
    with pytest.raises(DataError, match=r"nobody/nothing:en is neither a local file nor a data set on the Hub"):
        articles("nobody/nothing:en")
