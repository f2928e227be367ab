"""`cmfah serve`."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.index import saving_on_termination
from cmfah_hf.cli.options import Backend, Precision, RemoteCode


def serve(
    model: Annotated[str, typer.Argument(help="A trained model: a folder or a Hub id.")],
    index: Annotated[
        Path | None,
        typer.Argument(
            help="The index file of images; made if it is not there. Default: that of the folder of --images in the "
            "Hub's cache, or else the indexes pushed with the model, which do not change."
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="A folder of images that the index follows, brought up to date now; may be repeated."),
    ] = None,
    texts: Annotated[Path | None, typer.Option(help="The index file of texts; made if it is not there.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for a free one.")] = 8008,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the token that clients have to send. Default: the variable CMFAH_TOKEN."),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Accept all clients, also on an address that other machines reach.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A host name of the server, beyond localhost, IP addresses and --host; may be repeated."),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Only search; other programs may update the index file.")
    ] = False,
    limit: Annotated[
        list[str] | None, typer.Option(help="'NAME=NUMBER': another limit, such as k=5000; may be repeated.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of folders that are encoded at once.")] = 32,
    any_model: Annotated[bool, typer.Option("--any-model", help="Accept an index made by another model.")] = False,
    backend: Backend = "torch",
    precision: Precision = "fp32",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Serve searches over HTTP: search, add, remove, sync, health, metrics, and their description in /openapi.json.

    `cmfah search --server URL` asks it. On SIGTERM and Ctrl-C, running requests are finished and the index is saved.
    While it runs, `cmfah index` does not change its index file; send a request to /sync instead.
    """
    from cmfah_hf.serving.limits import ServiceLimits
    from cmfah_hf.serving.tokens import read_token

    limits, token = ServiceLimits.of_options(limit or ()), None if no_token else read_token(token_file)

    from cmfah_hf.serving.server import ServedSources, serve

    sources = ServedSources(model, index, texts, images or (), read_only, batch_size)
    with saving_on_termination():
        serve(
            sources, host, port, token, without_token=no_token, further_hosts=allow_host or (), limits=limits,
            any_model=any_model, trust_remote_code=trust_remote_code, backend=backend, precision=precision,
        )  # fmt: skip
