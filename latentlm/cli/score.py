"""`latentlm score MODEL FILE...`: honest likelihood of texts, with its error, beside what the latents carry.

MODEL is a name of the zoo, a folder that `latentlm train` wrote, or a card. A file is one document: end-of-text, its tokens,
end-of-text; all targets count, over the file's raw bytes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlm.cli._streams import standard_input
from latentlm.cli.output import AsJson, emit
from latentlm.config.reading import MOST_TEXT, read_bytes
from latentlm.errors import UserError, shown

if TYPE_CHECKING:
    from latentlm.interface import LatentDecoder
    from latentlm.likelihood import Estimate, Score
    from latentlm.likelihood.diagnostics import Diagnostics
    from latentlm.likelihood.planning import Plan

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

latentlm score free-tiny README.md

latentlm score free-tiny chapter1.txt chapter2.txt --samples 64 --json

latentlm score chunk-tiny book.txt --tolerance 0.02 --dry-run

echo "return x" | latentlm score free-tiny - --given "def f(x): "
"""


@dataclass(frozen=True)
class _Row:
    """One file."""

    file: str
    bytes: int
    score: Score
    bits_per_byte: Estimate
    diagnostics: Diagnostics


@app.command(epilog=_EPILOG)
def score(
    model: Annotated[str, typer.Argument(help="Zoo name, run folder or card.")],
    files: Annotated[list[str], typer.Argument(help='Texts to score; "-" is standard input.')],
    method: Annotated[
        str, typer.Option(help="auto (iwae, with --given operational, then smc), operational, iwae, smc, prior, elbo or joint.")
    ] = "auto",
    samples: Annotated[
        str,
        typer.Option(help='Latent samples; "auto" doubles them, from 32, until the score meets --tolerance.'),
    ] = "auto",
    tolerance: Annotated[
        float, typer.Option(help="What the score is to be good to: bits per byte, or with --given nats.")
    ] = 0.01,
    max_samples: Annotated[int, typer.Option(help='Where "auto" gives up, and the score says so.')] = 256,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal scores.")] = 0,
    given: Annotated[
        str | None,
        typer.Option(help="Score the file, and its end, as a continuation of this text, whose last blanks are the file's."),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per window; default: the model's context.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows per forward pass; default: by size.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: the model's own choice.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what scoring will take.")] = False,
    as_json: AsJson = False,
) -> None:
    """Honest likelihood of a text."""
    if given is not None and context is not None:
        raise UserError("--context is about the windows of a whole text, and --given makes it a continuation; leave one out.")
    texts = [(name, _read(name)) for name in files]
    from latentlm.cli._models import load_reader
    from latentlm.likelihood import EXACT, METHODS, bits_per_byte, score_continuations, score_texts
    from latentlm.likelihood.planning import plan, samples_of
    from latentlm.likelihood.scoring import continuations_to_score, texts_to_score
    from latentlm.tokenizer import as_bytes

    count = samples_of(samples)
    decoder = load_reader(model, device=device)
    tokens = [_tokens(decoder, data) for _, data in texts]
    shared: dict[str, Any] = {
        "method": method, "samples": count, "tolerance": tolerance, "max_samples": max_samples, "seed": seed,
        "batch_size": batch,
    }  # fmt: skip
    if given is None:
        requests, _, how = texts_to_score(decoder, tokens, context=context, **shared)
    else:
        pairs = [_continuation(decoder, given, data) for _, data in texts]
        requests, how = continuations_to_score(decoder, pairs, **shared)
    if dry_run:
        _show_plan(plan(decoder, requests, how), as_json)
        return
    with _bar(shown=sys.stderr.isatty()) as progress:
        if given is None:
            scores = score_texts(decoder, tokens, context=context, progress=progress, **shared)
        else:
            scores = score_continuations(decoder, pairs, progress=progress, **shared)
    blanks = 0 if given is None else len(as_bytes(given)) - len(as_bytes(given.rstrip()))  # those of the context count too
    rows = [
        _Row(name, size, score, bits_per_byte([score], [size]), _diagnose(decoder, text, seed))
        for (name, data), text, score in zip(texts, tokens, scores, strict=True)
        for size in [len(data) + blanks]
    ]
    total = bits_per_byte(scores, [row.bytes for row in rows]) if len(rows) > 1 else None
    used = scores[0].method
    meaning = METHODS.get(used, METHODS["auto"]) if decoder.has_latents else "exact: this decoder has no latents"
    if decoder.has_latents and used == EXACT:
        meaning = "exact: summed over everything that the latents can be"
    elif decoder.has_latents and method not in ("auto", *used.split(" and ")):
        meaning += f" ({method} differs from it where there is a context: without --given, {used} is meant)"
    if as_json:
        emit(_as_json(model, rows, total, meaning))
    else:
        typer.echo(shown(_as_text(rows, total, meaning, auto=method == "auto")), file=sys.stdout)


@contextmanager
def _bar(*, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Progress on standard error, where somebody looks."""
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bars:
        bar = bars.add_task("windows", total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _show_plan(found: Plan, as_json: bool) -> None:
    """What scoring will take."""
    lines = found.lines()
    width = max(map(len, lines))
    if as_json:
        emit(asdict(found))
    else:
        typer.echo(shown("\n".join(f"{k:{width}}  {v}" for k, v in lines.items())), file=sys.stdout)


def _read(name: str) -> bytes:
    """A file's bytes, or standard input's. Raises UserError where there is nothing to score."""
    remedy = "Give a text file, or - for standard input."
    data = standard_input() if name == "-" else read_bytes(Path(name), most=MOST_TEXT, remedy=remedy)
    if not data:
        what = "Standard input" if name == "-" else name
        raise UserError(f"{what} is empty: there is no text to score.")
    return data


def _tokens(decoder: LatentDecoder, data: bytes) -> list[int]:
    """A document as in training: the first token (end-of-text, or a foreign model's BOS), its tokens, end-of-text."""
    if decoder.tokenizer is None:
        raise UserError("This model's card names no tokenizer, so text cannot be scored; add one to the card.")
    return [decoder.tokenizer.first, *decoder.tokenizer.encode(data), decoder.tokenizer.end_of_text]


def _continuation(decoder: LatentDecoder, given: str, data: bytes) -> tuple[list[int], list[int]]:
    """Context and continuation as lm-eval's adapter reads them, and end-of-text; cut to the model's context from the left."""
    from latentlm.likelihood import fit_to_context
    from latentlm.tokenizer import PromptReader

    assert decoder.tokenizer is not None
    pair = PromptReader.of(decoder.tokenizer).pair(given, data.decode("utf-8", errors="surrogateescape"))
    return fit_to_context(pair.given, [*pair.continued, decoder.tokenizer.end_of_text], decoder.config.backbone.context)


def _diagnose(decoder: LatentDecoder, text: list[int], seed: int) -> Diagnostics:
    """Of the file's first window."""
    from latentlm.likelihood.diagnostics import diagnose

    return diagnose(decoder, [text], seed=seed)


def _as_text(rows: list[_Row], total: Estimate | None, meaning: str, *, auto: bool) -> str:
    """A block for each file, and what the numbers are."""
    lines = []
    for row in rows:
        score, bits = row.score, row.bits_per_byte
        lines += [
            f"{row.file}: {row.bytes:,} bytes, {score.tokens:,} target tokens",
            f"  log-likelihood   {score.value:.2f} +- {score.standard_error:.2f} nats",
            f"  bits per byte    {bits.value:.4f} +- {bits.estimator_error:.4f}",
        ]
        if score.samples:
            found, entropy = row.diagnostics, row.diagnostics.cross_entropy["posterior"]
            sixteenth = math.nan if score.method == "smc" else score.sixteenth
            lines += [
                f"  at K/4, K/16     {_nats(score.quarter)}, {_nats(sixteenth)}",
                f"  samples          {score.samples}, effective {score.effective_samples:.1f}",
                f"  verdict          {_verdict(score, bits, auto=auto)}",
                f"  drawn from       {score.proposal}",
                f"  first window     KL {found.kl_bits_per_token:.4f} bits per token; "
                f"posterior cross-entropy (not a likelihood) {entropy / math.log(2):.4f} bits per token",
            ]
            for name, own in found.latents.items():
                live = "" if own.active_units is None else f", {own.active_units} live units"
                lines.append(f"    {name:14} KL {own.kl_bits_per_token:.4f} bits per token{live}")
        lines += [f"  warning: {warning}" for warning in score.warnings]
    if total is not None:
        lines.append(f"all {total.documents} files: {total.value:.4f} +- {total.standard_error:.4f} bits per byte (by file)")
    lines.append(f"{rows[0].score.method}: {meaning}." if rows[0].score.samples else f"{meaning}.")
    return "\n".join(lines)


def _verdict(score: Score, bits: Estimate, *, auto: bool) -> str:
    """Whether the score is as good as asked for."""
    remedy = "take more samples" if auto else "take more samples, or --method auto"
    if math.isnan(score.bias) or math.isinf(score.standard_error):
        bound = score.method == "elbo"
        return f"unknown: {'a bound does not say how far above it the truth is' if bound else 'take four samples at least'}"
    if not score.known:
        return (
            f"not converged: in {1 - score.settled:.0%} of the text so few samples have the weight that they do not say how "
            f"far it is below the truth; {remedy}"
        )
    exact_to = f"good to {score.uncertainty:.2f} nats, {bits.good_to} bits per byte"
    if score.converged:
        return f"converged: {exact_to}"
    return f"not converged: {exact_to} (its error, and what more samples may gain); {remedy}"


def _nats(value: float) -> str:
    """An estimate by fewer samples, if there is one."""
    return "–" if math.isnan(value) else f"{value:.2f} nats"


def _as_json(model: str, rows: list[_Row], total: Estimate | None, meaning: str) -> dict[str, Any]:
    """The same, and more, for programs."""
    files = [
        {
            "file": row.file,
            "bytes": row.bytes,
            **{("nats" if key == "value" else key): value for key, value in asdict(row.score).items()},
            "bits_per_byte": row.bits_per_byte.value,
            "bits_per_byte_error": row.bits_per_byte.estimator_error,
            "bits_per_byte_bias": row.bits_per_byte.bias,
            "uncertainty": row.score.uncertainty,
            "converged": row.score.converged,
            "kl_bits_per_token": row.diagnostics.kl_bits_per_token,
            "posterior_cross_entropy_not_a_likelihood": row.diagnostics.cross_entropy.get("posterior"),
            "latents": {
                name: {"kl_bits_per_token": own.kl_bits_per_token, "live_units": own.active_units}
                for name, own in row.diagnostics.latents.items()
            },
        }
        for row in rows
    ]
    return {"model": model, "meaning": meaning, "files": files, "all": None if total is None else asdict(total)}
