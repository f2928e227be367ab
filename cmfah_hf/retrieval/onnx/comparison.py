"""Codes of ONNX files compared with those of PyTorch, on random inputs of several sizes.

Shapes: N items, K hash bits.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmfah_hf.errors import CheckpointError
from cmfah_hf.retrieval.onnx.files import INPUTS
from cmfah_hf.retrieval.onnx.towers import Tower

# Values of a code below this are as good as 0: their signs may differ between two ways of rounding.
NEAR_ZERO = 1e-4
# Numbers of items and seeds of the inputs, whose sizes differ from those of the example that a tower is exported with.
_SIZES = ((1, 0), (2, 7), (5, 3), (16, 6))
# The largest share of bits that may differ beyond `NEAR_ZERO`. Random inputs are far from what models are trained with,
# so these find broken files; what codes are worth is measured on images.
_MOST_DIFFERENT = {"fp32": 0.0, "fp16": 0.02, "int8": 0.2}


@dataclass(frozen=True)
class Comparison:
    """Bits of codes that differ from PyTorch's.

    Attributes:
        items: The number of inputs.
        bits: The number of compared bits, of all items.
        different: Bits that differ.
        clearly: Those of them whose value in PyTorch is at least `NEAR_ZERO`.
        largest: The largest difference of a continuous code.
    """

    items: int
    bits: int
    different: int
    clearly: int
    largest: float

    @property
    def share(self) -> float:
        """The share of bits that differ clearly."""
        return self.clearly / max(self.bits, 1)


def compared(expected_NK: np.ndarray, found_NK: np.ndarray) -> Comparison:
    """Compares continuous codes `(N, K)` with expected ones."""
    differs_NK = (expected_NK >= 0) != (found_NK >= 0)
    clearly = int((differs_NK & (np.abs(expected_NK) >= NEAR_ZERO)).sum())
    largest = float(np.abs(expected_NK - found_NK).max(initial=0.0))
    return Comparison(len(expected_NK), expected_NK.size, int(differs_NK.sum()), clearly, largest)


def compare(tower: Tower, path: Path, precision: str) -> Comparison:
    """Compares the codes of a file with those of the tower.

    Raises:
        CheckpointError: If the file cannot be run, or more bits differ than rounding explains.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected, found = [], []
    for count, seed in _SIZES:
        inputs = tower.draw(count, seed)
        expected.append(tower.codes(inputs).numpy())
        feed = {name: tensor.numpy() for name, tensor in zip(INPUTS[tower.name], inputs, strict=True)}
        found.append(session.run([tower.output], feed)[0])
    result = compared(np.concatenate(expected), np.concatenate(found))
    if not np.isfinite(result.largest) or result.share > _MOST_DIFFERENT[precision]:
        raise CheckpointError(
            f"{path.name}: {result.clearly:,} of {result.bits:,} bits differ from PyTorch's, which is more than "
            "rounding; the file is not written. Try another opset or precision."
        )
    return result
