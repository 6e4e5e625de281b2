"""`latentlm plugins`: what is installed, which parts it offers, and what failed to load.

    latentlm plugins
    latentlm plugins --json

Exit status 0 even where a plugin failed, which the table shows in red; 1 with LATENTLM_STRICT_PLUGINS=1.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from latentlm.cli.output import AsJson, emit
from latentlm.cli.text import escaped

if TYPE_CHECKING:
    from latentlm.plugins import Plugin

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

  latentlm plugins

  latentlm plugins --json

  LATENTLM_PLUGINS=vanilla,free latentlm plugins
"""
_COLOURS = {"ok": "green", "failed": "red", "disabled": "dim"}


@app.command(epilog=_EPILOG)
def plugins(as_json: AsJson = False) -> None:
    """Show the plugins, their parts, and what failed to load.

    LATENTLM_PLUGINS is an allow-list of plugins. With LATENTLM_STRICT_PLUGINS=1 a failed plugin makes the exit status 1.
    """
    from latentlm import plugins as registry
    from latentlm.plugins import discovery as _discovery

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", registry.PluginWarning)  # the table says it
        found = registry.listing()
    clashes = registry.clashes()
    if as_json:
        claims = [{"socket": s, "name": n, "plugins": origins} for (s, n), origins in clashes.items()]
        emit({"plugins": [plugin.as_json() for plugin in found], "clashes": claims})
    else:
        _show(found, clashes)
    if _discovery.strict() and any(plugin.status == "failed" for plugin in found):
        raise typer.Exit(1)


def _show(found: list[Plugin], clashes: Mapping[tuple[str, str], list[str]]) -> None:
    """A table on standard output, and a line for each clash."""
    from rich.console import Console

    from latentlm.cli.tables import ReadableTable

    table = ReadableTable("plugin", "distribution", "status", "parts and cards")
    for plugin in found:
        lines = [f"{socket}: {', '.join(sorted(named))}" for socket, named in plugin.parts.items() if named]
        if plugin.cards:
            lines.append(f"cards: {', '.join(plugin.card_names)}")
        content = f"[red]{escaped(plugin.error)}[/red]" if plugin.error else escaped("\n".join(lines))
        colour = _COLOURS[plugin.status]
        distribution = escaped(f"{plugin.distribution} {plugin.version}".rstrip())
        name = "[dim](built in)[/dim]" if plugin.builtin else escaped(plugin.name)
        table.add_row(name, distribution, f"[{colour}]{plugin.status}[/{colour}]", content)
    console = Console()
    console.print(table)
    for (socket, name), origins in clashes.items():
        console.print(f'[red]clash:[/red] {socket} "{escaped(name)}" is offered by {escaped(" and ".join(origins))}')
