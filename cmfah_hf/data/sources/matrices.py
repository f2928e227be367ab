"""The source of matrices of research code: `.mat` and `.h5` files."""

from functools import partial

from cmfah_hf.data.matrices.opening import MATRIX_SUFFIXES, matrix_files_below, open_matrices
from cmfah_hf.data.rows.errors import guarded
from cmfah_hf.data.rows.uniform import Loaded
from cmfah_hf.data.sources.request import LoadRequest
from cmfah_hf.errors import DataError

_OF_SPLIT = ("queries", "num_queries", "num_train")
_OF_OPENING = ("axes", "variables", "tag_names", "label_names")


def matches(request: LoadRequest) -> bool:
    if not request.exists:
        return False
    path = request.path
    return bool(matrix_files_below(path)) if path.is_dir() else path.suffix.lower() in MATRIX_SUFFIXES


def load(request: LoadRequest) -> Loaded:
    """The pairs of the matrices; `kwargs` of the request are those of `open_matrices` and of a research split."""
    columns = request.columns
    if columns.image or columns.text or columns.labels or columns.id:
        raise DataError(
            f"{request.name}: matrices have no columns to name; name variables, as variables={{'tags': 'YAll'}}."
        )
    unknown = set(request.kwargs) - {*_OF_SPLIT, *_OF_OPENING}
    if unknown:
        raise DataError(f"{request.name}: matrices do not accept {', '.join(sorted(unknown))}; leave it out.")
    matrices = open_matrices(request.path, **{name: request.kwargs.get(name) for name in _OF_OPENING})
    queries, num_queries, num_train = (request.kwargs.get(name) for name in _OF_SPLIT)
    read = partial(matrices.to_dataset, request.streaming, queries, num_queries, num_train, request.images)
    loaded = guarded(read, request.name)
    return request.select(loaded if isinstance(loaded, dict) else request.splits({"train": loaded}))
