"""Changes of a sharded index before they reach a shard: tried on a small index, then divided among the shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.cluster.manifest import Manifest, Revision, schema_of_text
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.storage.ids import id_array

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class State:
    """The expected state of the shards, replaced as a whole: a search in another thread sees one state or the next."""

    revisions: tuple[Revision, ...]
    counts: tuple[int, ...]
    next_id: int = 0
    id_type: Literal["int", "str"] | None = None
    schema: "pyarrow.Schema | None" = None

    @classmethod
    def of(cls, manifest: Manifest) -> "State":
        """The state that a manifest describes."""
        revisions = tuple(shard.revision for shard in manifest.shards)
        counts = tuple(shard.items for shard in manifest.shards)
        return cls(revisions, counts, manifest.next_id, manifest.id_type, schema_of_text(manifest.schema))

    @property
    def filled(self) -> list[int]:
        """The shards that hold items."""
        return [shard for shard, count in enumerate(self.counts) if count]


def listed(ids: Any) -> Any:
    """Ids that can be iterated over only once as a list; all others unchanged."""
    if ids is None or hasattr(ids, "tolist") or isinstance(ids, (str, bytes, int, list, tuple)):
        return ids
    return list(ids)


def valid_ids(ids: Any) -> np.ndarray:
    """The ids as an array, int64 or objects of str; empty if `HashIndex` would reject them."""
    try:
        return np.empty(0, np.int64) if ids is None else id_array(ids)
    except HashIndexError:
        return np.empty(0, np.int64)


def type_of(ids: np.ndarray) -> Literal["int", "str"]:
    """The type of an array of ids."""
    return "str" if ids.dtype == object else "int"


def trial_index(
    bits: int, held: Sequence[int] | Sequence[str], ids: np.ndarray, strings: bool, schema: "pyarrow.Schema | None"
) -> HashIndex:
    """A small index of the items that a change names, with codes of zeros and metadata of nulls, to try the change on.

    It rejects whatever `HashIndex` rejects, in the same words, before any shard has changed. One more item represents
    all others: the type of their ids and the columns of their metadata. `held` are those of `ids` that the whole index
    holds; `strings` and `schema` describe its ids and metadata.
    """
    taken = set(ids.tolist())
    names = (f"\0{number}" for number in count()) if strings else count(-(2**63))
    rows = [*held, next(name for name in names if name not in taken)]
    nulls = None
    if schema is not None:
        import pyarrow

        nulls = pyarrow.Table.from_pylist([{}] * len(rows), schema=schema)
    tried = HashIndex(bits)
    tried.add(np.zeros((len(rows), bits // 8), np.uint8), rows, nulls)
    return tried


def arguments_after(tried: HashIndex, ids: np.ndarray, codes: Any, metadata: Any) -> dict[str, Any]:
    """The codes and the metadata of a change, if given, as the index that it was tried on holds them.

    They are packed, have the types of the index's columns, and are in the order of `ids`.
    """
    place = {item_id: row for row, item_id in enumerate(tried.ids.tolist())}
    rows = np.array([place[item_id] for item_id in ids.tolist()], np.int64)
    arguments = {} if codes is None else {"codes": tried.codes[rows]}
    if metadata is not None and tried.metadata is not None:
        columns = getattr(metadata, "column_names", None) or list(metadata)
        arguments["metadata"] = tried.metadata.take(rows).select(columns)
    return arguments


def arguments_at(arguments: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """The rows of the arguments that one shard gets."""
    return {
        name: value[rows] if isinstance(value, np.ndarray) else value.take(rows) for name, value in arguments.items()
    }
