"""The model of an index, recognized by the state of its files and loaded only when images have to be encoded."""

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.constants import CONFIG_NAME
from huggingface_hub.errors import HFValidationError

from cmfah_hf.errors import HashIndexError, HubError
from cmfah_hf.hub_access import hub_file
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.kept_fingerprints import state_of_commit, state_of_folder

if TYPE_CHECKING:
    from cmfah_hf.retrieval.retriever import CrossMediaRetriever


class ModelOnDemand:
    """A model that is loaded when it is needed.

    Args:
        source: A folder or a Hub id.
        any_model: Accept indexes whose codes another model made.
        **options: For `from_pretrained`.
    """

    def __init__(self, source: str, any_model: bool = False, **options: Any):
        self.source = source
        self._any_model, self._options = any_model, options
        self._retriever: CrossMediaRetriever | None = None

    @classmethod
    def of(cls, retriever: "CrossMediaRetriever") -> "ModelOnDemand":
        """A model that is loaded already; its files are not looked at."""
        model = cls(retriever.name, retriever.any_model)
        model._retriever, model.state = retriever, None
        model.revision = retriever.revision
        return model

    @property
    def _is_folder(self) -> bool:
        return os.path.isdir(self.source)  # noqa: PTH112 - a name of any length

    @cached_property
    def revision(self) -> str | None:
        """The commit on the Hub; None for a folder, and if the Hub cannot be asked."""
        if self._is_folder:
            return None
        try:
            found = hub_file(self.source, CONFIG_NAME)
        except (HubError, HFValidationError):  # loading the model reports what is wrong
            return None
        return None if found is None else Path(found).parent.name

    @cached_property
    def state(self) -> str | None:
        """A value that changes with the files of the model; None if it is not known."""
        if self._is_folder:
            return state_of_folder(self.source)
        return None if self.revision is None else state_of_commit(self.source, self.revision)

    @property
    def is_loaded(self) -> bool:
        """Whether the model has been loaded."""
        return self._retriever is not None

    @property
    def retriever(self) -> "CrossMediaRetriever":
        """The model, loaded when first used."""
        if self._retriever is None:
            from cmfah_hf.retrieval.retriever import CrossMediaRetriever  # torch takes seconds to import

            options = self._options if self.revision is None else {"revision": self.revision, **self._options}
            self._retriever = CrossMediaRetriever.from_pretrained(self.source, any_model=self._any_model, **options)
        return self._retriever

    def check(self, index: HashIndex, name: str) -> None:
        """Rejects an index of another model. The model is loaded unless its files are those of the last update."""
        if not len(index):
            return
        if index.folders is not None and index.folders.model_state == self.state is not None:
            return
        bits = self.retriever.hash_bits
        if index.bits != bits:
            raise HashIndexError(f"{name} holds codes of {index.bits} bits, where {bits} were expected.")
        if not self.retriever.any_model:
            from cmfah_hf.retrieval.same_model import check_same_model

            check_same_model(index.model, self.retriever.fingerprint, name)

    def state_for(self, index: HashIndex) -> str | None:
        """The state to store with an index: this one if the model made its codes, else the former one."""
        former = None if index.folders is None else index.folders.model_state
        if not self.is_loaded or self.state is None:
            return former
        return self.state if index.model == self.retriever.fingerprint else former
