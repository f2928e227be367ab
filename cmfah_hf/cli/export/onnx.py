"""`cmfah export onnx`."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import DoneAsJson, RemoteCode


def onnx(
    model: Annotated[str, typer.Argument(help="A trained model: a folder or a Hub id.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder in which `onnx` is written. Default: the model's own."),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="'fp32', 'fp16' or 'int8'; may be repeated. Default: fp32.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of images like those to encode, for int8 convolutions. Default: drawn scenes."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators. Default: 20.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    trust_remote_code: RemoteCode = False,
    json: DoneAsJson = False,
) -> None:
    """Write both towers of a model as ONNX files, for programs without PyTorch and for browsers.

    Each file is checked: its codes of random inputs of other sizes are compared with PyTorch's, and the bits that
    differ are counted; *clearly* are those of a value of at least 0.0001.
    """
    from cmfah_hf.cli.output import print_json, print_table
    from cmfah_hf.data.images.files import find_image_files
    from cmfah_hf.retrieval.onnx import export_onnx

    files = None if images is None else find_image_files(images).files
    done = export_onnx(
        model, output, precision or ["fp32"], opset, overwrite, files, trust_remote_code=trust_remote_code
    )
    if json:
        described = {
            name: {**done.files.files[name], "bits": one.bits, "different": one.different, "clearly": one.clearly}
            for name, one in done.comparisons.items()
        }
        print_json(
            {
                "folder": str(done.folder),
                "model": done.files.fingerprint,
                "bits": done.files.hash_bits,
                "opset": done.files.opset,
                "files": described,
            }
        )
        return
    rows = [
        [name, done.files.files[name]["bytes"], one.bits, one.different, one.clearly]
        for name, one in done.comparisons.items()
    ]
    columns = ["file", "bytes", "bits compared", "different", "clearly"]
    print_table(f"{done.folder}: {done.files.hash_bits} bits, opset {done.files.opset}", columns, rows)
