"""The matrices in which research code passes data sets around: `.mat` and `.h5` files of pictures, tags and labels.

MATLAB 5 and HDF5 (MATLAB 7.3 among it), in one file or several, under the names that cross-media hashing uses. What is
in the files is told by headers; values are read as rows are asked for.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cmfah_hf.data.mat5 import is_mat4, is_mat5, list_mat5
from cmfah_hf.data.matrix_axes import decide_axes, shown
from cmfah_hf.data.matrix_hdf5 import list_hdf5
from cmfah_hf.data.matrix_rows import DenseRows, SparseRows
from cmfah_hf.data.matrix_storage import Variable
from cmfah_hf.errors import DataError

MATRIX_SUFFIXES = (".mat", ".h5", ".hdf5")
ROLES = ("images", "features", "tags", "labels")
# Compared without regard to case. Pictures or features: the number of axes tells.
_PICTURE_NAMES = ("iall", "xall", "images", "fall")
_TAG_NAMES = ("yall", "tags", "tall", "text")
_LABEL_NAMES = ("lall", "labels", "label", "category")

Names = Sequence[str] | str | os.PathLike


class Matrices:
    """Pictures, features, tags and labels of one data set, row for row; see `open_matrices`.

    Attributes:
        images: Pictures, rows `(H, W, C)`, or None.
        features: Features of pictures, rows `(D,)`, or None.
        tags: Which pair has which tags, or None.
        labels: Which pair has which classes, or None.
        variables: The variable that was taken for each role, with its file.
        axes: Its axes by role, such as `NCWH`, in NumPy's order.
        tag_names: A name a column of `tags`.
        label_names: A name a column of `labels`; where that is a single column of class numbers, a name a number.
    """

    def __init__(self, variables: Mapping[str, Variable], axes: Mapping[str, str], tags: Names | None, labels: Any):
        self.variables, self.axes = dict(variables), dict(axes)
        self.images = self._rows("images", DenseRows)
        self.features = self._rows("features", DenseRows)
        self.tags: SparseRows | None = self._rows("tags", SparseRows)
        self.labels: SparseRows | None = self._rows("labels", SparseRows)
        self._given_label_names = _read_names(labels)
        self.tag_names = self._tag_names(_read_names(tags))
        self._check_label_names()

    def _rows(self, role: str, kind: Any) -> Any:
        return kind(self.variables[role], self.axes[role]) if role in self.variables else None

    def __len__(self) -> int:
        return len(next(rows for rows in (self.images, self.features, self.tags, self.labels) if rows is not None))

    def __repr__(self) -> str:
        return f"<{len(self):,} pairs: {'; '.join(self.describe())}>"

    def describe(self) -> list[str]:
        """A line a role: the variable, its axes as NumPy shows them, and its file."""
        return [
            f"{role}: {variable}, read as {shown(self.axes[role])}, of {variable.file.name}"
            for role, variable in self.variables.items()
        ]

    def _tag_names(self, given: list[str] | None) -> list[str]:
        count = self.tags.shape[1] if self.tags is not None else 0
        if given is not None and len(given) != count:
            raise DataError(f"there are {len(given)} names for {count} columns of tags; give a name a column.")
        return given if given is not None else _numbered("tag", range(count))

    def _check_label_names(self) -> None:
        count = self.labels.shape[1] if self.labels is not None else 0
        given = self._given_label_names
        if given is not None and count != 1 and len(given) != count:
            raise DataError(f"there are {len(given)} names for {count} columns of labels; give a name a column.")

    @property
    def has_class_numbers(self) -> bool:
        """Whether the labels are one column of class numbers, rather than a column a class."""
        return self.labels is not None and self.labels.shape[1] == 1

    @property
    def label_names(self) -> list[str]:
        if self.labels is None:
            return []
        if not self.has_class_numbers:
            return self._given_label_names or _numbered("class", range(self.labels.shape[1]))
        first, last = self._class_numbers
        given = self._given_label_names
        if given is not None and len(given) < last - first + 1:
            raise DataError(f"there are {len(given)} names for the classes {first} to {last}; give a name a class.")
        return given or _numbered("class", range(first, last + 1))

    def labels_of(self, row: int) -> list[int]:
        """The classes of a row, as places in `label_names`."""
        if self.labels is None:
            return []
        if self.has_class_numbers:
            return [int(self.labels.matrix.data[row]) - self._class_numbers[0]]
        return self.labels.columns_of(row).tolist()

    @cached_property
    def _class_numbers(self) -> tuple[int, int]:
        """The first and the last class number; MATLAB counts from 1, Python from 0."""
        numbers = self.labels.matrix.data
        if numbers.min() < 0 or (numbers % 1 != 0).any():
            raise DataError(
                f"{self.labels.variable.file}: {self.labels.variable} is one column and no class numbers (whole, from "
                "0 or 1 on); give a column a class."
            )
        return min(int(numbers.min()), 1), int(numbers.max())

    def to_dataset(
        self,
        streaming: bool = True,
        queries: Literal["first", "last"] | None = None,
        num_queries: int | None = None,
        num_train: int | None = None,
        pictures: bool = True,
    ) -> Any:
        """The pairs with this package's columns.

        Args:
            streaming: An `IterableDataset`, read as it is iterated; else a `Dataset`, which is prepared in the cache.
            queries: Where the query rows of a research split stand, `"first"` (DCMH, AGAH) or `"last"` (DADH, UCCH).
                None: no split.
            num_queries: How many they are.
            num_train: How many of the other rows are training pairs: those right behind the queries, or the first.
            pictures: Whether to read pictures and features.

        Returns:
            One data set; with `queries` a dictionary of `train`, `query` and `database`, where the database is all rows
            but the queries, the training pairs first. The columns: `id` (the number of the row, as a string), `image`
            (PNG without loss) or else `image_features` (list of floats), `text` (the tags' names, joined), `tags`,
            `labels` (if there are any).

        Raises:
            DataError: If there are no tags, the split does not fit, or a picture's values are not within 0 to 255.
        """
        from cmfah_hf.data.matrix_dataset import matrices_to_dataset

        return matrices_to_dataset(self, streaming, queries, num_queries, num_train, pictures)


def open_matrices(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    axes: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    tag_names: Names | None = None,
    label_names: Names | None = None,
) -> Matrices:
    """Open `.mat` and `.h5` files of one data set; only headers are read.

    Args:
        paths: A file, several, or a folder that holds them, such as `FLICKR-25K.mat`, or `mirflickr25k-iall.mat`,
            `-yall.mat` and `-lall.mat`.
        axes: Axes by role in NumPy's order, such as `{"images": "NCWH", "tags": "DN"}`, where shapes do not tell, or
            pictures come out lying on their side.
        variables: Variables by role (`images`, `features`, `tags`, `labels`), where they are not called `IAll`, `XAll`,
            `images` or `FAll` (pictures or features), `YAll`, `tags`, `TAll` or `text` (tags), `LAll`, `labels`,
            `label` or `category` (labels), in capitals or not.
        tag_names: The tags' names: a list, or a file with a name a line, perhaps with its count (`common_tags.txt`).
            None: `tag0000` and so on, by column.
        label_names: The classes', likewise; `class00`.

    Raises:
        DataError: For what is no such file, is cut short, or holds none of these variables (it lists what there is);
            for cells and strings in the place of numbers; for numbers of rows that do not agree; and, asking for
            `axes`, where they could be read in several ways.
    """
    files = find_matrix_files(paths)
    found = [variable for file in files for variable in list_variables(file)]
    taken = _take(found, dict(variables or {}), files)
    unknown = [role for role in axes or {} if role not in taken]
    if unknown:
        raise DataError(
            f"axes are given for {', '.join(unknown)}, and present are {', '.join(taken)}; leave those out."
        )
    return Matrices(taken, decide_axes(taken, axes or {}), tag_names, label_names)


def find_matrix_files(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """The files that these paths name, folders searched to their depth."""
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            below = matrix_files_below(path)
            if not below:
                raise DataError(f"{path}: holds no {' or '.join(MATRIX_SUFFIXES)} file; give the folder that does.")
            files += below
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: there is no such file; check the path.")
    return files


def matrix_files_below(folder: Path) -> list[Path]:
    """The `.mat` and `.h5` files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in MATRIX_SUFFIXES and path.is_file())


