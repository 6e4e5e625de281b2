"""`latentlm generate MODEL PROMPT...`: continue prompts, and keep, share or reuse the latents behind them.

MODEL is a name of the zoo, a folder that `latentlm train` wrote, a card, or a folder of Llama weights.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentlm.cli.output import AsJson, emit
from latentlm.config.reading import read_bytes
from latentlm.errors import UserError, shown

if TYPE_CHECKING:
    from latentlm.generation import Generation
    from latentlm.interface import LatentDecoder, Latents, Wanted

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

latentlm generate free-tiny "def "

latentlm generate free-tiny "def " "class " --samples 3 --latents shared --temperature 0.7

latentlm generate free-tiny "def " --latents-from "def add(a, b):" --temperature 0 --save-latents z.safetensors

latentlm generate free-tiny "def " --load-latents z.safetensors --temperature 0 --json
"""


@app.command(epilog=_EPILOG)
def generate(
    model: Annotated[str, typer.Argument(help="Zoo name, run folder, card, or folder of Llama weights.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="Texts to continue; none = from the beginning.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 = greedy.")] = 1.0,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this probability in all.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many likeliest tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End at this string (may be repeated); \\n and \\t are read.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal texts.")] = 0,
    samples: Annotated[int, typer.Option(help="Continuations of each prompt.")] = 1,
    latents: Annotated[
        str, typer.Option(help='"fresh" for each continuation, or "shared" by all; by name: intent=shared,bits=fresh.')
    ] = "fresh",
    latents_from: Annotated[
        str | None, typer.Option(help="Latents of this text (or of this file's), from the encoder.")
    ] = None,
    load_latents: Annotated[Path | None, typer.Option(help="Latents saved before.")] = None,
    save_latents: Annotated[Path | None, typer.Option(help="Write the latents of every continuation (safetensors).")] = None,
    prior_temperature: Annotated[float, typer.Option(help="Below 1 sharpens the prior, above 1 flattens it.")] = 1.0,
    truncate: Annotated[bool, typer.Option("--truncate", help="Drop the beginning of prompts that are too long.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: the model's own choice.")] = None,
    compile_steps: Annotated[
        bool, typer.Option("--compile", help="Compile the step: faster after half a minute, for long or many continuations.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Continue prompts."""
    wanted = _wanted(latents)
    if sum((latents != "fresh", latents_from is not None, load_latents is not None)) > 1:
        raise UserError("Give one of --latents shared, --latents-from and --load-latents.")
    from latentlm.cli._models import load_reader
    from latentlm.generation.latents import check_latents_path
    from latentlm.generation.latents import save_latents as write_latents

    if save_latents is not None:
        check_latents_path(save_latents)
    decoder = load_reader(model, device=device)
    given = _given(decoder, latents_from, load_latents, seed)
    if save_latents is not None and not decoder.has_latents:
        raise UserError(f"{model} has no latents to save: leave out --save-latents.")
    texts = prompts or [""]
    generations = decoder.generate(
        texts,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=[_unescaped(text) for text in stop or []],
        seed=seed,
        samples=samples,
        latents=wanted if given is None else given,
        prior_temperature=prior_temperature,
        truncate="left" if truncate else None,
        compile=compile_steps,
    )
    if save_latents is not None:  # before anything is printed, which may fail
        write_latents(save_latents, [made.latents for made in generations if made.latents is not None], model=decoder)
    _print(texts, generations, samples, as_json)


def _wanted(text: str) -> Literal["fresh", "shared"] | dict[str, Wanted]:
    """What --latents says: a word for all latents, or NAME=word, ... Raises UserError."""
    pairs = [part.partition("=") for part in text.split(",")]
    words = [word if equals else name for name, equals, word in pairs]
    if bad := [word for word in words if word not in ("fresh", "shared")]:
        raise UserError(
            f'--latents is "fresh" or "shared", or NAME=fresh and NAME=shared with commas between, not "{bad[0]}"; for a '
            "text's latents use --latents-from."
        )
    if "=" not in text:
        return "shared" if words == ["shared"] else "fresh"
    if unnamed := [name for name, equals, _ in pairs if not equals]:
        raise UserError(f'--latents "{text}" names some latents but not all: say whose "{unnamed[0]}" is.')
    if len({name.strip() for name, _, _ in pairs}) < len(pairs):
        raise UserError(f'--latents "{text}" names a latent twice.')
    return {name.strip(): "shared" if word == "shared" else "fresh" for name, _, word in pairs}


def _given(decoder: LatentDecoder, text: str | None, file: Path | None, seed: int) -> list[Latents] | None:
    """Latents of a text, of a file's text, or saved ones."""
    from latentlm.generation.latents import load_latents

    if file is not None:
        return load_latents(file, model=decoder)
    if text is None:
        return None
    return [decoder.encode(_text_or_file(text), seed=seed)]


def _text_or_file(text: str) -> str:
    """The contents of the file of that name, where there is one; otherwise the text itself."""
    try:
        return read_bytes(Path(text)).decode("utf-8", errors="surrogateescape")  # a tokenizer takes any bytes
    except UserError:  # no file's name (too long, a null byte), or no plain file
        if os.path.isfile(text):
            raise
        return text


def _unescaped(text: str) -> str:
    """A typed \\n or \\t as the character."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _print(texts: list[str], generations: list[Generation], samples: int, as_json: bool) -> None:
    """Text for readers, or a JSON list."""
    prompts = [text for text in texts for _ in range(samples)]
    pairs = list(zip(prompts, generations, strict=True))
    if as_json:
        rows = [
            {"prompt": prompt, "sample": made.sample, "text": made.text, "tokens": made.tokens, "finish": made.finish}
            for prompt, made in pairs
        ]
        emit(rows)
        return
    for number, (prompt, made) in enumerate(pairs):
        if len(pairs) > 1:
            typer.secho(f"--- {prompt!r}, sample {made.sample}", fg=typer.colors.BRIGHT_BLACK, file=sys.stdout)
        said = shown if sys.stdout.isatty() else str  # a terminal obeys what it is sent, a file keeps it
        typer.secho(said(prompt), bold=True, nl=False, file=sys.stdout)
        typer.echo(said(made.text or ""), file=sys.stdout)
        if number + 1 < len(pairs):
            typer.echo(file=sys.stdout)
