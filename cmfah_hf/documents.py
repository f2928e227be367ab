"""Untrusted JSON, YAML and XML: size limits, checks, and errors of one line that name the file."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import yaml

from cmfah_hf.errors import CMFAHError

# The JSON of a tokenizer with a million words has about 30 MB.
MOST_BYTES = 256 * 2**20
MOST_DEPTH = 100
# Values of a YAML document; an alias counts every time it is used.
MOST_YAML_VALUES = 100_000
# Characters of an entity that an XML document defines; drawing programs use entities for addresses of namespaces.
MOST_ENTITY = 200

_SURROGATE = re.compile("[\ud800-\udfff]")


def file_of(path: str | os.PathLike) -> Path | None:
    """`path` if it is a regular file, else `None`; also for invalid names, where `Path.is_file` raises an error."""
    try:
        return Path(path) if Path(path).is_file() else None
    except (OSError, ValueError):
        return None


def read_bytes(path: str | os.PathLike, error: type[CMFAHError] = CMFAHError, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a regular file; pipes and devices, which may never end, are refused without waiting."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            content = file.read(most_bytes + 1) if regular else b""
    except FileNotFoundError:
        raise error(f"{path} does not exist; check the path.") from None
    except IsADirectoryError:
        raise error(f"{path} is a folder; give a file.") from None
    except (OSError, ValueError) as reason:  # ValueError: a null character in the name
        why = getattr(reason, "strerror", None) or reason
        raise error(f"{os.fspath(path)!r} cannot be read ({why}); check the path.") from reason
    if not regular:
        raise error(f"{path} is not a regular file; give one.")
    if len(content) > most_bytes:
        raise error(f"{path} has more than {most_bytes:,} bytes, which no such file needs; check what it is.")
    return content


def read_json(path: str | os.PathLike, error: type[CMFAHError] = CMFAHError, most_bytes: int = MOST_BYTES) -> Any:
    """The value of a JSON file, as `parse_json` checks it."""
    return parse_json(read_bytes(path, error, most_bytes), str(path), error)


def parse_json(text: str | bytes, where: str, error: type[CMFAHError] = CMFAHError) -> Any:
    """The value of a JSON text; `where` is its file, or its file and line, in errors.

    Refused are repeated keys, nesting beyond `MOST_DEPTH`, and half of a surrogate pair, which no file can store as
    text.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_unique)
    except _DocumentError as reason:
        raise error(f"{where}{reason}") from None
    except RecursionError:
        raise error(f"{where} is nested too deep for a document; write it flat.") from None
    except ValueError as reason:  # malformed, not UTF-8, or an integer of thousands of digits
        raise error(f"{where} is not valid JSON ({_in_one_line(reason)}); correct it.") from reason
    # Only a text with this many brackets can be nested too deep, and only one with an escape can hold a surrogate.
    if text.count("[") + text.count("{") > MOST_DEPTH or "\\u" in text or _SURROGATE.search(text):
        _check(value, where, error)
    return value


def read_yaml(path: str | os.PathLike, error: type[CMFAHError] = CMFAHError, most_bytes: int = 2**20) -> Any:
    """The value of a YAML file, as `parse_yaml` checks it."""
    return parse_yaml(read_bytes(path, error, most_bytes), str(path), error)


