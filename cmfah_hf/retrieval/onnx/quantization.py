"""ONNX models in half precision and with 8-bit weights.

In half precision, a tower is exported as PyTorch computes it in float16, so what it computes in float32 for its range
stays in float32. With 8 bits, the weights of matrix products, LSTMs and tables are quantized; their inputs are
quantized as they come. Convolutions need the ranges of their inputs before, which a few images or texts give, and stay
in float32 if that changes too many bits of the codes.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cmfah_hf.retrieval.onnx.comparison import compared
from cmfah_hf.retrieval.onnx.files import INPUTS
from cmfah_hf.retrieval.onnx.programs import onnx_program
from cmfah_hf.retrieval.onnx.towers import Tower

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

# Operators whose inputs are quantized as they come.
_DYNAMIC = ("MatMul", "LSTM", "Gather")
# Random texts and their seeds, which give the ranges of convolutions over words.
_TEXTS, _TEXT_SEEDS = 64, range(6)
# The largest share of bits that convolutions of 8 bits may change. Of the bundled model, they change .002 of the bits,
# and its MAP by .0003; of an EfficientNet-Lite2, .08 and .025. What else is quantized changes .002 of the bits.
_MOST_CHANGED = 0.01


def half_program(tower: Tower, opset: int) -> "ModelProto":
    """The tower as an ONNX model in float16, with inputs and outputs in float32.

    Raises:
        CheckpointError: As `onnx_program`.
    """
    return onnx_program(replace(tower, module=deepcopy(tower.module).half()), opset)


def write_int8(program: "ModelProto", path: Path, tower: Tower, pixels: Iterable[np.ndarray]) -> None:
    """Writes an ONNX model with 8-bit weights.

    Args:
        program: The model in float32.
        path: The file to write.
        tower: The tower that it is of.
        pixels: Batches of `pixel_values`, like those that the model will see; only read for convolutions over images.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    changed = 0.0
    with TemporaryDirectory() as folder, _quiet():
        plain, convolutions = Path(folder) / "plain.onnx", Path(folder) / "convolutions.onnx"
        onnx.save(program, plain)
        quant_pre_process(plain, plain, skip_symbolic_shape=True)
        has_convolutions = any(node.op_type == "Conv" for node in program.graph.node)
        if has_convolutions:
            inputs = list(_calibration(tower, pixels))
            held_out = inputs[::3]
            rest = [*inputs[1::3], *inputs[2::3]] or inputs  # a single batch serves for both
            reader: Any = _Reader(iter(rest))
            quantize_static(
                plain, convolutions, reader, quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"],
                per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
            quantize_dynamic(convolutions, path, op_types_to_quantize=list(_DYNAMIC), per_channel=True)
            changed = _share_of_changed_bits(tower, path, held_out)
        if not has_convolutions or changed > _MOST_CHANGED:
            quantize_dynamic(plain, path, op_types_to_quantize=list(_DYNAMIC), per_channel=True)
    if changed > _MOST_CHANGED:
        logger.warning(
            "%s: convolutions stay in float32; with 8 bits, %.1f %% of the bits of codes would change.",
            *(path.name, 100 * changed),
        )


def _share_of_changed_bits(tower: Tower, path: Path, batches: Iterable[dict[str, np.ndarray]]) -> float:
    """The share of the bits of the codes of inputs that differ from PyTorch's in a file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = [session.run([tower.output], batch)[0] for batch in batches]
    expected = [tower.codes(tuple(map(torch.from_numpy, batch.values()))).numpy() for batch in batches]
    return compared(np.concatenate(expected), np.concatenate(found)).share


def _calibration(tower: Tower, pixels: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Inputs by their names."""
    if tower.name == "vision":
        for batch in pixels:
            yield {INPUTS["vision"][0]: batch}
        return
    for seed in _TEXT_SEEDS:
        inputs: tuple[torch.Tensor, ...] = tower.draw(_TEXTS, seed)
        yield {name: tensor.numpy() for name, tensor in zip(INPUTS["text"], inputs, strict=True)}


class _Reader:
    """Inputs in the form that ONNX Runtime's calibration takes."""

    def __init__(self, inputs: Iterator[dict[str, np.ndarray]]):
        self._inputs = inputs

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next inputs, or None after the last ones."""
        return next(self._inputs, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of the quantizer, which advise what is done here."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(former)
