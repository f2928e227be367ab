"""Updates of the folders of a server, one at a time in a thread of its own, since they may take hours."""

import logging
import threading
import time
from concurrent.futures import Future
from typing import Any

from cmfah_hf.errors import CMFAHError
from cmfah_hf.serving.served import ServedRetriever

logger = logging.getLogger(__name__)


class FolderSyncs:
    """Starts updates of the folders, and describes the last one."""

    def __init__(self, served: ServedRetriever):
        self._served = served
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._state: dict[str, Any] = {"state": "never"}

    def start(self, dry_run: bool = False) -> "Future[None]":
        """Starts an update, and returns a future of its end. It never fails: `describe` reports errors.

        Raises:
            CMFAHError: If one is running.
        """
        ended: Future[None] = Future()
        with self._lock:
            if self._state["state"] == "running":
                raise CMFAHError("The folders are being updated already; ask for its state with GET /sync.")
            self._state = {"state": "running", "begin": time.monotonic()}
            self._thread = threading.Thread(target=self._run, args=(dry_run, ended), name="cmfah-sync")
            self._thread.start()
        return ended

    def describe(self) -> dict[str, Any]:
        """The state of the last update, as `SyncReply`."""
        state = dict(self._state)
        begin = state.pop("begin", None)
        return state if begin is None else {**state, "seconds": round(time.monotonic() - begin, 1)}

    def close(self) -> None:
        """Ends a running update at its next batch, and waits for it."""
        self._served.stop()
        if self._thread is not None:
            self._thread.join()

    def _run(self, dry_run: bool, ended: "Future[None]") -> None:
        begin = time.monotonic()
        try:
            changes = self._served.sync(dry_run)
            steps = {} if changes.steps is None else {"steps": changes.steps}
            done: dict[str, Any] = {"state": "done", "changes": {**changes.counts(), **steps}}
            logger.warning("Updated: %s.", changes)
        except (CMFAHError, OSError) as error:
            logger.warning("The folders could not be updated: %s", error)
            done = {"state": "failed", "detail": str(error)}
        except Exception:
            logger.exception("The folders could not be updated")
            done = {"state": "failed", "detail": "An internal error; the log of the server has it."}
        self._state = {**done, "seconds": round(time.monotonic() - begin, 1)}
        ended.set_result(None)
