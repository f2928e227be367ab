"""The blocks of a page, and the commands of a shell block."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# The reference is generated from docstrings, whose examples are run separately.
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
REFERENCE = sorted((DOCS / "api").glob("*.md"))
# `text` blocks are only shown; `math` blocks are typeset by GitHub.
LANGUAGES = {"bash", "python", "json", "yaml", "text", "math"}
_FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page below the project's folder, the line of its fence, its language, its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page from top to bottom."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    return [
        Block(name, text[: match.start()].count("\n") + 1, match[2].strip(), match[3])
        for match in _FENCE.finditer(text)
    ]


@dataclass(frozen=True)
class Command:
    """One command: its words as split by a shell, and the file piped into it."""

    place: str
    words: list[str]
    stdin: str | None = None

    def __str__(self) -> str:
        return " ".join(self.words)


def commands(block: Block) -> list[Command]:
    """The commands of a block, one per line; a backslash at the end of a line continues it."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words, stdin = shlex.split(line, comments=True), None
        if "|" in words:
            cat, stdin, bar, *words = words
            assert (cat, bar) == ("cat", "|"), f"{block.place}: {line}"
        if words:
            found.append(Command(block.place, words, stdin))
    return found
