"""`latentlm zoo`: list, describe and extend the model zoo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentlm.cli.output import AsJson, emit

if TYPE_CHECKING:
    from rich.console import RenderableType

    from latentlm.config import Card

app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, describe and extend the model zoo.")



@app.command("list", epilog="Examples:\n\n  latentlm zoo list\n\n  latentlm zoo list 'free-*' --json")
def list_models(
    pattern: Annotated[str, typer.Argument(help="Wildcard pattern of names.")] = "*", as_json: AsJson = False
) -> None:
    """List the models as a family tree: by the latents of a text, by decoder, trained ones and architectures."""
    from latentlm import zoo

    cards = zoo.list(pattern)
    if as_json:
        emit([card.model_dump(mode="json") for card in cards])
        return
    from rich.console import Console

    from latentlm.cli.text import escaped

    if cards:
        Console().print(_family(cards))
    else:
        Console().print(escaped(f'No model matches "{pattern}"; `latentlm zoo list` shows all.'))


def _family(cards: Sequence[Card]) -> RenderableType:
    """The family tree: how many latents, which decoder, which cards."""
    from rich.text import Text
    from rich.tree import Tree

    from latentlm.cli.text import escaped
    from latentlm.errors import shown
    from latentlm.zoo import family

    width = max(len(card.name) for card in cards)
    root = Tree("[bold]latent-conditioned decoders[/bold]", guide_style="dim")
    for branch, members in family.tree(cards).items():
        limb = root.add(f"[bold]{branch}[/bold]")
        for member in members:
            twig = limb.add(f"{escaped(member.decoder)}  [dim]{escaped(member.parts)}[/dim]")
            for card in member.cards:
                line = Text(f"{shown(card.name):{width}}  ", no_wrap=True, overflow="ellipsis")
                line.append(f"{card.status:12}", style="green" if card.status == "trained" else "yellow")
                twig.add(line.append("  " + shown(card.description.partition("\n")[0])))
    return root


@app.command(epilog="Examples:\n\n  latentlm zoo describe free-8b\n\n  latentlm zoo describe runs/mine --json")
def describe(
    name: Annotated[str, typer.Argument(help="A card's name, a run folder, or a card file.")], as_json: AsJson = False
) -> None:
    """Say what a model is and costs, without loading it: parameters, operations, memory, overheads; draw its sockets."""
    from latentlm import zoo

    found = zoo.describe(name)
    if as_json:
        emit(found.as_json())
        return
    from rich.console import Console

    from latentlm.cli.tables import ReadableTable
    from latentlm.cli.text import escaped

    table = ReadableTable(title=f"{escaped(found.card.name)} ({found.card.status})", title_justify="left", show_header=False)
    for rows in found.sections():
        for label, value in rows:
            table.add_row(escaped(label), escaped(value))
        table.add_section()
    console = Console()
    console.print(table)
    console.print("The sockets, from the text upwards:\n", highlight=False)
    console.print(escaped(found.drawing), highlight=False, soft_wrap=True)


@app.command(epilog="Examples:\n\n  latentlm zoo add runs/mine\n\n  latentlm zoo add runs/mine --name mine --to shelf/")
def add(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    name: Annotated[str | None, typer.Option(help="Name of the card. Default: the run's.")] = None,
    to: Annotated[Path | None, typer.Option(help="Shelf to put it on. Default: your own, which is always looked at.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a card of that name on the shelf.")] = False,
) -> None:
    """Make a zoo model of a finished run: copy its weights, tokenizer and card onto a shelf."""
    from latentlm.errors import shown
    from latentlm.zoo.shelves import ZOO_PATH, add_run, is_known

    entry = add_run(run, name=name, shelf=to, replace=replace)
    print(shown(f'Added "{entry.card.name}" in {entry.folder}.'))
    if not is_known(entry.folder.parent):
        print(shown(f"Its shelf is not among those that are looked at; add it with {ZOO_PATH}={entry.folder.parent}"))
