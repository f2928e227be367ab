"""Update of the folders of an index: only images with new content are encoded."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import cached_assets_path

from cmfah_hf.atomic import LOCK_TIMEOUT_S, locked, regular_target
from cmfah_hf.data import resolve_data_path
from cmfah_hf.data.images import describe_skipped
from cmfah_hf.data.images.extras import readers
from cmfah_hf.errors import DataError, HashIndexError
from cmfah_hf.retrieval.folders.changes import FolderChanges
from cmfah_hf.retrieval.folders.filling import Filling
from cmfah_hf.retrieval.folders.model import ModelOnDemand
from cmfah_hf.retrieval.folders.plan import Plan, compare
from cmfah_hf.retrieval.folders.present import MissingFolderError, Present, listing_of
from cmfah_hf.retrieval.folders.reading import sha256_of_file
from cmfah_hf.retrieval.folders.roots import FolderRequest, Roots, requested_roots
from cmfah_hf.retrieval.folders.scan import Listing
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.storage.folder_records import FileRecord, FolderRecords, Root

if TYPE_CHECKING:
    from cmfah_hf.retrieval.retriever import CrossMediaRetriever

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UpdateOptions:
    """Options of an update.

    Attributes:
        batch_size: Images encoded at once.
        progress: Show a progress bar.
        dry_run: Only compare; nothing is encoded or written.
        prune_missing: Remove the images of folders that are gone or hold no image any more. Those that cannot be read
            stay.
        restore: Take back the images that were removed by hand.
        add: Add the folders to an index whose items come from elsewhere.
        rebuild: Make the index anew.
        in_ids: Begin ids with the name of their folder even if there is one folder.
        is_locked: The caller is in `updating` of the index already.
    """

    batch_size: int = 32
    progress: bool = False
    dry_run: bool = False
    prune_missing: bool = False
    restore: bool = False
    add: bool = False
    rebuild: bool = False
    in_ids: bool = False
    is_locked: bool = False


@contextmanager
def updating(path: str | Path, timeout_s: float = LOCK_TIMEOUT_S, instead: str = "") -> Iterator[None]:
    """Keeps all other programs from updating an index file. Saving it takes the file's own lock.

    Args:
        path: The index file.
        timeout_s: The seconds to wait for another program.
        instead: What others should do, if this program keeps the index until it is ended.

    Raises:
        HashIndexError: If another program is updating it.
    """
    target = regular_target(path, HashIndexError)
    own = target.with_name(f"{target.name}.update")
    with locked(own, HashIndexError, timeout_s, shown=path, instead=instead):
        yield


def folder_index_path(model: str, folder: str | Path) -> Path:
    """The place of the index of a folder in the cache of the Hub's libraries.

    Args:
        model: The fingerprint of the model.
        folder: The folder of images.
    """
    name = hashlib.blake2b(str(Path(folder).resolve()).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cached_assets_path("cmfah_hf", namespace="folders", subfolder=model) / f"{name}.index"


def update_folder_index(
    retriever: "CrossMediaRetriever",
    folder: str | Path,
    path: str | Path | None = None,
    *,
    hidden: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> FolderChanges:
    """Brings the index of a folder up to date, saves it, and sets it as `retriever.images`.

    Args:
        retriever: The model.
        folder: The folder of images.
        path: The index file. None: that of `folder_index_path`.
        hidden: Include hidden files and folders, and those of thumbnails.
        batch_size: Images encoded at once.
        progress: Show a progress bar.

    Raises:
        DataError: If there is no such folder, or no readable image in it.
        HashIndexError: If the file is the index of another model, or of something else.
    """
    target = Path(path) if path is not None else folder_index_path(retriever.fingerprint, resolve_data_path(folder))
    options = UpdateOptions(batch_size=batch_size, progress=progress)
    changes = update_folders(target, [FolderRequest(folder, hidden=hidden)], ModelOnDemand.of(retriever), options)
    index = retriever.load_index(target, mmap=True)
    if not len(index):
        raise DataError(f"{folder}: no readable image in it; see the warnings above, or name another folder.")
    retriever.images = index
    return changes


def update_folders(
    path: str | Path,
    folders: Iterable[FolderRequest],
    model: ModelOnDemand,
    options: UpdateOptions = UpdateOptions(),
) -> FolderChanges:
    """Brings an index up to date with folders, and saves it. What was encoded is saved even if it is interrupted.

    The id of an image is its path below the folder, or of its metadata; if the metadata has several splits, the name of
    the split precedes it, and if the index follows several folders, the folder's name.

    Args:
        path: The index file.
        folders: The folders. Without any, all that the index follows.
        model: The model.
        options: Options.

    Raises:
        DataError: If there is no such folder, or no readable image in it.
        HashIndexError: If the file is the index of another model, or of something else, or all folders are gone.
    """
    target = regular_target(path, HashIndexError)
    model.state  # noqa: B018 - of the files before they are loaded
    with nullcontext() if options.dry_run or options.is_locked else updating(target):
        return _Update(target, model, options).run(list(folders))


class _Update:
    """One update of an index, from its file to its file."""

    def __init__(self, target: Path, model: ModelOnDemand, options: UpdateOptions):
        self.target, self.model, self.options = target, model, options
        self.index = self._loaded()
        recorded = None if self.index is None else self.index.folders
        self.former = recorded or FolderRecords()
        self.former_roots = {root.name: root for root in self.former.roots}
        self.files = self.former.files()
        self.changes = FolderChanges()

    def run(self, requests: Sequence[FolderRequest]) -> FolderChanges:
        """Compares, and unless that is all, encodes and saves."""
        roots = requested_roots(self.former.roots, requests, self.options.in_ids)
        if not roots.all:
            raise HashIndexError(f"{self.target}: this index follows no folder; name one.")
        new_ids = self._ids_to_rename(roots)
        present = self._present(roots)
        self._refuse_taken_ids(present, new_ids)
        retry = self.former.readers != readers()
        plan = compare(present.recorded, present.found, sha256_of_file, present.is_unknown, retry)
        self._count(plan, new_ids)
        if self.options.dry_run:
            self.changes.steps = {
                "added": plan.added,
                "changed": plan.changed,
                "renamed": [*new_ids.items(), *plan.renamed],
                "removed": plan.removed,
            }
            return self.changes
        followed = self._followed(roots)
        is_same = plan.is_empty and not new_ids and followed == self.former.roots
        if not is_same or self.index is None or self.model.state_for(self.index) != self.former.model_state:
            self._fill(plan, present, new_ids, followed)
        return self.changes

    def _loaded(self) -> HashIndex | None:
        if self.options.rebuild or not (self.target.exists() or self.options.add):
            return None
        index = HashIndex.load(self.target)
        self.model.check(index, str(self.target))
        if index.folders is None and len(index) and not self.options.add:
            raise HashIndexError(
                f"{self.target}: this index has {len(index):,} items and no record of folders, because it was made of "
                "a data set or by an earlier release; pass --rebuild to replace it, --add to add to it, or name "
                "another file."
            )
        return index

    def _ids_to_rename(self, roots: Roots) -> dict[str, str]:
        """By their former ids, the new ids of images whose ids get the name of their folder."""
        new_ids: dict[str, str] = {}
        for root in roots.all:
            former = self.former_roots.get(root.name, root)
            if root.in_ids != former.in_ids:
                new_ids |= {former.id_of(name): root.id_of(name) for name in self._usable_records(root, former, True)}
        return new_ids

    def _present(self, roots: Roots) -> Present:
        """Scans the folders that are asked for."""
        present, missing = Present(), []
        for root in roots.all:
            if root.name not in roots.asked:
                continue
            former = self.former_roots.get(root.name)
            records = self.files.setdefault(root.name, {})
            try:
                listing = listing_of(root, former is not None, records, self.options.prune_missing)
            except MissingFolderError as error:
                missing.append(self._missing(root, error))
                continue
            self._count_skipped(root, listing)
            self.files[root.name] = self._usable_records(root, former or root)
            present.add(root, listing, dict(self.files[root.name]))
        if missing and not present.listings:
            raise HashIndexError(missing[0])
        for line in missing:
            logger.warning("%s", line)
        return present

    def _missing(self, root: Root, error: MissingFolderError) -> str:
        count = sum(record.has_code for record in self.files[root.name].values())
        self.changes.missing.append(root.path)
        self.changes.kept += count
        return (
            f"{root.path}: the folder {root.name} {error}, and its {count:,} images stay in the index; name its new "
            f"place with --root {root.name}=PATH, {error.remedy}."
        )

    def _usable_records(self, root: Root, former: Root, coded_only: bool = False) -> dict[str, FileRecord]:
        """The records of a folder; of those with a code, the ones whose code the index holds."""
        files = self.files.get(root.name, {})
        coded = [name for name, record in files.items() if record.has_code]
        held = self.index.holds([former.id_of(name) for name in coded]) if self.index is not None and coded else ()
        usable = {name: files[name] for name, is_held in zip(coded, held, strict=True) if is_held}
        if not coded_only:
            others = {name: record for name, record in files.items() if not record.has_code}
            usable |= {name: own for name, own in others.items() if not (own.left_out and self.options.restore)}
        return usable

    def _refuse_taken_ids(self, present: Present, new_ids: Mapping[str, str]) -> None:
        """Refuses ids that items from elsewhere have."""
        new = [item_id for item_id in present.found if not present.has_code(item_id)]
        wanted = [item_id for item_id in dict.fromkeys([*new, *new_ids.values()]) if item_id not in new_ids]
        if self.index is None or not len(self.index) or not wanted:
            return
        for item_id, is_held in zip(wanted, self.index.holds(wanted), strict=True):
            if is_held:
                raise HashIndexError(
                    f"{self.target}: holds {item_id!r} from elsewhere; name another file, or remove that item."
                )

    def _count_skipped(self, root: Root, listing: Listing) -> None:
        if listing.skipped:
            logger.warning("Skipped in %s: %s.", root.path, describe_skipped(listing.skipped))
        for reason, count in listing.skipped.items():
            self.changes.skipped[reason] = self.changes.skipped.get(reason, 0) + count

    def _count(self, plan: Plan, new_ids: Mapping[str, str]) -> None:
        """Counts the steps of a plan; those that depend on reading an image only if it is not going to be read."""
        changes, to_read = self.changes, set() if self.options.dry_run else set(plan.encode)
        changes.added = sum(item_id not in to_read for item_id in plan.added)
        changes.changed = sum(item_id not in to_read for item_id in plan.changed)
        changes.renamed, changes.removed = len(new_ids) + len(plan.renamed), len(plan.removed)
        changes.unchanged, changes.left_out = plan.unchanged, plan.left_out
        changes.kept += plan.kept
        changes.unreadable += plan.unreadable

    def _followed(self, roots: Roots) -> tuple[Root, ...]:
        """The folders that the index follows from now on: with pruning, only those that are there."""
        if not self.options.prune_missing:
            return roots.all
        stays = set(self.changes.missing)  # those that cannot be read
        return tuple(
            root for root in roots.all if root.name not in roots.asked or root.path in stays or Path(root.path).is_dir()
        )

    def _fill(self, plan: Plan, present: Present, new_ids: Mapping[str, str], followed: Sequence[Root]) -> None:
        filling = Filling(self.target, self.index, self.model, followed, self.files, self.changes)
        filling.rename(new_ids)
        filling.apply(plan, present)
        if plan.encode:
            filling.encode(plan.encode, present, self.options.batch_size, self.options.progress)
        if self.index is None and not len(filling.index):
            places = ", ".join(root.path for root in followed)
            raise DataError(f"{places}: none of its {len(plan.encode)} images can be read; see the warnings above.")
        filling.save()
