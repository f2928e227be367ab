"""Articles of MediaWiki dumps, corpus files, data sets and streams, one by one."""

import bz2
import gzip
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from xml.etree import ElementTree

from cmfah_hf.documents import file_of
from cmfah_hf.errors import DataError
from cmfah_hf.expansion.corpus import iterate_file, iterate_values, words_of
from cmfah_hf.expansion.word_splitters import Splitter

_DUMP = re.compile(r"\.xml(\.bz2|\.gz)?$", re.IGNORECASE)
_OPEN: dict[str, Callable[..., Any]] = {".bz2": bz2.open, ".gz": gzip.open}
# MediaWiki refuses to store pages of more than 2 MB.
_MOST_PAGE_BYTES = 2**26
_ARTICLES = "0"  # MediaWiki's namespace of articles; others are talk pages, files and templates.
# A data set on the Hub: "owner/name", optionally with a configuration after a colon.
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<configuration>[\w.-]+))?$")


class Article(NamedTuple):
    """The words of an article, of its title, and of the titles that it links to."""

    words: list[str]
    title: list[str]
    links: list[str]


def iterate_articles(
    source: Any, text_column: str, title_column: str | None, split: Splitter, links: bool = False
) -> Iterator[Article]:
    """The articles of `source` in order, in one pass; only those of a dump have links.

    A source is a path or several (`Path`, or one `str`): a MediaWiki dump (`.xml`, `.xml.bz2`, `.xml.gz`, read page by
    page), a corpus file with a column `text`, or a data set's id on the Hub, `owner/name` or
    `owner/name:configuration`, whose `train` split is streamed. Or it is any data set, stream or iterable of texts.
    Reading links doubles the time.
    """
    for where, text, title, linked in _iterate(source, text_column, title_column, links):
        words = words_of(text, where, split)
        yield Article(words, words_of(title, f"{where} title,", split), [w for link in linked for w in split(link)])


def _iterate(source: Any, text_column: str, title_column: str | None, links: bool) -> Iterator[tuple]:
    if isinstance(source, (str, Path)):
        source = [Path(source)]
    if not (isinstance(source, Sequence) and source and all(isinstance(path, Path) for path in source)):
        for number, (text, title) in enumerate(iterate_values(source, text_column, title_column)):
            yield f"Row {number}, column {text_column!r},", text, title, ()
        return
    for path in source:
        if file_of(path) is None and (match := _HUB_ID.fullmatch(path.as_posix())):
            for number, (text, title) in enumerate(iterate_values(_stream(match), text_column, title_column)):
                yield f"{path}, row {number},", text, title, ()
        elif _DUMP.search(path.name):
            yield from _iterate_dump(path, links)
        else:
            yield from ((where, text, title, ()) for where, text, title in iterate_file(path, title_column))


def _stream(match: re.Match) -> Any:
    import datasets

    try:
        return datasets.load_dataset(match["id"], match["configuration"], split="train", streaming=True)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{match[0]} is neither a local file nor a data set on the Hub that can be streamed ({reason}); check the "
            "name; a configuration follows after a colon, owner/name:configuration."
        ) from error


def _iterate_dump(path: Path, links: bool) -> Iterator[tuple[str, str, str, list[str]]]:
    from gensim.corpora.wikicorpus import filter_wiki

    if file_of(path) is None:
        raise DataError(f"{path}: there is no such file; give the path of a pages-articles dump.")
    try:
        with closing(_iterate_pages(path)) as pages:
            for title, markup in pages:
                yield f"{path}, page {title!r},", filter_wiki(markup), title, _links(markup) if links else []
    except (ElementTree.ParseError, OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as a MediaWiki dump ({error}); fetch it again.") from error


def _iterate_pages(path: Path) -> Generator[tuple[str, str], None, None]:
    """Title and markup of every article that is not a redirect. Each page is freed before the next one is read."""
    with _OPEN.get(path.suffix.lower(), open)(path, "rb") as file:
        counted = _Counted(file, path)
        events = ElementTree.iterparse(cast(IO[bytes], counted), events=("start", "end"))
        _, root = next(events)
        if _name(root) != "mediawiki":
            raise DataError(f"{path} holds {_name(root)!r} instead of a MediaWiki dump; give a pages-articles dump.")
        for event, element in events:
            if event == "end" and _name(element) == "page":
                fields = {_name(field): field.text or "" for field in element.iter()}
                if fields.get("ns", _ARTICLES) == _ARTICLES and "redirect" not in fields:
                    yield fields.get("title", ""), fields.get("text", "")
                root.clear()
                counted.since_page = 0


class _Counted:
    """A file for the parser, with an error for a page that is larger than any article."""

    def __init__(self, file: IO[bytes], path: Path):
        self.file, self.path, self.since_page = file, path, 0

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.since_page += len(content)
        if self.since_page > _MOST_PAGE_BYTES:
            raise DataError(f"{self.path}: a page of it has more than {_MOST_PAGE_BYTES:,} bytes; fetch it again.")
        return content


def _links(markup: str) -> list[str]:
    from gensim.corpora.wikicorpus import find_interlinks

    # A colon marks files, categories and other languages; a number sign a section.
    return [target.partition("#")[0] for target, _ in find_interlinks(markup) if ":" not in target]


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]  # without the namespace, which names the version of the format
