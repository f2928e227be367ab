"""Background loading of the engine; requests wait for it or get its error."""

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from cmfah_hf.errors import CMFAHError
from cmfah_hf.space.settings import SpaceSettings

if TYPE_CHECKING:
    from cmfah_hf.space.engine import Engine

logger = logging.getLogger(__name__)

# Seconds that a request waits for the model, which may have to be downloaded first.
_PATIENCE = 600.0


class EngineLoader:
    """Loads an engine once and provides it to all requests; a known `problem` is raised instead."""

    def __init__(self, settings: SpaceSettings, folder: Path, problem: CMFAHError | None = None):
        self.settings, self.folder, self._problem = settings, folder, problem
        self._loaded = threading.Event()
        self._engine: Engine | None = None
        self._error: CMFAHError | None = None

    def load(self) -> None:
        """Loads the engine in the calling thread. Its errors reach all requests, without the paths of this machine."""
        try:
            if self._problem is not None:
                raise self._problem
            from cmfah_hf.space.engine import Engine

            self._engine = Engine(self.settings, self.folder)
        except (ValueError, OSError) as error:
            self._error = CMFAHError(self._without_paths(str(error) or type(error).__name__))
            raise
        finally:
            self._loaded.set()

    def get(self) -> "Engine":
        """Waits for the engine; `CMFAHError` if loading failed, or takes longer than ten minutes."""
        if not self._loaded.wait(_PATIENCE):
            raise CMFAHError("The model is still being loaded; come back in a few minutes.")
        if self._engine is None:
            raise self._error or CMFAHError("The model could not be loaded; see the log of this Space.")
        return self._engine

    def _without_paths(self, message: str) -> str:
        message = message.replace(f"{self.folder}/", "")
        for source in (self.settings.model, *self.settings.sources):
            if Path(source).is_absolute():
                message = message.replace(source, Path(source).name)
        return message
