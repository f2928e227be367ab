"""The matrices in which research code passes data sets around: `.mat` and `.h5` files of pictures, tags and labels.

MATLAB 5 and HDF5 (MATLAB 7.3 among it), in one file or several, under the names that cross-media hashing uses. What is
in the files is told by headers; values are read as rows are asked for.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cmfah_hf.data.data_root import refuse_links_outside
from cmfah_hf.data.matrices.axes import decide_axes
from cmfah_hf.data.matrices.dataset import Matrices, Names
from cmfah_hf.data.matrices.hdf5 import list_hdf5
from cmfah_hf.data.matrices.mat5 import is_mat4, is_mat5, list_mat5
from cmfah_hf.data.matrices.storage import Variable
from cmfah_hf.documents import file_of
from cmfah_hf.errors import DataError

MATRIX_SUFFIXES = (".mat", ".h5", ".hdf5")
ROLES = ("images", "features", "tags", "labels")
# Compared without regard to case. Pictures or features: the number of axes tells.
_PICTURE_NAMES = ("iall", "xall", "images", "fall")
_TAG_NAMES = ("yall", "tags", "tall", "text")
_LABEL_NAMES = ("lall", "labels", "label", "category")


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
            refuse_links_outside(path, below)
            if not below:
                raise DataError(f"{path}: holds no {' or '.join(MATRIX_SUFFIXES)} file; give the folder that does.")
            files += below
        elif file_of(path) is not None:
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


def _paths(files: Iterable[Path]) -> str:
    return ", ".join(map(str, files))


def _listing(found: Iterable[Variable]) -> str:
    return ", ".join(map(str, found)) or "none"
