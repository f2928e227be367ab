"""The result of an update of the folders of an index."""

from dataclasses import dataclass, field
from typing import Any

# Unreadable images that are named to people.
_MOST_NAMED = 5


@dataclass
class FolderChanges:
    """The changes of an update of the folders of an index, done or planned.

    Attributes:
        added: Images that are new.
        changed: Images with another content or other metadata.
        renamed: Images with another name, whose code stays.
        removed: Images that are gone.
        unchanged: Images that are as before.
        left_out: Images that were removed from the index by hand and are still in their folder.
        kept: Images below folders that cannot be reached, which stay in the index.
        unreadable: For each image that cannot be read, the reason.
        skipped: Numbers of files that are no images, by ending or reason.
        missing: The paths of folders that are gone.
        steps: After a comparison alone: the ids of `added`, `changed` and `removed`, and pairs of `renamed`; else None.
    """

    added: int = 0
    changed: int = 0
    renamed: int = 0
    removed: int = 0
    unchanged: int = 0
    left_out: int = 0
    kept: int = 0
    unreadable: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    steps: dict[str, list] | None = None

    def counts(self) -> dict[str, Any]:
        """Everything but the steps, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "steps"}

    def unreadable_lines(self) -> list[str]:
        """Lines for people: the first images that cannot be read, with their reasons, and the number of the others."""
        lines = [f"unreadable: {line}" for line in self.unreadable[:_MOST_NAMED]]
        others = len(self.unreadable) - len(lines)
        return [*lines, f"unreadable: {others:,} more"] if others else lines

    def __str__(self) -> str:
        parts = [
            f"{self.added:,} new", f"{self.changed:,} changed", f"{self.renamed:,} renamed",
            f"{self.removed:,} removed", f"{self.unchanged:,} as before", f"{len(self.unreadable):,} unreadable",
        ]  # fmt: skip
        parts += [f"{self.left_out:,} left out by hand"] if self.left_out else []
        parts += [f"{self.kept:,} kept that cannot be reached now"] if self.kept else []
        return ", ".join(parts)
