"""The engine, loaded while the page is there already: whoever asks waits for it, or is told why there is none."""

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from cmfah_hf.errors import CMFAHError
from cmfah_hf.space.settings import SpaceSettings

if TYPE_CHECKING:
    from cmfah_hf.space.engine import Engine

logger = logging.getLogger(__name__)

# Seconds that a request waits for the model; one from the Hub has to be fetched first.
_PATIENCE = 600.0


class EngineLoader:
    """Loads an engine once, and hands it out.

    Args:
        settings: What to load.
        folder: Of the Space.
        problem: What is wrong already; then nothing is loaded, and `load` raises it.
    """

    def __init__(self, settings: SpaceSettings, folder: Path, problem: CMFAHError | None = None):
        self.settings, self.folder, self._problem = settings, folder, problem
        self._loaded = threading.Event()
        self._engine: Engine | None = None
        self._error: CMFAHError | None = None

    def load(self) -> None:
        """Load it, in whatever thread this is.

        Raises:
            CMFAHError: If the model or the data cannot be used. Whoever asks for the engine gets the same, without
                the paths of this machine.
        """
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
        """The engine, when it is there.

        Raises:
            CMFAHError: If it could not be loaded, or is not there after ten minutes.
        """
        if not self._loaded.wait(_PATIENCE):
            raise CMFAHError("The model is still being loaded; come back in a few minutes.")
        if self._engine is None:
            raise self._error or CMFAHError("The model could not be loaded; the log of this Space says why.")
        return self._engine

    def _without_paths(self, message: str) -> str:
        message = message.replace(f"{self.folder}/", "")
        for source in (self.settings.model, self.settings.data):
            if Path(source).is_absolute():
                message = message.replace(source, Path(source).name)
        return message
