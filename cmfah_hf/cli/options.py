"""Options that several commands have."""

from typing import Annotated

import typer

DoneAsJson = Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")]
FiguresAsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", "--trust_remote_code", help="Let code of the model's encoder run.")
]
Branch = Annotated[str | None, typer.Option(help="The branch; created if needed. Default: the main one.")]
Private = Annotated[bool, typer.Option("--private", help="Create a private repository.")]
Message = Annotated[str | None, typer.Option(help="The commit's title.")]