def list_variables(path: Path) -> list[Variable]:
    """All variables of a file, whatever they are called.

    Raises:
        DataError: If it is neither MATLAB 5 nor HDF5, or cut short.
    """
    with path.open("rb") as file:
        head = file.read(128)
    if is_mat5(head):
        return list_mat5(path)
    import h5py

    if h5py.is_hdf5(path):
        return list_hdf5(path)
    if is_mat4(head):
        raise DataError(f"{path}: is a MATLAB 4 file; save it anew, in MATLAB with save('file.mat', '-v7.3').")
    raise DataError(f"{path}: is neither a MATLAB 5 nor an HDF5 file; check what it is, or fetch it again.")


def _take(found: Sequence[Variable], named: dict[str, str], files: Iterable[Path]) -> dict[str, Variable]:
    """The variable of each role."""
    candidates: dict[str, list[Variable]] = {role: [] for role in ROLES}
    for role in set(named) - set(ROLES):
        raise DataError(f"variables are named for {role!r}; the roles are {', '.join(ROLES)}.")
    for variable in found:
        wanted = [role for role, name in named.items() if name == variable.name]
        for role in wanted or [_role(variable)]:
            if role is not None and (role not in named or wanted):
                candidates[role].append(variable)
    for role, name in named.items():
        if not candidates[role]:
            raise DataError(f"{_paths(files)}: no variable is called {name!r}; present are: {_listing(found)}.")
    for role in ROLES[:2]:
        # Beside pictures, cells hold the pictures' file names.
        numeric = [variable for variable in candidates[role] if variable.is_numeric]
        if numeric or candidates[ROLES[1 - ROLES.index(role)]]:
            candidates[role] = numeric
    taken = {}
    for role, variables in candidates.items():
        if len(variables) > 1:
            both = " and ".join(f"{variable.name} of {variable.file.name}" for variable in variables)
            raise DataError(
                f'{_paths(files)}: {both} could both be the {role}; name one, as variables={{"{role}": '
                f'"{variables[0].name}"}} (on the command line --variable {role}={variables[0].name}), or give fewer '
                "files."
            )
        if variables:
            taken[role] = variables[0]
    if not taken:
        names = ", ".join(("IAll", "XAll", "images", "FAll", "YAll", "tags", "LAll", "labels"))
        raise DataError(
            f"{_paths(files)}: holds no variable such as {names}; present are: {_listing(found)}. Name them with "
            "variables=."
        )
    for variable in taken.values():
        if not variable.is_numeric:
            raise DataError(
                f"{variable.file}: {variable} holds no plain numbers; save numbers, or name another variable."
            )
        if 0 in variable.shape or not variable.shape:
            raise DataError(f"{variable.file}: {variable} is empty; fetch or save the file again.")
    for role in ("images", "features"):
        if role in taken and taken[role].is_sparse:
            raise DataError(f"{taken[role].file}: {taken[role]} is sparse; save pictures or features in full.")
    return taken


