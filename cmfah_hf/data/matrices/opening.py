"""Opening of `.mat` and `.h5` files with images, tags and labels, as research code shares them.

The files are MATLAB 5 or HDF5 (which includes MATLAB 7.3), one or several, with the variable names that are usual in
cross-media hashing. Only headers are read here; values are read on demand.
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
# Compared without regard to case. The number of axes distinguishes images from features.
_IMAGE_NAMES = ("iall", "xall", "images", "fall")
_TAG_NAMES = ("yall", "tags", "tall", "text")
_LABEL_NAMES = ("lall", "labels", "label", "category")


def open_matrices(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    axes: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    tag_names: Names | None = None,
    label_names: Names | None = None,
) -> Matrices:
    """Opens `.mat` and `.h5` files of one data set; only headers are read.

    Args:
        paths: A file, several, or a folder with them, such as `FLICKR-25K.mat`, or `mirflickr25k-iall.mat`,
            `-yall.mat` and `-lall.mat`.
        axes: Axes by role in NumPy's order, such as `{"images": "NCWH", "tags": "DN"}`, where the shapes are ambiguous,
            or images are rotated.
        variables: Variables by role (`images`, `features`, `tags`, `labels`), where they are not called `IAll`, `XAll`,
            `images` or `FAll` (images or features), `YAll`, `tags`, `TAll` or `text` (tags), `LAll`, `labels`,
            `label` or `category` (labels), in any case.
        tag_names: Names of the tags: a list, or a file with one name per line, optionally with its count
            (`common_tags.txt`). None: `tag0000` and so on, by column.
        label_names: Names of the classes, likewise. None: `class00` and so on.

    Raises:
        DataError: If a file is of another kind or cut short, holds none of these variables (the error lists those
            present) or cells and strings instead of numbers, or if the numbers of rows differ or the axes are
            ambiguous.
    """
    files = find_matrix_files(paths)
    found = [variable for file in files for variable in list_variables(file)]
    chosen = _choose(found, variables or {}, files)
    unknown = [role for role in axes or {} if role not in chosen]
    if unknown:
        raise DataError(
            f"axes are given for {', '.join(unknown)}, and present are {', '.join(chosen)}; leave those out."
        )
    return Matrices(chosen, decide_axes(chosen, axes or {}), tag_names, label_names)


def find_matrix_files(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """The files of these paths; folders are searched recursively."""
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
    named = (path for path in folder.rglob("*") if path.suffix.lower() in MATRIX_SUFFIXES)
    # `Path.is_file` raises `PermissionError` in a folder that cannot be read.
    return sorted(path for path in named if os.path.isfile(path))  # noqa: PTH113


def list_variables(path: Path) -> list[Variable]:
    """All variables of a file, of any name."""
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


def _choose(found: Sequence[Variable], named: Mapping[str, str], files: Sequence[Path]) -> dict[str, Variable]:
    """The variable for each role."""
    chosen = {}
    for role, variables in _candidates(found, named, files).items():
        if len(variables) > 1:
            both = " and ".join(f"{variable.name} of {variable.file.name}" for variable in variables)
            raise DataError(
                f'{_paths(files)}: {both} could both be the {role}; name one, as variables={{"{role}": '
                f'"{variables[0].name}"}} (on the command line --variable {role}={variables[0].name}), or give fewer '
                "files."
            )
        if variables:
            chosen[role] = variables[0]
    if not chosen:
        names = ", ".join(("IAll", "XAll", "images", "FAll", "YAll", "tags", "LAll", "labels"))
        raise DataError(
            f"{_paths(files)}: holds no variable such as {names}; present are: {_listing(found)}. Name them with "
            "variables=."
        )
    for role, variable in chosen.items():
        check_variable(variable, role)
    return chosen


def _candidates(
    found: Sequence[Variable], named: Mapping[str, str], files: Sequence[Path]
) -> dict[str, list[Variable]]:
    """The variables that could have each role: those named for it, or else those with one of its usual names."""
    for role in set(named) - set(ROLES):
        raise DataError(f"variables are named for {role!r}; the roles are {', '.join(ROLES)}.")
    candidates: dict[str, list[Variable]] = {role: [] for role in ROLES}
    for role, name in named.items():
        candidates[role] = [variable for variable in found if variable.name == name]
        if not candidates[role]:
            raise DataError(f"{_paths(files)}: no variable is called {name!r}; present are: {_listing(found)}.")
    for variable in found:
        usual = _usual_role(variable)
        if usual is not None and usual not in named and variable.name not in named.values():
            candidates[usual].append(variable)
    # If there are images too, cells of the same name hold the images' file names.
    for role, other in (("images", "features"), ("features", "images")):
        numeric = [variable for variable in candidates[role] if variable.is_numeric]
        if numeric or candidates[other]:
            candidates[role] = numeric
    return candidates


def check_variable(variable: Variable, role: str) -> None:
    """Refuses a variable that cannot have a role, because it is empty or holds anything but numbers."""
    if not variable.is_numeric:
        raise DataError(
            f"{variable.file}: {variable} does not hold plain numbers; save numbers, or name another variable."
        )
    if 0 in variable.shape or not variable.shape:
        raise DataError(f"{variable.file}: {variable} is empty; fetch or save the file again.")
    if role in ("images", "features") and variable.is_sparse:
        raise DataError(f"{variable.file}: {variable} is sparse; save images or features as a full array.")


def _usual_role(variable: Variable) -> str | None:
    name = variable.name.lower()
    if name in _IMAGE_NAMES:
        return "images" if len(variable.shape) > 2 else "features"
    return "tags" if name in _TAG_NAMES else "labels" if name in _LABEL_NAMES else None


def _paths(files: Iterable[Path]) -> str:
    return ", ".join(map(str, files))


def _listing(found: Iterable[Variable]) -> str:
    return ", ".join(map(str, found)) or "none"
