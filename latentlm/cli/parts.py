"""`latentlm parts`: every part that a recipe can name, what can be set in it, and what goes with what.

    latentlm parts --socket prior
    latentlm parts describe causal_bits
    latentlm parts for demo-free prior
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from latentlm.cli.output import AsJson, emit
from latentlm.cli.text import escaped

if TYPE_CHECKING:
    from rich.console import RenderableType

    from latentlm.plugins.describing import Part


class _ListByDefault(TyperGroup):
    """`latentlm parts` alone, or with options only, is `latentlm parts list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name where it was left out."""
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault,
    add_completion=False,
    help="List the parts by socket, describe one, or say which fit a recipe.",
    epilog="Examples:\n\n  latentlm parts\n\n  latentlm parts describe causal_bits\n\n  latentlm parts for demo-free prior",
)

_EVERY = "any"


@app.command("list", epilog="Examples:\n\n  latentlm parts list\n\n  latentlm parts list --socket prior --json")
def list_parts(
    socket: Annotated[str | None, typer.Option(help="Only the parts of this socket (encoder, prior, ...).")] = None,
    as_json: AsJson = False,
) -> None:
    """List all parts by socket, with plugin, family, granularities and a line on each."""
    from latentlm.plugins.describing import every

    found = every(socket)
    if as_json:
        emit([part.as_json() for part in found])
        return
    from rich.console import Console

    from latentlm.cli.tables import ReadableTable

    table = ReadableTable("socket", "name", "plugin", "family", "granularities", "what it is", names=3)
    for place in dict.fromkeys(part.socket for part in found):
        for part in (part for part in found if part.socket == place):
            table.add_row(place, escaped(part.name), escaped(part.plugin.name), *_kind(part), escaped(part.summary))
        table.add_section()
    Console().print(table)


@app.command(epilog="Examples:\n\n  latentlm parts describe free\n\n  latentlm parts describe causal_bits --json")
def describe(name: Annotated[str, typer.Argument(help="A part's name, in any socket.")], as_json: AsJson = False) -> None:
    """Say what a part is: its settings with defaults and ranges, its kind of latent, and what it combines with."""
    from latentlm.plugins.describing import every, named, partners

    found = named(name)
    combined = [partners(part, every()) for part in found]
    if as_json:
        rows = [
            {
                **part.as_json(),
                "doc": part.doc,
                "source": part.source,
                "flags": part.flags,
                "defaults": part.defaults,
                "settings": [setting.as_json() for setting in part.settings],
                "combines_with": others,
            }
            for part, others in zip(found, combined, strict=True)
        ]
        emit(rows)
        return
    from rich.console import Console

    console = Console()
    for part, others in zip(found, combined, strict=True):
        console.print(_facts(part, others))
        console.print(_settings(part))


@app.command("for", epilog="Examples:\n\n  latentlm parts for demo-free prior\n\n  latentlm parts for my.yaml encoder --json")
def for_recipe(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, a YAML file, or a run folder.")],
    socket: Annotated[
        str, typer.Argument(help="encoder, prior, injection, kl_schedule or granularity; of several latents NAME.prior, ...")
    ],
    as_json: AsJson = False,
) -> None:
    """Say which parts of a socket fit a recipe's model, and why the others do not."""
    from latentlm.cli._fitting import find, fits
    from latentlm.training.recipes import load_recipe

    loaded = load_recipe(recipe)
    place = find(loaded, socket)
    found = sorted(fits(loaded, place), key=lambda fit: (fit.reason is not None, fit.part.name))
    if as_json:
        emit([fit.as_json() for fit in found])
        return
    from rich.console import Console

    from latentlm.cli.tables import ReadableTable

    table = ReadableTable(socket, "plugin", "fits", "", title=f'For the recipe "{escaped(loaded.name)}"', title_justify="left")
    for fit in found:
        verdict = "[green]yes[/green]" if fit.reason is None else "[red]no[/red]"
        table.add_row(escaped(fit.part.name), escaped(fit.part.plugin.name), verdict, escaped(fit.reason or fit.note))
    console = Console()
    console.print(table)
    console.print(escaped(f"Take one: latentlm train {recipe} {place.key}=NAME"), highlight=False)


def _kind(part: Part) -> tuple[str, str]:
    """Family and granularities as cells; empty for parts that have nothing to do with values of z."""
    from latentlm.plugins.describing import ON_VALUES

    if part.socket not in ON_VALUES:
        return "", ""
    served = _EVERY if part.granularities is None else ", ".join(part.granularities)
    return escaped(part.family or _EVERY), escaped(served)


def _facts(part: Part, others: dict[str, list[str]]) -> RenderableType:
    """What the part says of itself."""
    from latentlm.cli.tables import ReadableTable

    title = f'{part.socket} "{escaped(part.name)}" of plugin "{escaped(part.plugin.name)}"'
    table = ReadableTable(title=title, title_justify="left", show_header=False)
    kind, served = _kind(part)
    rows = {
        "what it is": escaped(part.doc),
        "family": kind,
        "granularities": served,
        **{flag: escaped(_word(value)) for flag, value in part.flags.items()},
        **{f"default {key}": escaped(value) for key, value in part.defaults.items()},
        **{f"goes with {socket}": escaped(", ".join(names)) for socket, names in others.items()},
        "source": escaped(part.source),
    }
    for label, value in rows.items():
        if value:
            table.add_row(label, value)
    return table


def _settings(part: Part) -> RenderableType:
    """A table of the settings, or that there are none."""
    from latentlm.cli.tables import ReadableTable

    if not part.settings:
        return "It has no settings.\n" if part.socket != "decoder" else "Its settings are those of `model:` in a recipe.\n"
    table = ReadableTable("setting", "type", "default", "range", "")
    for setting in part.settings:
        cells = (setting.name, setting.type, setting.default, setting.range, setting.description)
        table.add_row(*(escaped(cell) for cell in cells))
    return table


def _word(value: object) -> str:
    """yes, no, or a list."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(item) for item in value) if isinstance(value, tuple | list) else str(value)
