"""Batches of images that a CPU computes in small parts, by threads.

Shape suffixes: N images, C colors, H and W their sides.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import TypeVar

import torch

T = TypeVar("T")

# Values of pixels in a part, those of six images of 224 x 224: an EfficientNet-Lite2 encodes 16 images per second in
# parts of 4, and 8 in batches of 32. Threads with parts wait for each other once, not at every operation: that is
# faster, and more so while other threads decode images on the same processors.
PART = 1_000_000

# The number that new threads take over belongs to the whole process.
_setting = Lock()


def in_parts(compute: Callable[[torch.Tensor], T], pixels_NCHW: torch.Tensor) -> list[T]:
    """The results of `compute` for consecutive parts of a batch of images: on a CPU small ones, in threads; else all at
    once.
    """
    if pixels_NCHW.device.type != "cpu" or pixels_NCHW.numel() < 2 * PART:
        return [compute(pixels_NCHW)]
    parts = pixels_NCHW.tensor_split(pixels_NCHW.numel() // PART)
    threads = torch.get_num_threads()
    workers = min(threads, len(parts))
    if workers == 1:
        return [compute(part) for part in parts]
    with pool_of_threads(workers, "parts", threads // workers) as pool:
        return list(pool.map(compute, parts))


def pool_of_threads(workers: int, name: str, threads: int = 1) -> ThreadPoolExecutor:
    """Threads in which PyTorch computes with so many threads each: a thread keeps the number that is set at its first
    call.
    """
    pool = ThreadPoolExecutor(workers, name, initializer=torch.get_num_threads)
    started = Barrier(workers)
    with _setting:
        former = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            list(pool.map(lambda _: started.wait(), range(workers)))  # all threads, each once
        finally:
            torch.set_num_threads(former)
    return pool
