"""`latentlm new-plugin`: begin a plugin, as a small distribution that works as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentlm.cli.output import AsJson, emit
from latentlm.errors import UserError, shown

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

  latentlm new-plugin mine

  latentlm new-plugin mine --socket prior --out plugins/mine

  latentlm new-plugin mine --method

  latentlm new-plugin mine --json
"""


@app.command(epilog=_EPILOG)
def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the plugin and of its part: lower-case letters, digits, dashes.")],
    socket: Annotated[
        str | None, typer.Option(help="Socket of the part: encoder (default), prior, injection, kl_schedule or granularity.")
    ] = None,
    method: Annotated[
        bool, typer.Option("--method", help="A whole method: encoder, prior, injection, their distribution, and a decoder.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: latentlm-NAME.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a small distribution: entry point, one part or a method, tests, recipe, CI file. It works as it is."""
    from latentlm.plugins.scaffold import write_method, write_plugin

    if method and socket is not None:
        raise UserError("Give --method, which fills all sockets, or --socket for a part of one.")
    written = write_method(name, folder=out) if method else write_plugin(name, socket=socket or "encoder", folder=out)
    folder = written[0].parent
    if as_json:
        emit({"folder": str(folder), "files": [str(path.relative_to(folder)) for path in written]})
        return
    plain = name.replace("-", "_")
    print(shown(f"Wrote {folder}:"))
    for path in written:
        print(f"  {path.relative_to(folder)}")
    steps = (f"cd {folder}", "pip install -e '.[dev]'", "pytest", f"latentlm train recipes/{plain}.yaml --out runs/{plain}")
    print(shown("\n".join(["\nNext:", *(f"  {step}" for step in steps)])))
