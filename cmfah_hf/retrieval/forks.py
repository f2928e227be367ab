"""Fork safety of indexes: gunicorn with `--preload`, `multiprocessing`, `datasets.map(num_proc=...)`.

A forked child has one thread. It inherits the OpenMP pools of FAISS and PyTorch without their threads, so parallel work
would wait forever, and locks that threads of the parent held. So the child computes in one thread and gets new locks.
Threads that the child starts have their own pools and may use several threads.
"""

import os
import sys
import weakref
from typing import Protocol

import faiss


class HoldsLocks(Protocol):
    """An object that holds locks."""

    def renew_locks(self) -> None: ...


_holders: "weakref.WeakSet[HoldsLocks]" = weakref.WeakSet()


def renew_in_children(holder: HoldsLocks) -> None:
    """Registers an object that gets new locks in every forked child."""
    _holders.add(holder)


def _after_fork() -> None:
    faiss.omp_set_num_threads(1)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    for holder in _holders:
        holder.renew_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
