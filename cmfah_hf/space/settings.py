"""Settings of a Space: model, data, number of images, title."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cmfah_hf.documents import read_json
from cmfah_hf.errors import CMFAHError
from cmfah_hf.space.hosts import host_name

SETTINGS_NAME = "space.json"
SCENES = "scenes"
_MOST_IMAGES = 20_000
# Maximum bytes of a `space.json`.
_MOST_BYTES = 2**20
# Maximum results of a search, and characters of its query.
MOST_RESULTS, LONGEST_QUERY = 24, 300


@dataclass(frozen=True)
class SpaceSettings:
    """The settings in a Space's `space.json`.

    Args:
        model: A folder (relative ones below the Space's own), or a Hub id.
        data: The images, one source or several: a folder of images, an image, or a source of `load_image_text`;
            `"scenes"` are those that the embedded model was not trained on. Or an index of folders, whose items are
            searched without being encoded.
        split: Of the data. None: `database` if present, else `train`, else the first.
        limit: Maximum number of images that are encoded, the first ones of the split, of several sources in turn.
        title: Title of the page.
        examples: Example queries. Empty: texts of the images.
        hosts: Further host names or addresses under which the page is reached, beyond this machine's own, the address
            that the server listens at, and the Space's host on the Hub.
        mcp: Whether agents can search, by the Model Context Protocol. It needs the extra `mcp`.
    """

    model: str = "model"
    data: str | tuple[str, ...] = SCENES
    split: str | None = None
    limit: int = 320
    title: str = "Cross-media search in 64 bits"
    examples: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    mcp: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or not 1 <= self.limit <= _MOST_IMAGES:
            raise CMFAHError(f"limit={self.limit!r:.80}: a Space shows from 1 to {_MOST_IMAGES:,} images.")
        if isinstance(self.data, (list, tuple)) and self.data and all(map(_is_name, self.data)):
            object.__setattr__(self, "data", tuple(self.data))
        elif not _is_name(self.data):
            raise CMFAHError(f"data={self.data!r:.80}: the Space's data is a text, or a list of texts; give one.")
        for name in ("model", "title"):
            if not _is_name(getattr(self, name)):
                raise CMFAHError(f"{name}={getattr(self, name)!r:.80}: the Space's {name} is a text; give one.")
        if self.split is not None and not isinstance(self.split, str):
            raise CMFAHError(f"split={self.split!r:.80}: the name of a split is a text; give one, or null.")
        if not isinstance(self.mcp, bool):
            raise CMFAHError(f"mcp={self.mcp!r:.80}: give true, so that agents can search, or false.")
        for name in ("examples", "hosts"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
                raise CMFAHError(f"{name}={values!r:.80}: they are a list of texts; give one.")
            object.__setattr__(self, name, tuple(values))
        for host in self.hosts:
            host_name(host)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of `data`."""
        return (self.data,) if isinstance(self.data, str) else self.data

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "SpaceSettings":
        """Reads the settings of a Space's folder.

        Raises:
            CMFAHError: If the file is missing or damaged, or has unknown settings.
        """
        path = Path(folder) / SETTINGS_NAME
        content = read_json(path, most_bytes=_MOST_BYTES)
        known = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or set(content) - known:
            raise CMFAHError(f"{path}: has settings other than {', '.join(sorted(known))}; correct it.")
        return cls(**content)

    def to_json(self) -> str:
        """The content of `space.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def model_source(self, folder: Path) -> str:
        """The source of the model: a folder below the Space's folder if it exists, else the name itself."""
        inside = folder / self.model
        return str(inside) if inside.is_dir() else self.model


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def bundled_space() -> Path:
    """The folder of the embedded Space: in the package if installed, next to it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "space_files", package.parent / "spaces" / "cmfah-search"):
        if (folder / SETTINGS_NAME).is_file():
            return folder
    raise CMFAHError("The embedded Space is missing; install the package again.")
