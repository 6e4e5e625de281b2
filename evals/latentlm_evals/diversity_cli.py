"""`latentlm diversity`: what a latent adds to the diversity of samples, in the 2x2 of latents and decoding, at equal pass@1."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from latentlm.cli.output import AsJson, as_json, emit
from latentlm.cli.text import escaped
from latentlm.errors import UserError, unknown_name

if TYPE_CHECKING:
    from latentlm_evals.diversity.experiment import Settings

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

  latentlm diversity runs/vanilla runs/free

  latentlm diversity runs/vanilla runs/free runs/noise --samples 64 --prompts 400 --dry-run

  latentlm diversity my-vanilla my-free --task synthetic:subset --answers 8 --json

Models are cards of the zoo or run folders, trained on a plan-first source (data.path=synthetic:sums,shown=6, say).
"""


@app.command(epilog=_EPILOG)
def diversity(
    models: Annotated[list[str], typer.Argument(help="Cards or run folders, with latents and without.", show_default=False)],
    task: Annotated[
        str | None,
        typer.Option(help="A plan-first source: sums, product, automaton or subset. Default: what the models were trained on."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=2, help="That are measured.")] = 200,
    calibration: Annotated[int, typer.Option(min=2, help="Other prompts, on which pass@1 is made equal.")] = 100,
    answers: Annotated[int, typer.Option(min=1, help="Right answers that a prompt has at least.")] = 2,
    samples: Annotated[int, typer.Option(min=2, help="Of each prompt.")] = 32,
    temperature: Annotated[float, typer.Option(help="Of the cells that are not greedy; above 0.")] = 1.0,
    prefill: Annotated[str, typer.Option(help="Who draws the z of the prompt: posterior or prior.")] = "posterior",
    seed: Annotated[int, typer.Option(min=0, help="Of prompts, latents, tokens and intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Continuations at a time; changes no answer.")] = 512,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cpu.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of picture and numbers.")] = Path("runs/diversity"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it will take.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Diversity and pass@k: latents shared or fresh x greedy or temperature, plain decoders beside at equal pass@1."""
    from rich.console import Console

    from latentlm_evals.diversity import experiment, table
    from latentlm_evals.diversity.figure import draw
    from latentlm_evals.diversity.sampling import Source
    from latentlm_evals.figures import svg
    from latentlm_evals.outputs import Outputs

    if prefill not in get_args(Source):
        raise unknown_name("prefill", prefill, get_args(Source))
    if not 0 < temperature < float("inf"):
        raise UserError(f"--temperature {temperature}: the greedy cells have 0, the others take one above it.")
    settings: Settings = experiment.Settings(
        task=task, prompts=prompts, calibration=calibration, answers=answers, samples=samples, temperature=temperature,
        prefill=prefill, seed=seed, batch_size=batch_size, device=device,  # type: ignore[arg-type]
    )  # fmt: skip
    console, progress = Console(), Console(stderr=True)
    console.width = max(console.width, 150) if not console.is_terminal else console.width
    if dry_run:
        work = experiment.plan(models, settings, console=progress)
        if as_json_:
            emit([asdict(one) for one in work])
        else:
            table.show_work(work, console=console)
        return
    outputs = Outputs(out, numbers="diversity.json", keys={"task", "right_answers"}, beside=["pass-at-k.svg"])
    found = experiment.run(models, settings, console=progress)
    outputs.write("diversity.json", as_json(asdict(found)) + "\n")
    outputs.write("pass-at-k.svg", svg(draw(found)))
    if as_json_:
        emit(asdict(found))
    else:
        table.show(found, console=console)
        console.print(escaped(f"Picture: {out / 'pass-at-k.svg'}   numbers: {out / 'diversity.json'}"))
