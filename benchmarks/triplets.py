"""The hinge over all triplets of a batch against its cubic form: time and memory of value and gradient, in one run.

    python benchmarks/triplets.py
    python benchmarks/triplets.py --threads 1 --anchors 64

Both forms get the same cosines and masks. The cubic form writes out batch x batch x batch hinges; where they do not fit
into `--hold` megabytes it processes the anchors in portions, with a gradient step each, so its memory is that of a
portion; the memory without portions is printed next to it. With `--anchors`, it is timed on that number of anchors, and
the time is scaled to all of them, marked by `~`. Each form is measured in its own process: the memory is the growth of
its peak, the time the best of some runs after a warm-up on a small batch.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from cmfah_hf.methods.losses import cosine_matrix, triplet_hinge, triplet_masks

MARGIN, BITS, CLASSES = 0.5, 64, 20
MEGABYTE = 1e6


def problem(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosines `(N, N)` of random continuous codes, and masks of random labels, about two per pair."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(size, BITS, generator=generator).tanh()
    masks = triplet_masks((torch.rand(size, CLASSES, generator=generator) < 0.1).float(), within=True)
    return cosine_matrix(values, values), *masks


def sorted_form(size: int, hold: float, anchors: int) -> torch.Tensor:
    """The gradient of the first anchors, `(anchors, N)`."""
    similarity, positive, negative = problem(size)
    similarity.requires_grad_()
    triplet_hinge(similarity, positive, negative, MARGIN).backward()
    return similarity.grad[:anchors]


def cubic_form(size: int, hold: float, anchors: int) -> torch.Tensor:
    """The same, with all hinges written out."""
    similarity, positive, negative = problem(size)
    similarity.requires_grad_()
    triplets = (positive.sum(dim=1) * negative.sum(dim=1)).sum()
    portion = max(1, min(size, int(hold * MEGABYTE / (4 * size * size))))
    for start in range(0, anchors, portion):
        rows = slice(start, min(start + portion, anchors))
        hinge = (MARGIN + similarity[rows, None, :] - similarity[rows, :, None]).clamp(min=0)
        ((hinge * (positive[rows, :, None] & negative[rows, None, :])).sum() / triplets).backward()
    return similarity.grad[:anchors]


FORMS = {"sorted": sorted_form, "cubic": cubic_form}


def held_at_most(anew: bool = False) -> int:
    """The peak memory of this process in bytes; `anew` restarts the peak from the current memory."""
    status = Path("/proc/self/status")
    if not status.is_file():  # not Linux: the peak since the start of the process
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])


def measure(form: str, size: int, hold: float, anchors: int, repeats: int) -> dict[str, float]:
    """Seconds, growth of the peak in bytes, and norm and projection of the gradient, in this process."""
    FORMS[form](16, hold, 16)
    before = held_at_most(anew=True)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        gradient = FORMS[form](size, hold, anchors)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": min(seconds) * (size / anchors if form == "cubic" else 1),
        "peak": held_at_most() - before,
        "length": gradient.double().norm().item(),
        "slope": (gradient.double() * torch.linspace(-1, 1, size)).sum().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--hold", type=float, default=600, help="Maximum megabytes of the cubic form's hinges.")
    parser.add_argument("--anchors", type=int, default=None, help="Anchors to time the cubic form on. None: all.")
    parser.add_argument("--threads", type=int, default=None, help="Threads of PyTorch. None: its default.")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.one:
        form, size = arguments.one[0], int(arguments.one[1])
        anchors = min(arguments.anchors or size, size)
        sys.stdout.write(json.dumps(measure(form, size, arguments.hold, anchors, 1 if size > 1024 else 3)))
        return

    table = Table(title=f"All triplets of a batch, value and gradient, {torch.get_num_threads()} threads")
    names = ("pairs", "sorted: s", "MB", "cubic: s", "MB", "MB without portions", "time", "memory")
    for name in (*names, "gradients differ by"):
        table.add_column(name, justify="right")
    for size in arguments.sizes:
        found = {form: _in_a_process(form, size, arguments) for form in FORMS}
        ours, cubic = found["sorted"], found["cubic"]
        hinges = 4 * size**3
        # Three such arrays exist at once: the differences, the hinges, and the masked hinges or the gradient.
        needed = max(cubic["peak"], 3 * hinges)
        differ = max(abs(ours[name] - cubic[name]) for name in ("length", "slope")) / cubic["length"]
        about = "~" if arguments.anchors is not None and arguments.anchors < size else ""
        table.add_row(
            f"{size:,}",
            f"{ours['seconds']:.4f}",
            f"{ours['peak'] / MEGABYTE:,.0f}",
            f"{about}{cubic['seconds']:.3f}",
            f"{cubic['peak'] / MEGABYTE:,.0f}" + (" (portions)" if hinges > arguments.hold * MEGABYTE else ""),
            f"{needed / MEGABYTE:,.0f}",
            f"{about}{cubic['seconds'] / ours['seconds']:,.0f} x",
            f"{needed / max(ours['peak'], MEGABYTE):,.0f} x",
            f"{differ:.0e}",
        )
    Console(width=120).print(table)


def _in_a_process(form: str, size: int, arguments: argparse.Namespace) -> dict[str, float]:
    threads = ["--threads", str(arguments.threads)] if arguments.threads is not None else []
    anchors = ["--anchors", str(arguments.anchors)] if arguments.anchors is not None else []
    command = [sys.executable, __file__, "--one", form, str(size), "--hold", str(arguments.hold), *threads, *anchors]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
