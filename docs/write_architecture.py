"""Writes the file tables of docs/architecture.md from the first line of each module's docstring."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
_TABLES = re.compile(r"(<!-- files: [^>]*-->\n).*?(<!-- end of files -->)", re.DOTALL)


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring as one line, without its final period."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    if not docstring:
        raise ValueError(f"{path}: has no docstring; begin the file with one line on what it holds.")
    return " ".join(docstring.partition("\n\n")[0].split()).removesuffix(".").replace("|", "\\|")


def tables(package: Path = ROOT / "cmfah_hf") -> str:
    """A heading and a table for each folder of the package, the package itself first."""
    folders = sorted({path.parent for path in package.rglob("*.py")})
    parts = []
    for folder in folders:
        rows = [f"| `{path.name}` | {summary(path)} |" for path in sorted(folder.glob("*.py"))]
        name = folder.relative_to(package.parent).as_posix()
        parts.append("\n".join([f"### `{name}/`", "", "| file | contents |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def written(page: str) -> str:
    """The page with its tables made anew."""
    return _TABLES.sub(lambda match: f"{match[1]}\n{tables()}\n\n{match[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE, file=sys.stdout)  # noqa: T201
