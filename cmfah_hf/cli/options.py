"""Options that several commands have."""

from typing import Annotated

import typer


def second_words(context: typer.Context, incomplete: str) -> list[str]:
    """The completions of a command's first argument by names such as `index info`, if `index` is a command too."""
    group = None if context.parent is None else context.parent.command
    first = f"{context.info_name} "
    names = [name.removeprefix(first) for name in getattr(group, "commands", ()) if name.startswith(first)]
    return [name for name in names if name.startswith(incomplete)]


DoneAsJson = Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")]
FiguresAsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", "--trust_remote_code", help="Let code of the model's encoder run.")
]
Backend = Annotated[
    str,
    typer.Option(help="'torch', or 'onnx': by the model's ONNX files, without PyTorch, which starts sooner."),
]
Precision = Annotated[str, typer.Option(help="With --backend onnx: the files to use, 'fp32', 'fp16' or 'int8'.")]
Branch = Annotated[str | None, typer.Option(help="The branch; created if needed. Default: the main one.")]
Private = Annotated[bool, typer.Option("--private", help="Create a private repository.")]
Message = Annotated[str | None, typer.Option(help="The commit's title.")]
