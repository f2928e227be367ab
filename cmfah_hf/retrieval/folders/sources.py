"""The sources of `cmfah index`: folders of images that the index follows, and data sets that are encoded anew."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cmfah_hf.atomic import regular_target
from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.folders.changes import FolderChanges
from cmfah_hf.retrieval.folders.contents import recorded_roots, remove_others
from cmfah_hf.retrieval.folders.model import ModelOnDemand
from cmfah_hf.retrieval.folders.roots import FolderRequest, is_same_place
from cmfah_hf.retrieval.folders.scan import metadata_files
from cmfah_hf.retrieval.folders.update import UpdateOptions, update_folders
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.storage.folder_records import Root


class IndexSources:
    """The sources of an index file.

    Args:
        output: The index file.
        sources: Folders, files and Hub ids.
        named: Folders as `NAME=PATH`.
        keep: Columns of metadata to store.
        split: One split, or None for all.
        hidden: Include hidden files and those of thumbnails.
        texts: Index texts instead of images. No folder is followed then.
        rebuild: Whatever the file holds does not count.

    Attributes:
        folders: The folders to follow. None of them and no data set: those that the index follows.
        data_sets: The other sources.

    Raises:
        HashIndexError: If the file is there and not an index, a folder cannot be followed, or there is no source.
    """

    def __init__(
        self,
        output: Path,
        sources: Sequence[str],
        named: Sequence[str] = (),
        keep: Sequence[str] = (),
        split: str | None = None,
        hidden: bool = False,
        texts: bool = False,
        rebuild: bool = False,
    ):
        self.output, self._keep, self._split, self._what = output, keep, split, "texts" if texts else "images"
        self._hidden, self._are_several = hidden, len(sources) + len(named) > 1
        regular_target(output, HashIndexError)  # refused before anything is encoded
        self._recorded = () if rebuild else recorded_roots(output)
        followed = [not texts and _is_followed(source, self._recorded) for source in sources]
        self.data_sets = [source for source, is_folder in zip(sources, followed, strict=True) if not is_folder]
        folders = [FolderRequest(source) for source, is_folder in zip(sources, followed, strict=True) if is_folder]
        self.folders = self._with_settings([*folders, *map(FolderRequest.of_option, named)])
        if not (self.folders or self.data_sets or self._recorded):
            raise HashIndexError(f"{output}: this index follows no folder yet; name a folder of images, or a data set.")
        if not (self.folders or self.data_sets) and (hidden or split or keep):
            raise HashIndexError("--hidden, --split and --keep belong to a folder or a data set; name it.")

    def refuse_data_sets(self, options: Sequence[str]) -> None:
        """Refuses options that are for folders only if there is a data set."""
        if options and self.data_sets:
            raise HashIndexError(f"{self.data_sets[0]}: {options[0]} is for folders of images; leave this source out.")

    def update(self, model: ModelOnDemand, options: UpdateOptions) -> FolderChanges:
        """Brings the index up to date and saves it; its data sets are encoded anew."""
        changes = FolderChanges()
        if self.folders or not self.data_sets:
            changes = update_folders(self.output, self.folders, model, options)
        if self.data_sets:
            self._add_data_sets(model, options, changes)
        return changes

    def followed(self) -> list[str]:
        """The paths of the folders that an update is about."""
        roots = recorded_roots(self.output)
        return [own.place for own in self.folders] or [root.path for root in roots]

    def _with_settings(self, folders: Sequence[FolderRequest]) -> list[FolderRequest]:
        """The folders with the settings of this call. Columns are those of the sources that have any."""
        described = [_has_metadata(own.place) for own in folders]
        is_for_others = any(described) or bool(self.data_sets)
        return [
            replace(
                own,
                hidden=self._hidden,
                split=self._split,
                keep=tuple(self._keep) if is_described or not is_for_others else (),
            )
            for own, is_described in zip(folders, described, strict=True)
        ]

    def _add_data_sets(self, model: ModelOnDemand, options: UpdateOptions, changes: FolderChanges) -> None:
        retriever = model.retriever
        index = HashIndex(retriever.hash_bits)
        if self.folders or options.add:
            index = retriever.load_index(self.output)
            if not options.add:
                remove_others(index)
        elif self._recorded:
            names = ", ".join(root.name for root in self._recorded)
            raise HashIndexError(
                f"{self.output}: this index follows folders ({names}), which would be lost; pass --add to add to them, "
                "--rebuild to replace them, or name another file."
            )
        setattr(retriever, self._what, index)
        before = len(index)
        for source in self.data_sets:
            prefix = f"{source.rstrip('/')}/" if self._are_several and not Path(source).is_file() else ""
            changes.unreadable += retriever.add_source(
                source, self._split, self._what, options.batch_size, options.progress, self._keep, prefix,
                self._hidden, changes.skipped,
            )  # fmt: skip
        changes.added += len(index) - before
        index.save(self.output)


def _is_followed(source: str, recorded: Sequence[Root]) -> bool:
    """Whether a source is a folder of images, with or without metadata, rather than another data set."""
    place = FolderRequest(source).place
    if any(is_same_place(root.path, place) for root in recorded):
        return True
    if not os.path.isdir(place):  # noqa: PTH112 - a path of any length
        return False
    try:
        if metadata_files(place):
            return True
        from cmfah_hf.data.loading import is_data_set  # `datasets` takes a second to import

        return not is_data_set(Path(place))
    except OSError:  # the update reports what is wrong with the folder
        return True


def _has_metadata(place: str) -> bool:
    try:
        return bool(metadata_files(place))
    except OSError:  # the update reports what is wrong with the folder
        return False
