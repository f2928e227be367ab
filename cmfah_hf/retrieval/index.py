"""Exact search over packed hash codes: add, remove, search, save, load.

Shapes: `N` items, `Q` queries, `K` bits, `k` answers a query. The codes live in one NumPy array, in memory or mapped
from the file, which FAISS's kernels scan where it lies.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval.codes import as_array, check_bits, pack, round_for_aqd
from cmfah_hf.retrieval.scan import nearest_by_aqd, nearest_by_hamming, tied_by_aqd, tied_by_hamming

logger = logging.getLogger(__name__)

FORMAT, FORMAT_VERSION = "cmfah-hash-index", "1"
METRICS = ("hamming", "aqd")
Metric = Literal["hamming", "aqd"]

_TENSOR_TYPES = {"codes": "U8", "ids": "I64", "id_bytes": "U8", "id_ends": "I64"}


@dataclass(frozen=True, eq=False)
class SearchResults:
    """The `k` nearest items of each query, nearest first.

    Attributes:
        ids: `(Q, k)`, int64 or an object array of str, as they were added.
        scores: `(Q, k)`. Hamming: int32 distances, smaller is nearer. AQD: float32 scores, larger is nearer.
    """

    ids: np.ndarray
    scores: np.ndarray


class HashIndex:
    """An exact index over hash codes, ranked by Hamming distance or by `<z_q, B_x>` (`[aqd]`, see docs/method.md).

    The order of the answers is canonical, also where the cut at `k` goes through a tie: by score, then by id where ids
    are integers and by the order of insertion where they are strings. AQD takes the query's values rounded to multiples
    of 2^-14, which makes its scores exact and the same on every machine (see `round_for_aqd`).

    Args:
        bits: `K`, a multiple of 8 from 8 to 1024.

    Example:
        >>> index = HashIndex(bits=8)
        >>> index.add([[0.9] * 8, [-0.9] * 8, [0.9] * 4 + [-0.9] * 4], ids=["sea", "car", "dog"])
        >>> results = index.search([0.5] * 7 + [-0.1], k=2)
        >>> results.ids.tolist(), results.scores.tolist()
        ([['sea', 'dog']], [[1, 3]])
    """

    def __init__(self, bits: int = 64):
        self._bits = check_bits(bits)
        self._code_blocks: list[np.ndarray] = [np.empty((0, self._bits // 8), np.uint8)]
        self._id_blocks: list[np.ndarray] = [np.empty(0, np.int64)]
        self._count = 0
        # Integer ids from here on are known to be new, so that adding ids in rising order never needs the set below.
        self._next_id = 0
        self._known_ids: set | None = None

    @property
    def bits(self) -> int:
        """`K`, the number of bits of a code."""
        return self._bits

    @property
    def ids(self) -> np.ndarray:
        """The ids in the order of insertion: `(N,)`, int64 or an object array of str. Read-only."""
        view = self._merged(self._id_blocks).view()
        view.flags.writeable = False
        return view

    @property
    def next_id(self) -> int:
        """The integer id that an item gets that is added without one."""
        return self._next_id

    @property
    def codes(self) -> np.ndarray:
        """The packed codes in the order of `ids`: `(N, K / 8)` uint8. Read-only."""
        view = self._merged(self._code_blocks).view()
        view.flags.writeable = False
        return view

    def __len__(self) -> int:
        return self._count

    def __contains__(self, item_id: object) -> bool:
        if isinstance(item_id, bool) or not isinstance(item_id, (int, str, np.integer)):
            return False
        return item_id in self._id_set()

    def __repr__(self) -> str:
        return f"HashIndex(bits={self._bits}, items={self._count})"

    def add(self, codes: Any, ids: Sequence[int] | Sequence[str] | np.ndarray | None = None) -> None:
        """Adds items; either all of them or, on an error, none.

        Args:
            codes: `(N, K)` real hash values (or +-1), or `(N, K / 8)` uint8 packed codes; NumPy, PyTorch or lists.
            ids: `N` distinct integers or strings; an index holds one kind. By default, integers that go on from the
                largest one that was ever added.

        Raises:
            HashIndexError: On codes of another width, a NaN, an id that is there already or comes twice, or another
                kind of id than the index holds.
        """
        packed = self._packed(codes, "The codes")
        if ids is None and self._holds_strings:
            raise HashIndexError("The index holds string ids, which cannot be made up; give `ids`.")
        if ids is None:
            new_ids = np.arange(self._next_id, self._next_id + len(packed), dtype=np.int64)
        else:
            new_ids = _id_array(ids)
        if len(new_ids) != len(packed):
            raise HashIndexError(f"{len(packed)} codes came with {len(new_ids)} ids; give one id a code.")
        if not len(packed):
            return
        strings = new_ids.dtype == object
        if self._count and strings != self._holds_strings:
            held = "strings" if self._holds_strings else "integers"
            raise HashIndexError(
                f"The ids of this index are {held}, id {new_ids.tolist()[0]!r} is not; do not mix them."
            )
        self._refuse_duplicates(new_ids, strings)
        if not self._count:  # also turns an emptied index to the other kind of id
            self._id_blocks, self._code_blocks = [], []
        self._id_blocks.append(new_ids)
        self._code_blocks.append(packed.copy())
        self._count += len(new_ids)
        if not strings:
            self._next_id = max(self._next_id, int(new_ids.max()) + 1)
        if self._known_ids is not None:
            self._known_ids.update(new_ids.tolist())

    def remove(self, ids: Sequence[int] | Sequence[str] | np.ndarray) -> None:
        """Removes the items with these ids; either all of them or, on an error, none.

        Raises:
            HashIndexError: On an id that the index does not hold.
        """
        wanted = _id_array(ids).tolist()
        known = self._id_set()
        for item_id in wanted:
            if item_id not in known:
                raise HashIndexError(f"The index holds no id {item_id!r}, so it cannot be removed.")
        if not wanted:
            return
        held = self._merged(self._id_blocks)
        gone = set(wanted)
        keep = np.fromiter((item_id not in gone for item_id in held.tolist()), bool, len(held))
        self._code_blocks = [self._merged(self._code_blocks)[keep]]
        self._id_blocks = [held[keep]]
        self._count = int(keep.sum())
        known -= gone

    def search(self, hash_values: Any, k: int = 10, metric: Metric = "hamming") -> SearchResults:
        """The `k` nearest items of each query, exactly, in the canonical order.

        Args:
            hash_values: `(Q, K)` real hash values, or `(K,)` for one query (the answer has `Q = 1`). For `"hamming"`,
                `(Q, K / 8)` uint8 packed codes will do.
            k: How many answers; all items, with a logged warning, where the index holds fewer.
            metric: `"hamming"` or `"aqd"`.

        Raises:
            HashIndexError: On queries of another width or unreal values, or an empty index.
            QueryError: On an unknown metric or a `k` below 1.
        """
        if metric not in METRICS:
            raise QueryError(f"There is no ranking {metric!r}; take one of {', '.join(METRICS)}.")
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise QueryError(f"k must be a whole number of at least 1, not {k!r}.")
        if not self._count:
            raise HashIndexError("The index is empty; add items before searching it.")
        queries = as_array(hash_values)
        queries = queries[None] if queries.ndim == 1 else queries
        if queries.ndim != 2:
            raise HashIndexError(f"Queries are one row a query, not an array of shape {queries.shape}.")
        if k > self._count:
            logger.warning("k = %d was asked of an index of %d items; all of them are returned.", k, self._count)
            k = self._count
        if metric == "hamming":
            queries = np.ascontiguousarray(self._packed(queries, "The queries"))
            nearest, tied = nearest_by_hamming, tied_by_hamming
        else:
            if queries.dtype == np.uint8:
                raise HashIndexError("AQD ranks by the query's real hash values, not by packed codes; give the values.")
            self._check_width(queries, queries.shape[1], "The queries")
            queries = np.ascontiguousarray(round_for_aqd(queries))
            nearest, tied = nearest_by_aqd, tied_by_aqd
        codes, ids = self._merged(self._code_blocks), self._merged(self._id_blocks)
        # Scores ascend here whatever the metric: distances as they are, products negated.
        scores, positions = nearest(queries, codes, min(k + 1, self._count))
        tie_keys = positions if ids.dtype == object else ids[positions]
        order = np.lexsort((tie_keys, scores), axis=-1)
        scores, positions = np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)
        if k < self._count:
            for row in np.flatnonzero(scores[:, k] == scores[:, k - 1]):
                group = tied(queries[row : row + 1], codes, scores[row, k - 1])
                group = group[np.argsort(group if ids.dtype == object else ids[group])]
                # What is nearer than the tie is complete already; the first of the whole group fill up the rest.
                nearer = int(np.searchsorted(scores[row], scores[row, k - 1]))
                positions[row, nearer:k] = group[: k - nearer]
            scores, positions = scores[:, :k], positions[:, :k]
        return SearchResults(ids=ids[positions], scores=0.0 - scores if metric == "aqd" else scores)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the index into one safetensors file, whole or not at all (a reader never sees half of one).

        Raises:
            HashIndexError: If `path` is a folder.
        """
        path = Path(path)
        if path.is_dir():
            raise HashIndexError(f"{path} is a folder; name a file in it for the index.")
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = self._merged(self._id_blocks)
        tensors = {"codes": np.ascontiguousarray(self._merged(self._code_blocks))}
        if ids.dtype == object:
            # Lone surrogates stand in file names that are no UTF-8; they must come back as they were.
            encoded = [item_id.encode("utf-8", "surrogatepass") for item_id in ids]
            tensors["id_bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
            tensors["id_ends"] = np.cumsum([len(item_id) for item_id in encoded], dtype=np.int64)
        else:
            tensors["ids"] = np.ascontiguousarray(ids)
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "bits": str(self._bits),
            "count": str(self._count),
            "id_type": "str" if ids.dtype == object else "int",
            "next_id": str(self._next_id),
        }
        header["checksum"] = _checksum(header, tensors)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            safetensors.numpy.save_file(tensors, temporary, metadata=header)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike, mmap: bool = False, bits: int | None = None) -> "HashIndex":
        """Reads an index that `save` wrote.

        Args:
            path: The file.
            mmap: Map codes and integer ids from the file, which must then stay as it is, instead of copying them to
                memory. Either way the file is read through once, to check it.
            bits: `K`, where the caller expects one.

        Raises:
            HashIndexError: If the file is missing, damaged, of another kind or version, or holds codes of another width
                than `bits`.
        """
        path = Path(path)
        header, tensors = _read(path)
        index = cls(int(header["bits"]))
        if bits is not None and bits != index._bits:
            raise HashIndexError(f"{path} holds codes of {index._bits} bits, where {bits} were expected.")
        index._count, index._next_id = int(header["count"]), int(header["next_id"])
        if header["id_type"] == "str":
            ids = np.empty(index._count, object)
            raw, start = tensors["id_bytes"].tobytes(), 0
            for position, end in enumerate(tensors["id_ends"].tolist()):
                ids[position] = raw[start:end].decode("utf-8", "surrogatepass")
                start = end
        else:
            ids = tensors["ids"] if mmap else np.array(tensors["ids"])
        index._id_blocks = [ids]
        index._code_blocks = [tensors["codes"] if mmap else np.array(tensors["codes"])]
        return index

    @property
    def _holds_strings(self) -> bool:
        return bool(self._count) and self._id_blocks[0].dtype == object

    @staticmethod
    def _merged(blocks: list[np.ndarray]) -> np.ndarray:
        # Many small additions cost one copy, at the next search, instead of one each.
        if len(blocks) > 1:
            blocks[:] = [np.concatenate(blocks)]
        return blocks[0]

    def _id_set(self) -> set:
        if self._known_ids is None:
            self._known_ids = set(self._merged(self._id_blocks).tolist())
        return self._known_ids

    def _refuse_duplicates(self, new_ids: np.ndarray, strings: bool) -> None:
        if not strings and new_ids[0] >= self._next_id and (np.diff(new_ids) > 0).all():
            return
        known, seen = self._id_set(), set()
        for item_id in new_ids.tolist():
            if item_id in known:
                raise HashIndexError(f"The index holds id {item_id!r} already; remove it first, or give another id.")
            if item_id in seen:
                raise HashIndexError(f"Id {item_id!r} comes twice among the new ids; every item needs its own.")
            seen.add(item_id)

    def _packed(self, codes: Any, what: str) -> np.ndarray:
        codes = as_array(codes)
        if codes.ndim != 2:
            raise HashIndexError(f"{what} are a matrix of one row an item, not an array of shape {codes.shape}.")
        if codes.dtype == np.uint8:
            self._check_width(codes, codes.shape[1] * 8, what)
            return codes
        self._check_width(codes, codes.shape[1], what)
        return pack(codes)

    def _check_width(self, codes: np.ndarray, width: int, what: str) -> None:
        if width != self._bits:
            read_as = " (uint8 is read as packed codes, eight bits a byte)" if codes.dtype == np.uint8 else ""
            raise HashIndexError(f"{what} have {width} bits, the index has {self._bits}{read_as}.")


