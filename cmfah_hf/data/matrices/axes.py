"""Detection of the axes of matrices, by their shapes and by the order of axes in MATLAB and Python.

Axes are named by letters, in NumPy's order: `N` pairs, `C` colors, `H` and `W` rows and columns of an image, `D` tags,
classes or features. In MATLAB the first axis varies fastest, in HDF5 the last, so an HDF5 file written by MATLAB has
its axes in reverse.
"""

from collections.abc import Mapping, Sequence

from cmfah_hf.data.matrices.storage import Variable
from cmfah_hf.errors import DataError

_NUM_COLORS = (1, 3)
# An image in MATLAB is rows x columns x colors, and images are stacked along a fourth axis. So are the DCMH files:
# loaders that read them by h5py, as N x C x W x H, swap the last two axes.
_MATLAB_IMAGES = {4: ("HWCN", "NCHW", "NHWC"), 3: ("HWN", "NHW")}
# Python files with colors and images last have N x C x H x W in reverse.
_PYTHON_IMAGES = {4: ("NCHW", "NHWC", "WHCN"), 3: ("NHW", "WHN")}


def possible_axes(variable: Variable, role: str) -> list[str]:
    """The possible readings of a variable's axes, by its shape alone."""
    shape = variable.shape
    if len(shape) == 1:
        return ["N"]
    if len(shape) == 2:
        return ["ND", "DN"]
    if role != "images" or len(shape) not in (3, 4):
        return []
    if variable.writer == "hdf5":
        candidates = _PYTHON_IMAGES[len(shape)]
    else:
        candidates = _MATLAB_IMAGES[len(shape)]
        if variable.writer == "hdf5-matlab":
            candidates = tuple(axes[::-1] for axes in candidates)
    return [axes for axes in candidates if "C" not in axes or shape[axes.index("C")] in _NUM_COLORS]


def decide_axes(variables: Mapping[str, Variable], given: Mapping[str, str]) -> dict[str, str]:
    """The axes of each role's variable, such that all have the same number of pairs; `given` are the user's."""
    possible: dict[str, list[str]] = {}
    for role, variable in variables.items():
        possible[role] = [_checked(given[role], variable, role)] if role in given else possible_axes(variable, role)
        if not possible[role]:
            if role != "images":
                raise DataError(
                    f"{variable.file}: {variable} is no matrix; {role} need a row or a column for each pair."
                )
            raise DataError(
                f"{variable.file}: {variable} has no axis of {' or '.join(map(str, _NUM_COLORS))} colors in any known "
                f'layout of images; name its axes, as axes={{"images": "NCHW"}}.'
            )
    sizes = [{variable.shape[axes.index("N")] for axes in possible[role]} for role, variable in variables.items()]
    common = set.intersection(*sizes)
    if not common:
        raise DataError(
            f"the rows do not agree: {_listing(variables)} have no size in common that could be the number of pairs; "
            "give files of one data set."
        )
    if len(common) > 1:
        raise _ambiguous(variables, f"the number of pairs could be {' or '.join(map(str, sorted(common)))}", possible)
    (count,) = common
    decided = {}
    for role, variable in variables.items():
        fitting = [axes for axes in possible[role] if variable.shape[axes.index("N")] == count]
        if len(fitting) > 1:
            raise _ambiguous({role: variable}, f"{count} pairs fit {' and '.join(fitting)}", {role: fitting})
        decided[role] = fitting[0]
    return decided


def shown(axes: str) -> str:
    """`NCWH` as `N x C x W x H`."""
    return " x ".join(axes)


def _checked(axes: str, variable: Variable, role: str) -> str:
    letters = {1: ("N",), 2: ("DN",), 3: ("HNW",), 4: ("CHNW",)}.get(len(variable.shape), ())
    axes = axes.upper().replace("V", "D").replace("F", "D")
    if "".join(sorted(axes)) not in letters:
        wanted = {1: "N", 2: "ND or DN", 3: "the letters N, H, W", 4: "the letters N, C, H, W"}
        raise DataError(
            f"{variable.file}: the axes {axes!r} do not fit {role}, {variable}; give "
            f"{wanted.get(len(variable.shape), 'a matrix of 1 to 4 axes')}."
        )
    return axes


def _listing(variables: Mapping[str, Variable]) -> str:
    return ", ".join(f"{role} = {variable}" for role, variable in variables.items())


def _ambiguous(variables: Mapping[str, Variable], what: str, possible: Mapping[str, Sequence[str]]) -> DataError:
    role = next(iter(variables))
    return DataError(
        f'of {_listing(variables)}, {what}; name the axes, as axes={{"{role}": "{possible[role][0]}"}} '
        f"(on the command line --axes {role}={possible[role][0]})."
    )
