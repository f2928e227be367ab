"""Loading of image-text pairs from a folder, Parquet, shards, matrices, the Hub, or the built-in scenes."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from cmfah_hf.data.images.decoding import is_image_file, missing_extra
from cmfah_hf.data.images.formats import register_formats
from cmfah_hf.data.matrices.opening import matrix_files_below
from cmfah_hf.data.rows.columns import RequestedColumns
from cmfah_hf.data.rows.uniform import Loaded
from cmfah_hf.data.sources import folder, hub, matrices, parquet, scenes, webdataset, wikipedia
from cmfah_hf.data.sources.metadata import EXAMPLE
from cmfah_hf.data.sources.request import LoadRequest
from cmfah_hf.errors import DataError

# The first that matches loads: a folder of images may hold matrices, but a folder of matrices holds no metadata.
# The Wikipedia release has a file of matrices too.
SOURCES: Sequence[ModuleType] = (scenes, folder, parquet, wikipedia, matrices, webdataset, hub)


def load_image_text(
    path_or_hub_id: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    text_column: str | None = None,
    labels_column: str | None = None,
    id_column: str | bool | None = None,
    images: bool = True,
    allow_urls: bool = False,
    image_folders: Sequence[str | os.PathLike] = (),
    captions: str = "auto",
    **load_dataset_kwargs: Any,
) -> Loaded:
    """Loads image-text pairs from any source, with the same columns.

    Args:
        path_or_hub_id: One of
            - a folder in the `imagefolder` layout: images next to a `metadata.jsonl` (or `.csv`, `.parquet`) with
              `file_name`, a text and optional labels, either in the folder itself (split `train`) or in a subfolder per
              split (`train/`, `query/`, `database/`, `validation/` or any other name);
            - a Parquet file, the address of one (`hf://`, `file://`; `https://` where aiohttp is installed), or a
              folder of Parquet files. Their splits are those in the `configs` of the folder's card (`README.md`), or
              follow from folder and name (`query/x.parquet`, `query.parquet`, `data/query-00000-of-00001.parquet`),
              or are `train`;
            - a `.mat` or `.h5` file of matrices, or a folder of them, with the further arguments of `open_matrices` and
              of the research split of `Matrices.to_dataset` (`queries="first"`, `num_queries`, `num_train`);
            - the folder of the Wikipedia release (`raw_features.mat` and its lists, see `prepare_wikipedia`);
            - WebDataset shards: a `.tar` file, a folder of them, or a pattern such as `x-{000..009}.tar`. Of each
              sample the image, the text (`.txt`, `.caption`, or of its `.json`) and the labels (`.cls`, or of its
              `.json`) are read; further fields of its `.json` that are single values are further columns, if one of the
              first 20 samples has them. The id is its key, of several shards after their names. Splits follow from
              folders and names, as those of Parquet do. If `prepare_folder` divided the shards, `train` and `query` are
              the two parts of their samples;
            - a data set on the Hub, `owner/name`;
            - `"scenes"`, images drawn by code, or `"cluttered-scenes"`, with small things among clutter, with the
              further arguments of `load_scenes`.
            A relative path that does not exist is searched below `CMFAH_DATA`.
        split: One split (map-style also with slices such as `train[:10%]`), instead of all.
        streaming: Read row by row without preparing anything on disk. Gives the same rows.
        image_column: The source's column of images, unless it has a usual name (`image`, `img`, ...).
        text_column: The column of texts, unless it is `text`, `caption`, `tags`, ...
        labels_column: The column of labels, unless it is `labels`, `label`, `category`, ...
        id_column: The column of ids, unless it is `id`; `False` ignores a column `id` whose values are not unique.
        images: Whether a stream has its column `image`. Without it, the texts of Parquet are read and the images are
            not, so the files need not have any; the rows and their order are the same.
        allow_urls: Fetch images that rows name by `http(s)` addresses, each of at most 64 MB and within 30 seconds;
            otherwise such a row is an error. Only for data whose authors may choose the addresses that this machine
            requests.
        image_folders: Further local folders in which rows may name images. By default a row may only name files of its
            own data set: below its folder, or on the Hub in its repository, links followed.
        captions: What a text column of lists holds. `"several"`: captions of the image, which become `captions`.
            `"joined"`: parts of one text, such as tags. `"auto"`: several captions if most elements of the first rows
            have at least three words and the column is not named `tags` or `keywords`; otherwise parts of one text.
        **load_dataset_kwargs: For `datasets.load_dataset`, such as `revision`, `token`, `name` or `cache_dir`.

    Returns:
        A dictionary of splits, or the one split requested, with the columns
        - `id` (string, unique within the split): the id column, else the image's file name below the split's folder,
          else the row number. Streams from the Hub that are not Parquet and have several files cannot know the row
          number; there it is a digest of text and image;
        - `image` (`datasets.Image`, decoded to Pillow images on access by `datasets`, which raises its own error for
          one that cannot be read; `drop_unreadable` leaves those out, `decode_image` names them), unless the source
          has features of images, `image_features` (list of floats), instead;
        - `text` (string; a list is joined with spaces, a missing text is the empty string);
        - `captions` (list of strings), if images have several (see above); `text` then joins them;
        - `labels` (list of strings, empty if a row has none), unless the source has no labels at all;
        - all further columns unchanged, renamed to `original_...` if their name is one of these five.

    Raises:
        DataError: In one line: what is missing or wrong, in which file and line, and what to do. Metadata files are
            checked completely before any image is opened. Ids of Parquet and Hub data are checked for duplicates only
            if the data set is not streamed (a training run on a stream checks them in its first pass).
    """
    if not (images or streaming):
        raise DataError("Only a stream can be loaded without its images; a map-style data set reads them on access.")
    request = LoadRequest(
        os.fspath(path_or_hub_id),
        split,
        streaming,
        RequestedColumns(image_column, text_column, labels_column, id_column, captions),
        images,
        allow_urls,
        tuple(image_folders),
        load_dataset_kwargs,
    )
    source = next((source for source in SOURCES if source.matches(request)), None)
    if source is None:
        raise _unknown_source(request)
    register_formats()  # `datasets` decodes by Pillow
    loaded = source.load(request)
    return loaded if images else _without_images(loaded)


def is_data_set(path: Path) -> bool:
    """Whether a folder holds metadata, Parquet, shards or matrices for `load_image_text`, rather than only images."""
    if folder.find_splits(path) or parquet.parquet_splits(path) or webdataset.shard_splits(path):
        return True
    # Matrices next to images need not be a data set. (Pillow registers `.h5` as the ending of an image.)
    found = set(matrix_files_below(path))
    return bool(found) and not any(is_image_file(file) for file in path.rglob("*") if file not in found)


def _unknown_source(request: LoadRequest) -> DataError:
    if request.is_address:
        return DataError(f"{request.name}: only addresses of Parquet files can be loaded; give one or a Hub id.")
    if request.path.is_dir():
        return DataError(f"{request.path}: holds neither a metadata file nor Parquet files nor shards; {EXAMPLE}")
    if extra := missing_extra(request.path.suffix):
        return DataError(f"{request.name}: an image in a format of an extra; to read it, run {extra.command}.")
    return DataError(
        f"{request.name}: neither a folder nor a Parquet file; give the folder that holds the metadata file."
    )


def _without_images(loaded: Loaded) -> Loaded:
    if isinstance(loaded, dict):
        return type(loaded)({name: _without_images(part) for name, part in loaded.items()})
    return loaded.remove_columns("image") if "image" in loaded.column_names else loaded
