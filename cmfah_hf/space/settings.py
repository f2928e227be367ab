"""What a Space shows: which model, which pictures, how many, and under which title."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cmfah_hf.errors import CMFAHError

SETTINGS_NAME = "space.json"
SCENES = "scenes"
_MOST_PICTURES = 20_000
# Of one search: answers, and characters of its words.
MOST_RESULTS, LONGEST_QUERY = 24, 300


@dataclass(frozen=True)
class SpaceSettings:
    """The settings of a Space, as its `space.json` holds them.

    Args:
        model: A folder, relative ones below the Space's own; or a Hub id.
        data: What `load_image_text` takes; `"scenes"` draws those that the embedded model was not trained on.
        split: Of the data. None: `database` where there is one, else `train`, else the first.
        limit: The most pictures that are shown; the first ones of the split.
        title: Above the page.
        examples: Queries to begin with. Empty: texts of the pictures.
    """

    model: str = "model"
    data: str = SCENES
    split: str | None = None
    limit: int = 320
    title: str = "Cross-media search in 64 bits"
    examples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or not 1 <= self.limit <= _MOST_PICTURES:
            raise CMFAHError(f"limit={self.limit!r}: a Space shows from 1 to {_MOST_PICTURES:,} pictures.")
        for name in ("model", "data", "title"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise CMFAHError(f"{name}={getattr(self, name)!r}: the Space's {name} is a text; give one.")
        if self.split is not None and not isinstance(self.split, str):
            raise CMFAHError(f"split={self.split!r}: the name of a split is a text; give one, or null.")
        if isinstance(self.examples, str) or not all(isinstance(query, str) for query in self.examples):
            raise CMFAHError(f"examples={self.examples!r}: queries are a list of texts; give one.")
        object.__setattr__(self, "examples", tuple(self.examples))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "SpaceSettings":
        """Those of a Space's folder.

        Raises:
            CMFAHError: If the file is missing or damaged, or holds what is no setting.
        """
        path = Path(folder) / SETTINGS_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CMFAHError(f"{path}: there is no such file; a Space needs it beside its app.py.") from None
        except (OSError, ValueError) as error:
            raise CMFAHError(f"{path}: cannot be read as JSON ({error}); correct it.") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or set(content) - known:
            raise CMFAHError(f"{path}: holds other settings than {', '.join(sorted(known))}; correct it.")
        return cls(**content)

    def to_json(self) -> str:
        """The text of `space.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def model_source(self, folder: Path) -> str:
        """Where the model is loaded from: the folder below the Space's own where there is one, else as it is named."""
        inside = folder / self.model
        return str(inside) if inside.is_dir() else self.model


def bundled_space() -> Path:
    """The folder of the Space that comes with the package: inside it where it is installed, beside it in a checkout.

    Raises:
        CMFAHError: If it did not come with the package.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "space_files", package.parent / "spaces" / "cmfah-search"):
        if (folder / SETTINGS_NAME).is_file():
            return folder
    raise CMFAHError("The embedded Space did not come with the package; install it again.")