def parse_yaml(text: str | bytes, where: str, error: type[CMFAHError] = CMFAHError) -> Any:
    """The value of a YAML text with plain values only, without tags for objects of a language.

    `1e-4` is a number, as in YAML 1.2; PyYAML alone reads it as text. Refused are repeated keys, keys that are lists or
    mappings, values that contain themselves, and documents that are too deep or, with aliases expanded, too large.
    """
    try:
        return yaml.load(text.decode("utf-8-sig") if isinstance(text, bytes) else text, Loader=_Loader)
    except _DocumentError as reason:
        raise error(f"{where}{reason}") from None
    except RecursionError:
        raise error(f"{where} is nested too deep for a document; write it flat.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as reason:  # ValueError: not UTF-8, or an impossible date
        # Not `from` the reason: it quotes the text, which may contain a token.
        raise error(f"{where} is not valid YAML ({_in_one_line(reason)}); correct it.") from None


def parse_xml(
    text: str | bytes, where: str, error: type[CMFAHError] = CMFAHError, allow_entities: bool = False
) -> Element:
    """The root element of an XML text, with names such as `{namespace}name`; nothing outside the text is read.

    Refused are nesting beyond `MOST_DEPTH`, and definitions of entities. With `allow_entities`, definitions of plain
    texts of up to `MOST_ENTITY` characters are accepted.
    """
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    tree = _Tree()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = tree.start, tree.end, tree.data

    def define(name: str, is_parameter: bool, value: str | None, *places: str | None) -> None:
        if not allow_entities or is_parameter or value is None or "&" in value or len(value) > MOST_ENTITY:
            raise _DocumentError(f" defines the entity {name[:80]!r}, which is not read; write its text instead.")

    parser.EntityDeclHandler = define
    try:
        parser.Parse(text, True)
        return tree.close()
    except _DocumentError as reason:
        raise error(f"{where}{reason}") from None
    except (expat.ExpatError, ValueError, LookupError) as reason:  # malformed, or in an unknown encoding
        raise error(f"{where} is not valid XML ({_in_one_line(reason)}); correct it.") from reason


class _DocumentError(Exception):
    """A fault of a document; its message follows the name of the document."""


class _Tree:
    """Builds the elements that an XML parser reports, up to a depth."""

    def __init__(self) -> None:
        self._builder, self._depth = TreeBuilder(), 0
        self.data, self.close = self._builder.data, self._builder.close

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _DocumentError(f" is nested more than {MOST_DEPTH} deep; write it flat.")
        self._builder.start(_full(name), {_full(key): value for key, value in attributes.items()})

    def end(self, name: str) -> None:
        self._depth -= 1
        self._builder.end(_full(name))


def _full(name: str) -> str:
    return f"{{{name}" if "}" in name else name


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, which checks a document before it builds any value."""

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        if self.flow_level >= MOST_DEPTH:  # each token costs time for every open bracket
            raise _DocumentError(f": line {self.line + 1} is nested more than {MOST_DEPTH} deep; write it flat.")
        super().fetch_flow_collection_start(token_class)

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_node(node)
        return node


# YAML 1.1 reads `1e-3` as text, but a learning rate is meant as a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _check_node(root: yaml.Node) -> None:
    """Refuses documents that are costly or ambiguous to build; size and depth count an alias as its target."""
    measured: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in measured:
            return measured[id(node)]
        if id(node) in open_nodes:
            raise _DocumentError(f": line {_line(node)} contains itself; write it out.")
        open_nodes.add(id(node))
        parts = [measure(part) for part in _parts(node)]
        open_nodes.discard(id(node))
        size, depth = 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)
        if size > MOST_YAML_VALUES:
            raise _DocumentError(f" has more than {MOST_YAML_VALUES:,} values, aliases written out; shorten it.")
        if depth > MOST_DEPTH:
            raise _DocumentError(f": line {_line(node)} is nested more than {MOST_DEPTH} deep; write it flat.")
        measured[id(node)] = size, depth
        return size, depth

    measure(root)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _DocumentError(f": line {_line(key)} has a list or a mapping as a key; a key is a text.")
        name = (key.tag, key.value)
        if name in lines:
            raise _DocumentError(
                f": line {_line(key)} gives {key.value[:80]!r}, as line {lines[name]} does; leave one of them out."
            )
        lines[name] = _line(key)
    return [value for _, value in node.value]


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _DocumentError(f" gives {twice[:80]!r} twice; leave one of them out.")
    return found


def _check(value: Any, where: str, error: type[CMFAHError]) -> None:
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            if _SURROGATE.search(item):
                raise error(f"{where} holds half of a surrogate pair in {item[:80]!r}; correct that text.")
        elif isinstance(item, (list, dict)):
            if depth == MOST_DEPTH:
                raise error(f"{where} is nested more than {MOST_DEPTH} deep; write it flat.")
            pending += [(part, depth + 1) for part in item]
            if isinstance(item, dict):
                pending += [(part, depth + 1) for part in item.values()]


def _in_one_line(reason: Exception) -> str:
    if isinstance(reason, yaml.MarkedYAMLError) and reason.problem_mark is not None:
        return f"{reason.problem}, line {reason.problem_mark.line + 1}, column {reason.problem_mark.column + 1}"
    return " ".join(str(reason).split())[:300]