def _role(variable: Variable) -> str | None:
    name = variable.name.lower()
    if name in _PICTURE_NAMES:
        return "images" if len(variable.shape) > 2 else "features"
    return "tags" if name in _TAG_NAMES else "labels" if name in _LABEL_NAMES else None


def _read_names(names: Names | None) -> list[str] | None:
    if names is None or not isinstance(names, str | os.PathLike):
        return None if names is None else _unique([str(name) for name in names], "the names")
    path = Path(names)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as a list of names ({error}); write a name a line, in UTF-8."
        ) from error
    found = []
    for line in filter(str.strip, lines):
        parts = line.split()
        counted = len(parts) > 1 and parts[-1].isdigit()  # a name and how often it occurs
        found.append(" ".join(parts[:-1] if counted else parts))
    return _unique(found, str(path))


def _unique(names: list[str], where: str) -> list[str]:
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if lines.setdefault(name, line) != line:
            raise DataError(f"{where}: {name!r} is the name of both {lines[name]} and {line}; give each its own.")
    return names


def _numbered(stem: str, numbers: range) -> list[str]:
    width = max(2, len(str(numbers[-1]))) if numbers else 2
    return [f"{stem}{number:0{width}d}" for number in numbers]


def _paths(files: Iterable[Path]) -> str:
    return ", ".join(map(str, files))


def _listing(found: Iterable[Variable]) -> str:
    return ", ".join(map(str, found)) or "none"
