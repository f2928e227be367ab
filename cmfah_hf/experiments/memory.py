"""The most memory that this process has held during a run."""

import contextlib
import re
import sys
from pathlib import Path

_STATUS, _ANEW = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEGABYTE = 10**6


class PeakMemory:
    """The peak of the main memory of this process since the creation of this object.

    Linux can start the peak anew, from the memory that the process holds. Elsewhere the peak since the start of the
    process counts, if it has risen meanwhile.
    """

    def __init__(self) -> None:
        self._is_anew = False
        with contextlib.suppress(OSError):
            _ANEW.write_text("5")
            self._is_anew = _STATUS.is_file()
        self._before = _peak_of_process()

    def megabytes(self) -> float | None:
        """The peak in 10^6 bytes; None if it is not known."""
        if self._is_anew and (found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"))):
            return int(found[1]) * 1024 / _MEGABYTE
        peak = _peak_of_process()
        return peak / _MEGABYTE if peak > self._before else None


def _peak_of_process() -> int:
    """Bytes since the start of the process; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
