"""`latentlm probe MODEL --attribute ...`: what z knows of an attribute of a text, and what the decoder does with it; and
`latentlm reviews`, which fetches the rated movie reviews for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentlm.cli.output import AsJson, as_json, emit
from latentlm.cli.text import escaped
from latentlm.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from latentlm_evals.probe.probing import Progress

app = typer.Typer(add_completion=False)
reviews = typer.Typer(add_completion=False)

MOST = 2**31 - 1
"""Of texts, pairs and groups: more than a life would see."""
_EPILOG = """
Examples:

  latentlm probe runs/document --attribute synthetic:reviews --baseline runs/vanilla

  latentlm probe runs/document --attribute reviews --pairs 200

  latentlm probe free-tiny --attribute rated.jsonl --text-field body --rating-field stars --judge words --json

ATTRIBUTE is a synthetic source with an intent (synthetic:reviews, synthetic:coin), the movie reviews of `latentlm reviews`
(reviews), a .jsonl file of texts and ratings, or a .txt or .tsv file with a rating, a tab and a text in each line.
"""


@app.command(epilog=_EPILOG)
def probe(
    model: Annotated[str, typer.Argument(help="A model with latents: zoo name, run folder or card.", show_default=False)],
    attribute: Annotated[str, typer.Option(help="Texts and their labels; see below.", show_default=False)],
    baseline: Annotated[str | None, typer.Option(help="A decoder without latents, to lay beside.", show_default=False)] = None,
    texts: Annotated[int, typer.Option(min=40, max=MOST, help="Rated texts, at most.")] = 1000,
    pairs: Annotated[int, typer.Option(min=2, max=MOST, help="Pairs of texts whose z are exchanged, at most.")] = 100,
    groups: Annotated[int, typer.Option(min=2, max=MOST, help="Groups of five texts under one z.")] = 40,
    prompt: Annotated[str, typer.Option(help="What generated texts begin with.", show_default=False)] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of a generated text. Default: the longest text's.")] = None,
    judge: Annotated[str | None, typer.Option(help="rule, lexicon or words. Default: the attribute's own.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Ratings above are positive. Default: 0, or the middle.")] = None,
    text_field: Annotated[str, typer.Option(help="Of a .jsonl file.")] = "text",
    rating_field: Annotated[str, typer.Option(help="Of a .jsonl file.")] = "rating",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of texts, latents and what is written.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the picture and the numbers.")] = Path("runs/probe"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: the model's own choice.")] = None,
    as_json_: AsJson = False,
) -> None:
    """What z knows of an attribute of a text, and what the decoder does with it."""
    from rich.console import Console

    from latentlm_evals.loading import load_model
    from latentlm_evals.outputs import Outputs
    from latentlm_evals.probe import table
    from latentlm_evals.probe.attributes import read_attribute
    from latentlm_evals.probe.judges import judge_name
    from latentlm_evals.probe.picture import picture
    from latentlm_evals.probe.probing import Settings
    from latentlm_evals.probe.probing import probe as probed
    from latentlm_evals.probe.unseen import without_trained

    console, progress = Console(), Console(stderr=True)
    found = read_attribute(
        attribute, count=texts, threshold=threshold, text_field=text_field, rating_field=rating_field
    )
    found.check()
    judge_name(judge, found)
    settings = Settings(pairs=pairs, groups=groups, prompt=prompt, max_tokens=max_tokens, seed=seed, judge=judge)
    outputs = Outputs(out, numbers="probe.json", keys={"model", "trained_on"}, beside=["probe.svg"])
    decoder = load_model(model, device=device, advise=False)
    plain = None if baseline is None else load_model(baseline, device=device, advise=False)
    found, seen = without_trained(found, [one for one in (model, baseline) if one is not None])
    if seen:
        progress.print(f"{seen} texts that were trained on are left out.")
    with _bars(progress) as bars:
        result = probed(decoder, found.chosen(texts, seed=seed), settings, baseline=plain, progress=bars)
    plainly = {"model": model, "baseline": baseline, "trained_on": seen, **asdict(result)}
    outputs.write("probe.json", as_json(plainly) + "\n")
    outputs.write("probe.svg", picture(result, model))
    if as_json_:
        emit(plainly)
        return
    table.show(result, console=console)
    console.print(escaped(f"Picture: {out / 'probe.svg'}   numbers: {out / 'probe.json'}"))


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    """A bar for each thing that is done, while it is done."""
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from latentlm_evals.progress import Lines

    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}
        lines = Lines(console)

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)
            lines(what, f"{done} of {total}")

        yield show


_REVIEWS_EPILOG = """
Examples:

  latentlm reviews

  latentlm reviews --archive vaderSentiment-3.3.2.tar.gz
"""


@reviews.command(epilog=_REVIEWS_EPILOG)
def fetch_reviews(
    archive: Annotated[
        Path | None, typer.Option(help="The source distribution, where it lies here already.", show_default=False)
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Fetch them even if they are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch 10,605 rated sentences of movie reviews, with pip, from the source distribution of vaderSentiment 3.3.2 (MIT)."""
    from rich.console import Console

    from latentlm.errors import typed_path
    from latentlm_evals.probe.fetching import fetch

    console, progress = Console(), Console(stderr=True)
    if archive is not None and not typed_path(archive).is_file():
        raise UserError(f"--archive: {archive} is no file. Leave it out, and pip downloads it.")
    with progress.status("Fetching") as status:
        found = fetch(archive=None if archive is None else typed_path(archive), anew=anew, progress=status.update)
    if as_json:
        emit({"texts": str(found.texts), "lexicon": str(found.lexicon)})
        return
    console.print(escaped(f"Texts and ratings: {found.texts}"), soft_wrap=True)
    console.print(escaped(f"Train on them: latentlm train RECIPE data.path={found.texts}"), soft_wrap=True)
    console.print("Probe a model: latentlm probe MODEL --attribute reviews", markup=False)
