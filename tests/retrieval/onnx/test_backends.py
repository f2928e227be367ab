"""Towers through PyTorch's and ONNX's exports, compilers and quantizers: the codes of inputs of other sizes."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_models import CONFIGURATIONS, exported_model

from cmfah_hf.retrieval.onnx.comparison import NEAR_ZERO, Comparison, compared
from cmfah_hf.retrieval.onnx.files import INPUTS, TOWERS
from cmfah_hf.retrieval.onnx.programs import OPSET, exported, onnx_program
from cmfah_hf.retrieval.onnx.quantization import half_program, write_int8
from cmfah_hf.retrieval.onnx.towers import Tower, towers_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch's exporters

# Items and seeds, whose lengths differ from those of the example: 5, 12, 8 and 1 tokens.
SIZES = ((1, 0), (2, 7), (5, 3), (1, 8))
Codes = Callable[[tuple[torch.Tensor, ...]], np.ndarray]


def by_export(tower: Tower, folder) -> Codes:
    program = exported(tower).module()
    return lambda inputs: program(*inputs).detach().numpy()


def by_onnx(make: Callable[[Tower, str], None]) -> Callable[..., Codes]:
    def build(tower: Tower, folder) -> Codes:
        path = str(folder / "tower.onnx")
        make(tower, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = INPUTS[tower.name]
        return lambda inputs: session.run([tower.output], dict(zip(names, map(np.asarray, inputs), strict=True)))[0]

    return build


def by_compiler(tower: Tower, folder) -> Codes:
    torch._dynamo.reset()
    compiled = torch.compile(tower.module, fullgraph=True, dynamic=True, backend="eager")

    @torch.no_grad()
    def run(inputs):
        return compiled(*inputs).numpy()

    return run


def by_torchao(tower: Tower, folder) -> Codes:
    # Not of the environment: transformers imports it wherever it is installed. `make test` installs it there.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[3] / ".cache" / "torchao")
        quantization = pytest.importorskip("torchao.quantization")

    module = copy.deepcopy(tower.module)
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    return lambda inputs: module(*inputs).detach().numpy()


def by_dynamic_quantization(tower: Tower, folder) -> Codes:
    module = torch.ao.quantization.quantize_dynamic(copy.deepcopy(tower.module), {torch.nn.Linear}, torch.qint8)
    return lambda inputs: module(*inputs).detach().numpy()


def _write(program, path):
    with open(path, "wb") as file:  # noqa: PTH123 - a name, as runtimes take it
        file.write(program.SerializeToString())


def _int8(tower: Tower, path: str) -> None:
    write_int8(onnx_program(tower), Path(path), tower, (tower.draw(8, seed)[0].numpy() for seed in range(2)))


# With the largest share of bits that may differ clearly. Weights are random, so many values are near 0.
BACKENDS: dict[str, tuple[Callable[..., Codes], float]] = {
    "export": (by_export, 0.0),
    "fp32": (by_onnx(lambda tower, path: _write(onnx_program(tower), path)), 0.0),
    "fp16": (by_onnx(lambda tower, path: _write(half_program(tower, OPSET), path)), 0.02),
    "int8": (by_onnx(_int8), 0.15),
    "compile": (by_compiler, 0.0),
    "torchao": (by_torchao, 0.05),
    "quantize_dynamic": (by_dynamic_quantization, 0.1),
}
# What the short tests try; the others are slow.
QUICK = {("cmfah", name) for name in ("export", "fp32", "torchao")}
# Everything is tried with these, and with the others `torch.export` alone.
WHOLE = ("cmfah", "scahn-lstm", "clip", "siglip2")
CASES = [
    pytest.param(model, backend, id=f"{model}-{backend}", marks=() if (model, backend) in QUICK else pytest.mark.slow)
    for model in WHOLE
    for backend in BACKENDS
    if (model, backend) != ("siglip2", "quantize_dynamic")  # transformers' code reads the weights' type of such a layer
]
OTHERS = [name for name in CONFIGURATIONS if name not in WHOLE]


def comparison(tower: Tower, run: Codes) -> Comparison:
    expected, found = [], []
    for count, seed in SIZES:
        inputs = tower.draw(count, seed)
        expected.append(tower.codes(inputs).numpy())
        found.append(run(inputs))
    return compared(np.concatenate(expected), np.concatenate(found))


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_codes_of_other_batches_and_lengths_are_those_of_the_model(name, backend, tmp_path):
    build, most = BACKENDS[backend]
    for tower in towers_of(exported_model(name)):
        result = comparison(tower, build(tower, tmp_path))
        assert result.items == sum(count for count, _ in SIZES)
        assert result.share <= most, (tower.name, result)
        if not most:  # the rest is nearer to 0 than rounding reaches
            assert result.largest < NEAR_ZERO


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_encoder_is_exported(name, tmp_path):
    for tower in towers_of(exported_model(name)):
        result = comparison(tower, by_export(tower, tmp_path))
        assert (result.clearly, result.largest < NEAR_ZERO) == (0, True), (tower.name, result)


@pytest.mark.slow
def test_convolutions_stay_in_float32_where_8_bits_would_change_the_codes(tmp_path, monkeypatch, caplog):
    (vision, _), found = towers_of(exported_model("cmfah")), {}
    program, pixels = onnx_program(vision), [vision.draw(4, seed)[0].numpy() for seed in range(6)]
    for most in (1.0, -1.0):
        monkeypatch.setattr("cmfah_hf.retrieval.onnx.quantization._MOST_CHANGED", most)
        write_int8(program, tmp_path / "vision_model_int8.onnx", vision, pixels)
        nodes = onnx.load(tmp_path / "vision_model_int8.onnx").graph.node
        made = {output: node.op_type for node in nodes for output in node.output}
        found[most] = {made.get(node.input[0]) == "DequantizeLinear" for node in nodes if node.op_type == "Conv"}
    assert found == {1.0: {True}, -1.0: {False}}
    (record,) = (one for one in caplog.records if one.name == "cmfah_hf.retrieval.onnx.quantization")
    assert "vision_model_int8.onnx: convolutions stay in float32; with 8 bits, " in record.getMessage()


def test_random_inputs_differ_in_length_and_the_last_text_is_empty():
    vision, text = towers_of(exported_model("cmfah"))
    assert (vision.name, text.name) == TOWERS
    lengths = {text.draw(count, seed)[0].shape[1] for count, seed in SIZES}
    assert lengths == {5, 12, 8, 1}
    assert text.draw(3, 1)[0].shape == (3, 6)  # of the example
    assert text.draw(4, 2)[1][-1].sum() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vision.draw(2, 0)[0].shape == (2, 3, 32, 32)
