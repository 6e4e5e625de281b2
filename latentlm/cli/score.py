"""`latentlm score MODEL FILE...`: honest likelihood of texts, with its error, beside what the latents carry.

MODEL is a name of the zoo, a folder that `latentlm train` wrote, or a card. A file is one document: end-of-text, its tokens,
end-of-text; all targets count, over the file's raw bytes.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentlm.cli.output import AsJson, emit
from latentlm.errors import UserError

if TYPE_CHECKING:
    from latentlm.interface import LatentDecoder
    from latentlm.likelihood import Estimate, Score
    from latentlm.likelihood.diagnostics import Diagnostics

app = typer.Typer(add_completion=False)

_EPILOG = """
Examples:

latentlm score free-tiny README.md

latentlm score free-tiny chapter1.txt chapter2.txt --samples 64 --json

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
        str | None, typer.Option(help="operational, iwae, prior, elbo or joint. [default: iwae; with --given operational]")
    ] = None,
    samples: Annotated[int, typer.Option(help="Latent samples; more tighten the score. Ignored without latents.")] = 16,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal scores.")] = 0,
    given: Annotated[str | None, typer.Option(help="Score the file as a continuation of this text.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens per window; default: the model's context.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows per forward pass; default: by size.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: the model's own choice.")] = None,
    as_json: AsJson = False,
) -> None:
    """Honest likelihood of a text."""
    if context is not None and context < 1:
        raise UserError(f"--context {context}: a window holds at least one token.")
    texts = [(name, _read(name)) for name in files]
    from latentlm.cli._models import load_reader
    from latentlm.likelihood import METHODS, bits_per_byte, score_continuations, score_texts

    decoder = load_reader(model, device=device)
    chosen = method or ("iwae" if given is None else "operational")
    tokens = [_tokens(decoder, data) for _, data in texts]
    if given is None:
        scores = score_texts(
            decoder, tokens, method=chosen, samples=samples, seed=seed, context=context, batch_size=batch  # type: ignore[arg-type]
        )
    else:
        requests = [_continuation(decoder, given, text) for text in tokens]
        scores = score_continuations(
            decoder, requests, method=chosen, samples=samples, seed=seed, batch_size=batch  # type: ignore[arg-type]
        )
    rows = [
        _Row(name, len(data), score, bits_per_byte([score], [len(data)]), _diagnose(decoder, text, seed))
        for (name, data), text, score in zip(texts, tokens, scores, strict=True)
    ]
    total = bits_per_byte(scores, [row.bytes for row in rows]) if len(rows) > 1 else None
    meaning = METHODS[scores[0].method] if decoder.has_latents else "exact: this decoder has no latents"
    if as_json:
        emit(_as_json(model, rows, total, meaning))
    else:
        typer.echo(_as_text(rows, total, meaning), file=sys.stdout)


def _read(name: str) -> bytes:
    """A file's bytes, or standard input's. Raises UserError where there is nothing to score."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"{name} cannot be read: {why}. Give a text file, or - for standard input.") from None
    if not data:
        what = "Standard input" if name == "-" else name
        raise UserError(f"{what} is empty: there is no text to score.")
    return data


def _tokens(decoder: LatentDecoder, data: bytes) -> list[int]:
    """A document as in training: the first token (end-of-text, or a foreign model's BOS), its tokens, end-of-text."""
    if decoder.tokenizer is None:
        raise UserError("This model's card names no tokenizer, so text cannot be scored; add one to the card.")
    return [decoder.tokenizer.first, *decoder.tokenizer.encode(data), decoder.tokenizer.end_of_text]


def _continuation(decoder: LatentDecoder, given: str, text: list[int]) -> tuple[list[int], list[int]]:
    """Context and continuation, cut to the model's context from the left."""
    from latentlm.likelihood import fit_to_context

    assert decoder.tokenizer is not None
    before = [decoder.tokenizer.first, *decoder.tokenizer.encode(given)]
    return fit_to_context(before, text[1:], decoder.config.backbone.context)


def _diagnose(decoder: LatentDecoder, text: list[int], seed: int) -> Diagnostics:
    """Of the file's first window."""
    from latentlm.likelihood.diagnostics import diagnose

    return diagnose(decoder, [text], seed=seed)


def _as_text(rows: list[_Row], total: Estimate | None, meaning: str) -> str:
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
            lines += [
                f"  samples          {score.samples}, effective {score.effective_samples:.1f}",
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


def _as_json(model: str, rows: list[_Row], total: Estimate | None, meaning: str) -> str:
    """The same, and more, for programs."""
    files = [
        {
            "file": row.file,
            "bytes": row.bytes,
            **{("nats" if key == "value" else key): value for key, value in asdict(row.score).items()},
            "bits_per_byte": row.bits_per_byte.value,
            "bits_per_byte_error": row.bits_per_byte.estimator_error,
            "kl_bits_per_token": row.diagnostics.kl_bits_per_token,
            "posterior_cross_entropy_not_a_likelihood": row.diagnostics.cross_entropy.get("posterior"),
            "latents": {
                name: {"kl_bits_per_token": own.kl_bits_per_token, "live_units": own.active_units}
                for name, own in row.diagnostics.latents.items()
            },
        }
        for row in rows
    ]
    found = {"model": model, "meaning": meaning, "files": files, "all": None if total is None else asdict(total)}
    return json.dumps(_finite(found), indent=2)


def _finite(value: Any) -> Any:
    """The same with null in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
