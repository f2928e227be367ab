"""A change of a sharded index, before any shard sees it: its ids, a small index to try it on, what each shard gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.cluster.manifest import Revision
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
    id_type: str | None = None
    schema: "pyarrow.Schema | None" = None


def listed(ids: Any) -> Any:
    """Ids that can be gone through only once as a list; all others as they are."""
    if ids is None or hasattr(ids, "tolist") or isinstance(ids, (str, bytes, int, list, tuple)):
        return ids
    return list(ids)


def routable(ids: Any) -> np.ndarray | None:
    """Ids as an array that tells their shards, int64 or objects of str; `None` for what `HashIndex` refuses."""
    try:
        return id_array(ids)
    except HashIndexError:
        return None


def id_type(ids: np.ndarray) -> str:
    """`"int"` or `"str"`."""
    return "str" if ids.dtype == object else "int"


def trial_index(
    bits: int, held: Sequence[int] | Sequence[str], ids: np.ndarray, strings: bool, schema: "pyarrow.Schema | None"
) -> HashIndex:
    """A small index of the items that a change names, with codes of zeros and metadata of nulls, to try it on.

    So whatever `HashIndex` refuses is refused by it, in its words, while no shard has changed. One further item stands
    for all others: for the kind of their ids and the columns of their metadata.

    Args:
        bits: `K`.
        held: Those of `ids` that the whole index holds, each once.
        ids: All that the change names.
        strings: Whether the ids of the whole index are strings.
        schema: Of its metadata, if it has any.
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
    """The codes and the metadata of a change, where they were given, as the index holds them that it was tried on:
    packed, with the types that the columns have there, in the order of `ids`."""
    place = {item_id: row for row, item_id in enumerate(tried.ids.tolist())}
    rows = np.array([place[item_id] for item_id in ids.tolist()], np.int64)
    arguments = {} if codes is None else {"codes": tried.codes[rows]}
    if metadata is not None and tried.metadata is not None:
        columns = getattr(metadata, "column_names", None) or list(metadata)
        arguments["metadata"] = tried.metadata.take(rows).select(columns)
    return arguments


def arguments_at(arguments: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    """The arguments for one shard, which gets these rows of them."""
    return {
        name: value[rows] if isinstance(value, np.ndarray) else value.take(rows) for name, value in arguments.items()
    }
