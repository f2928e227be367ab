"""A tower as an ONNX program in float32, by `torch.export` and PyTorch's exporter, without traces of this machine."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.retrieval.onnx.files import INPUTS
from cmfah_hf.retrieval.onnx.towers import Tower

if TYPE_CHECKING:
    from onnx import ModelProto

# Versions of ONNX's operators that PyTorch's exporter writes and that runtimes in browsers read.
OPSETS = range(18, 24)
OPSET = 20
# Names of the open sizes, by the number of the dimension.
_SIZES = {"vision": {0: "batch"}, "text": {0: "batch", 1: "length"}}
# A file of the format cannot be larger, and has no part for weights outside it.
_MOST_BYTES = 2 * 10**9


def check_opset(opset: int | None) -> int:
    """The version of the operators; `CMFAHError` if it is not one of `OPSETS`."""
    if opset is None:
        return OPSET
    if opset not in OPSETS:
        raise CMFAHError(f"The opset {opset} is not supported; give one from {OPSETS[0]} to {OPSETS[-1]}.")
    return opset


def require_exporter() -> None:
    """Raises a `CMFAHError` that names the extra if a library of the exports is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise CMFAHError(
            f"Writing ONNX files needs {error.name or 'onnx'}; install it: pip install 'cmfah-hf[export]'."
        ) from error


def exported(tower: Tower) -> ExportedProgram:
    """The tower as a program of PyTorch with open sizes.

    Raises:
        CheckpointError: If no program can be made of it; the error names the module.
    """
    inputs = tower.draw(3, 1)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(tower.module, inputs, dynamic_shapes=tower.dynamic, strict=False)
    except Exception as error:  # any, from the code of any encoder
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"The {tower.name} tower cannot be exported by PyTorch ({reason}).") from error


def onnx_program(tower: Tower, opset: int = OPSET) -> "ModelProto":
    """The tower as an ONNX model in float32, with its weights.

    Raises:
        CheckpointError: If ONNX lacks one of its operators, which is named with its module, or it is too large.
    """
    size = sum(weight.numel() * weight.element_size() for weight in tower.module.parameters())
    if size >= _MOST_BYTES:
        raise CheckpointError(
            f"The {tower.name} tower has {size / 1e9:.1f} GB of weights, and an ONNX file holds less than 2; use a "
            "smaller encoder."
        )
    program = exported(tower)
    try:
        with _quiet():
            made = torch.onnx.export(
                program, input_names=list(INPUTS[tower.name]), output_names=[tower.output], opset_version=opset,
                dynamo=True, verbose=False, custom_translation_table=_translations(),
            )  # fmt: skip
            assert made is not None
            _fold_weights(made)
    except torch.onnx.errors.OnnxExporterError as error:
        raise _unsupported(tower, program, error) from error
    return _cleaned(made.model_proto, tower)


def _translations() -> dict[Any, Any]:
    """The operators that PyTorch's exporter cannot translate."""
    return {torch.ops.cmfah.lstm.default: _lstm, torch.ops.aten._is_all_true.default: _is_all_true}


def _operators() -> Any:
    """ONNX's operators as functions. Their types are of arrays, while an exporter passes values of a graph."""
    from onnxscript import opset18

    return opset18


def _is_all_true(values: Any) -> Any:
    """A condition of SigLIP 2 about the sizes of images, which are given in advance."""
    from onnx import TensorProto

    op = _operators()
    return op.Cast(op.ReduceMin(op.Cast(values, to=TensorProto.INT64), keepdims=0), to=TensorProto.BOOL)


def _lstm(x_BPD: Any, input_weight: Any, hidden_weight: Any, input_bias: Any, hidden_bias: Any) -> Any:
    """The operator `cmfah::lstm` by ONNX's. PyTorch orders gates as input, forget, cell, output."""
    op, width = _operators(), int(hidden_weight.shape[1])
    places = [gate * width + place for gate in (0, 3, 1, 2) for place in range(width)]

    def ordered(weights: Any) -> Any:
        return op.Gather(weights, op.Constant(value_ints=places), axis=0)

    one_direction = op.Constant(value_ints=[0])
    weights = [op.Unsqueeze(ordered(weight), one_direction) for weight in (input_weight, hidden_weight)]
    biases = op.Unsqueeze(op.Concat(ordered(input_bias), ordered(hidden_bias), axis=0), one_direction)
    sequence = op.Transpose(x_BPD, perm=[1, 0, 2])
    found, _, _ = op.LSTM(sequence, *weights, biases, hidden_size=width)
    return op.Transpose(op.Squeeze(found, op.Constant(value_ints=[1])), perm=[1, 0, 2])


def _fold_weights(program: Any) -> None:
    """Computes the ordered weights of LSTMs, which quantizers take as constants alone."""
    from onnxscript import optimizer

    if any(node.op_type == "LSTM" for node in program.model.graph):
        optimizer.optimize(program.model, input_size_limit=_MOST_BYTES, output_size_limit=_MOST_BYTES)


def _unsupported(tower: Tower, program: ExportedProgram, error: BaseException) -> CheckpointError:
    """The error for an operator that ONNX lacks, with the operator and the module that calls it."""
    reasons = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.append(str(cause))
        cause = cause.__cause__
    found = re.search(r"target=(?:torch\.ops\.)?([\w.]+)", "\n".join(reversed(reasons)))
    if found is None:
        return CheckpointError(
            f"The {tower.name} tower cannot be written as ONNX ({' '.join(reasons[-1].split())[:200]})."
        )
    # PyTorch's exporter may have divided the operator, such as `aten.special_bessel_j0` into `prims.bessel_j0`.
    last = _plain_name(found[1])
    calls = {_name(node): node.meta for node in reversed(program.graph.nodes) if node.op == "call_function"}
    operator = next((name for name in calls if _plain_name(name).endswith(last)), found[1])
    meta = calls.get(found[1]) or calls.get(operator, {})
    # From the whole to the innermost, each as its path and its class.
    stack = list(meta.get("nn_module_stack", {}).values())
    path, kind = stack[-1][:2] if stack else ("", "")
    name = str(kind).rpartition(".")[2]
    where = f" in {path.removeprefix('tower.')} ({name})" if path else ""
    return CheckpointError(
        f"The {tower.name} tower uses the operator {operator}{where}, which ONNX lacks; replace that module, or use "
        "another encoder."
    )


def _name(node: torch.fx.Node) -> str:
    """The operator that a node calls, such as `aten.add.Tensor`."""
    return str(node.target).removeprefix("torch.ops.")


def _plain_name(operator: str) -> str:
    """`add` of `aten.add.Tensor`."""
    return operator.split(".")[1] if "." in operator else operator


def _cleaned(model: "ModelProto", tower: Tower) -> "ModelProto":
    """Names the open sizes, and removes what is of this machine alone: paths of source files."""
    for value in (*model.graph.input, *model.graph.output):
        for place, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.dim_param:
                dimension.dim_param = _SIZES[tower.name].get(place, f"size{place}")
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")
    model.graph.ClearField("value_info")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of the exporters, which are for those who develop them."""
    logger = logging.getLogger("torch.onnx")
    former = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(former)
