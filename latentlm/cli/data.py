"""`latentlm data`: token shards, from which a model trains on data larger than memory.

    latentlm data prepare texts/ data.tokenizer=bpe:32768 --out shards
    latentlm data verify shards
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlm.cli.output import AsJson, emit
from latentlm.errors import UserError, shown

if TYPE_CHECKING:
    from latentlm.config import DataConfig
    from latentlm.training.data.shards.format import Index
    from latentlm.training.data.shards.making import Say

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Write token shards, for data larger than memory; verify them.",
    epilog="Examples:\n\n  latentlm data prepare texts/ --out shards\n\n  latentlm data verify shards",
)

_PREPARE = """Write token shards of documents: files that training maps instead of holding the data in memory.

PATH is anything that data.path takes: a folder, a .txt, .jsonl or .parquet file, stdlib, synthetic:NAME, a data set of the
Hugging Face hub. A command that was killed goes on where it was when it is given again.

Examples:

  latentlm data prepare texts/ --out shards

  latentlm data prepare rows.jsonl data.text_field=body data.tokenizer=bpe:32768 --out shards --processes 8

  latentlm data prepare owner/name data.tokenizer=my/tokenizer.json data.held_out=0.001 --out shards

  latentlm train my.yaml data.path=shards data.tokenizer=shards/tokenizer.json data.held_out=0.001
"""


@app.command(help=_PREPARE)
def prepare(
    path: Annotated[str, typer.Argument(help="Where the documents are: as data.path of a recipe.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Other settings of a recipe's data: data.tokenizer=bpe:4096 data.seed=1", show_default=False),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the shards: new, empty, or begun by this command.")],
    processes: Annotated[int, typer.Option(min=1, max=4096, help="How many tokenize at a time.")] = 1,
    shard_mib: Annotated[int, typer.Option(min=1, max=2**20, help="MiB of text, at least, that make a shard.")] = 64,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and the result only.")] = False,
) -> None:
    """Write token shards, or go on with it."""
    from latentlm.training.data.shards.making import make

    config = _config(path, settings or [])
    with _told(quiet=quiet) as say:
        index = make(config, out=out, processes=processes, shard_bytes=shard_mib * 2**20, say=say)
    if as_json:
        emit({"out": str(out), **_facts(index), "fingerprint": index.fingerprint()})
        return
    typer.echo(shown(f"{out}: {_said(index)}\ntrain on it: latentlm train RECIPE {_train_on(index, out)}"), file=sys.stdout)


@app.command(epilog="Examples:\n\n  latentlm data verify shards\n\n  latentlm data verify shards --json")
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder of shards.", show_default=False)], as_json: AsJson = False
) -> None:
    """Read all files of a folder of shards and compare their hashes; also whether every token is the tokenizer's.

    (Training looks at the index and at the files' sizes.) Exit status 1 where anything is damaged.
    """
    from latentlm.training.data.shards.format import read_index
    from latentlm.training.data.shards.reading import damages

    index, found = read_index(folder), []
    with _told(quiet=False) as say:
        for done, (_, wrong) in enumerate(damages(folder), 1):
            say("files", done, len(index.files()))
            found += [wrong] if wrong is not None else []
    if as_json:
        emit({"folder": str(folder), "files": len(index.files()), "damaged": found, "fingerprint": index.fingerprint()})
    elif not found:
        typer.echo(shown(f"{folder}: {len(index.files())} files are as they were written; {_said(index)}"), file=sys.stdout)
    if found:
        more = f"; and {len(found) - 1:,} more" if len(found) > 1 else ""
        raise UserError(f"{found[0].rstrip('.')}{more}. Bring the files back, or prepare the data anew.")


def _config(path: str, settings: list[str]) -> DataConfig:
    """The `data` of a recipe. Raises UserError."""
    from latentlm.config import Recipe, apply_overrides, parse
    from latentlm.training.recipes import literal

    if odd := [each for each in settings if not each.startswith("data.")]:
        raise UserError(f"{odd[0]} is no setting of data, such as data.tokenizer=bpe:4096.")
    if any(each.startswith("data.path=") for each in settings):
        raise UserError("the path is the first argument: leave data.path= out.")
    model: dict[str, Any] = {"model": {"decoder": "vanilla"}}
    data = apply_overrides(model, [literal(each) for each in [f"data.path={path}", *settings]])
    return parse(Recipe, data, source="latentlm data prepare").data


@contextmanager
def _told(*, quiet: bool) -> Iterator[Say]:
    """What to call with how it goes on: a bar on a terminal, a line for each step elsewhere; all on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:

        def say(what: str, done: int, of: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
                if bar.disable and not quiet:
                    console.print(what, markup=False, highlight=False)
            bar.update(tasks[what], completed=done, total=of)

        yield say


def _facts(index: Index) -> dict[str, Any]:
    """Counts, for a program."""
    parts = {"train": index.train, "held_out": index.held_out}
    return {
        "tokenizer": index.tokenizer.name,
        "vocabulary": index.tokenizer.vocabulary,
        "dtype": index.dtype,
        **{
            part: {
                "shards": len(shards),
                "documents": sum(shard.documents for shard in shards),
                "targets": sum(shard.tokens - 1 for shard in shards),
                "bytes": sum(shard.bytes for shard in shards),
            }
            for part, shards in parts.items()
        },
        "duplicates_dropped": index.duplicates,
        "empty_dropped": index.empty,
    }


def _said(index: Index) -> str:
    """Counts, for people."""
    facts = _facts(index)
    parts = []
    for part, words in (("train", "to train on"), ("held_out", "held out")):
        documents, targets, shards = (_counted(facts[part][each], each) for each in ("documents", "targets", "shards"))
        parts.append(f"{documents} {words} ({targets}, {shards})")
    return f"{', '.join(parts)}, tokenizer {facts['tokenizer']}"


def _counted(count: int, things: str) -> str:
    """ "1 shard", "2 shards"."""
    return f"{count:,} {things.removesuffix('s') if count == 1 else things}"


def _train_on(index: Index, out: Path) -> str:
    """What a recipe has to say, but for what it says anyway."""
    from latentlm.config import DataConfig

    plain = DataConfig()
    changed = [key for key in ("held_out", "seed") if getattr(index.data, key) != getattr(plain, key)]
    own = [f"data.tokenizer={out / 'tokenizer.json'}"] if index.tokenizer.files else []
    return " ".join([f"data.path={out}", *own, *(f"data.{key}={getattr(index.data, key)}" for key in changed)])
