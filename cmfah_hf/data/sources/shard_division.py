"""The division of shards into training pairs and held-out queries, by hashes of the names of samples."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from cmfah_hf.data.splits import in_validation
from cmfah_hf.documents import read_json
from cmfah_hf.errors import DataError

# The file in a folder of shards that says how their split `train` is divided.
DIVISION_NAME = "cmfah-shards.json"
TRAIN, QUERY = "train", "query"


@dataclass(frozen=True)
class ShardDivision:
    """A division: about the share `queries` of all samples is the split `query`, drawn by `seed`."""

    queries: float
    seed: int = 0

    def split_of(self, shard: str, key: str) -> str:
        """The split of a sample by the name of its shard and its key. It does not depend on other samples."""
        return QUERY if in_validation(f"{shard}/{key}", self.queries, self.seed) else TRAIN

    def as_text(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def read_division(folder: Path) -> ShardDivision | None:
    """The division in a folder, if there is one. Raises a `DataError` if it is no valid one."""
    path = folder / DIVISION_NAME
    if not path.is_file():
        return None
    document = read_json(path, DataError, 2**20)
    values = document if isinstance(document, dict) else {}
    queries, seed = values.get("queries"), values.get("seed")
    if not isinstance(queries, int | float) or not 0 < queries < 1 or not isinstance(seed, int):
        raise DataError(
            f"{path}: is no division of shards; make it by `cmfah data from-folder`, such as "
            f"{ShardDivision(0.1).as_text().strip()}."
        )
    return ShardDivision(queries, seed)


def division_of(files: Iterable[str], root: Path | None) -> ShardDivision | None:
    """The division of shards: that in their folder, in the one above it, or in `root`.

    Raises:
        DataError: If it is not the same for all of them.
    """
    found: dict[ShardDivision | None, Path] = {}
    for folder in dict.fromkeys(Path(file).absolute().parent for file in files):
        places = [folder, folder.parent, *([] if root is None else [root])]
        found.setdefault(next((own for place in places if (own := read_division(place)) is not None), None), folder)
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise DataError(
            f"{first} and {second}: their {DIVISION_NAME} differ, so queries might be trained on; copy one."
        )
    return next(iter(found), None)