def _id_array(ids: Iterable) -> np.ndarray:
    """Ids as a fresh int64 array, or as an object array of str."""
    if isinstance(ids, (str, bytes, int)):
        raise HashIndexError(f"Ids come as a list, not as {ids!r} alone.")
    items = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    items = [item_id.item() if isinstance(item_id, np.generic) else item_id for item_id in items]
    kinds = {type(item_id) for item_id in items}
    if kinds <= {int}:
        try:
            return np.array(items, dtype=np.int64)
        except OverflowError:
            raise HashIndexError("An integer id needs more than 64 bits; give it as a string.") from None
    if kinds == {str}:
        strings = np.empty(len(items), object)
        strings[:] = items
        return strings
    if kinds == {int, str}:
        raise HashIndexError("Some ids are integers and some are strings; an index holds one kind.")
    wrong = next(item_id for item_id in items if type(item_id) not in (int, str))
    raise HashIndexError(f"An id is an integer or a string, not {wrong!r}.")


def _checksum(header: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps({k: v for k, v in header.items() if k != "checksum"}, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].shape}".encode())
        if tensors[name].size:
            digest.update(memoryview(tensors[name]).cast("B"))
    return f"sha256:{digest.hexdigest()}"


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The checked header of an index file and its tensors, mapped from it."""
    if not path.is_file():
        raise HashIndexError(f"{path} is no file; give the file that an index was saved to.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise HashIndexError(f"{path} is damaged or no hash index ({error}); save the index anew.") from error
    if header.get("format") != FORMAT:
        raise HashIndexError(f"{path} is safetensors but no hash index; give the file that an index was saved to.")
    if header.get("version") != FORMAT_VERSION:
        raise HashIndexError(
            f"{path} has version {header.get('version')} of the format, this release reads version {FORMAT_VERSION}; "
            "save the index anew."
        )
    tensors = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        layout = json.loads(file.read(length))
    for name, entry in layout.items():
        if name in _TENSOR_TYPES and entry["dtype"] == _TENSOR_TYPES[name]:
            dtype, shape = np.dtype({"U8": "u1", "I64": "<i8"}[entry["dtype"]]), tuple(entry["shape"])
            start = 8 + length + entry["data_offsets"][0]
            # An empty range cannot be mapped. The plain array over the map is what FAISS takes.
            mapped = np.memmap(path, dtype, "r", start, shape) if np.prod(shape) else np.empty(shape, dtype)
            tensors[name] = np.asarray(mapped)
    if header.get("checksum") != _checksum(header, tensors) or not _fits(header, tensors):
        raise HashIndexError(f"{path} is damaged: its content does not match its checksum; save the index anew.")
    return header, tensors


def _fits(header: dict[str, str], tensors: dict[str, np.ndarray]) -> bool:
    """Whether the shapes are those that the header promises. The kernels read past the end of what is too short."""
    try:
        bits, count, _ = check_bits(int(header["bits"])), int(header["count"]), int(header["next_id"])
    except (KeyError, ValueError):
        return False
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if header.get("id_type") == "str":
        return shapes == {"codes": (count, bits // 8), "id_ends": (count,), "id_bytes": shapes.get("id_bytes")}
    return shapes == {"codes": (count, bits // 8), "ids": (count,)}
