"""What is measured of one model on held-out text.

    honest likelihood    iwae (exact without latents), bits per byte, clustered by document
    bound                cross-entropy under the posterior plus full KL, one sample (the ELBO of training)
    latents              KL over sites, live units, cross-entropy under prior, shuffled and constant latents (first windows)
    samples              continuations under fresh and shared latents

Legend: B rows, T tokens, S sites, E event dimensions.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from latentlm.errors import UserError
from latentlm.generation import generate
from latentlm.interface import Batch, LatentDecoder, Noise
from latentlm.likelihood import Method, Score, bits_per_byte, elbo, paired_difference, score_texts, windows
from latentlm.likelihood.diagnostics import Diagnostics, diagnose
from latentlm.likelihood.scoring import how_to_score
from latentlm.training.data import Document
from latentlm.zoo.accounting import cost_of
from latentlm_evals.bits_view import view
from latentlm_evals.results import Estimate, LatentResult, ModelResult, Sample

PROMPT_BYTES = 48
_ROWS = 16


@dataclass(frozen=True)
class Precision:
    """How the honest likelihood is made; see `score_texts`."""

    method: Method = "auto"
    samples: int | Literal["auto"] = "auto"
    tolerance: float = 0.01
    """Bits per byte."""
    max_samples: int = 64

    def __post_init__(self) -> None:
        """Raises UserError for what means nothing, before models are trained or loaded."""
        how_to_score(**asdict(self))


@dataclass(frozen=True)
class Text:
    """A held-out document, or its beginning."""

    id: str
    data: bytes
    whole: bool
    """The document ends here, so its end-of-text counts as a target."""


def held_out_texts(documents: Sequence[Document], *, count: int, limit: int, seed: int) -> list[Text]:
    """`count` documents, chosen by the seed, each cut to `limit` bytes."""
    chosen = sorted(documents, key=lambda document: random.Random(f"{seed}/{document.id}").random())[:count]
    return [Text(d.id, d.data[:limit], len(d.data) <= limit) for d in sorted(chosen, key=lambda document: document.id)]


@torch.no_grad()
def measure(
    model: LatentDecoder,
    name: str,
    texts: Sequence[Text],
    *,
    precision: Precision,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> ModelResult:
    """Everything but training curves and tasks."""
    tokens = [tokenized(model, text) for text in texts]
    sizes = [len(text.data) for text in texts]
    scores = score_texts(
        model, tokens, **asdict(precision), seed=seed, keys=[text.id for text in texts], progress=progress
    )
    honest = bits_per_byte(scores, sizes)
    result = ModelResult(
        name=name,
        decoder=model.config.decoder_name,
        has_latents=model.has_latents,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        method=_method(scores),
        bits_per_byte=Estimate(honest.value, honest.standard_error),
        estimator_error=honest.estimator_error,
        uncertainty=honest.uncertainty,
        converged=honest.converged(precision.tolerance),
        effective_samples=statistics.median(score.effective_samples for score in scores),
        difference=None,
        elbo_bits_per_byte=math.nan,
        posterior_bits_per_byte=math.nan,
        kl_bits_per_token=0.0,
        live_units=None,
        units=sum(latent.dims for latent in model.latents.values()),
        training_operations=cost_of(model, dtype=torch.float32).training_flops_per_token,
        training=None,
        scores=scores,
        sizes=sizes,
    )
    _bound(model, tokens, sum(sizes), result, seed)
    if model.has_latents:
        _latents(model, tokens, result, seed)
    result.samples = samples_of(model, texts, seed=seed)
    result.bits = view(model, tokens[0], prompt=result.samples[0].prompt, seed=seed)
    return result


def _method(scores: Sequence[Score]) -> str:
    """The estimator and the samples that a text took, the fewest and the most."""
    counts = sorted({score.samples for score in scores})
    if counts == [0]:
        return "exact"
    methods = sorted({name for score in scores for name in score.method.split(" and ")})
    return f"{' and '.join(methods)}, {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} samples"


def add_differences(results: Sequence[ModelResult]) -> None:
    """Each model's bits per byte minus the first one's, paired by document. The spread between documents, which the standard
    error comes from, holds the errors of the likelihood estimates too, as documents are estimated independently."""
    for result in results[1:]:
        found = paired_difference(result.scores, results[0].scores, result.sizes)
        result.difference = Estimate(found.value, found.standard_error)


def tokenized(model: LatentDecoder, text: Text) -> list[int]:
    """The text as documents are fed in training: after the first token, and up to end-of-text where the document is whole."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UserError("The model has no tokenizer, so it cannot be compared on text; give its card one.")
    return [tokenizer.first, *tokenizer.encode(text.data), *([tokenizer.end_of_text] if text.whole else [])]


def _bound(model: LatentDecoder, tokens: Sequence[list[int]], size: int, result: ModelResult, seed: int) -> None:
    """ELBO, posterior cross-entropy and KL of all windows, with one posterior sample each."""
    reconstruction, kl, targets = 0.0, 0.0, 0
    pieces = [
        (text, number, window)
        for text, document in enumerate(tokens)
        for number, window in enumerate(windows(document, model.config.backbone.context))
    ]
    for start in range(0, len(pieces), _ROWS):
        rows = pieces[start : start + _ROWS]
        batch = Batch.of([window[:-1] for *_, window in rows], [window[1:] for *_, window in rows], device=model.device)
        bound = elbo(model, batch, Noise.keyed(seed, [("bound", text, number) for text, number, _ in rows]))
        reconstruction += float(bound.reconstruction.sum())
        kl += float(bound.kl.sum())
        targets += int(bound.tokens.sum())
    to_bits = 1.0 / (size * math.log(2))
    result.elbo_bits_per_byte, result.posterior_bits_per_byte = (reconstruction + kl) * to_bits, reconstruction * to_bits
    result.kl_bits_per_token = kl / targets / math.log(2)


def _latents(model: LatentDecoder, tokens: Sequence[list[int]], result: ModelResult, seed: int) -> None:
    """Whether the latents are alive and used: KL over sites, live units, cross-entropy under other latents."""
    found = diagnose(model, tokens, seed=seed)
    result.curves["kl_by_site"] = [[float(site), bits] for site, bits in enumerate(found.kl_curve)]
    result.live_units = found.active_units
    result.mutual_information_bits = found.mutual_information_bits
    result.cross_entropy_bits = _bits(found)
    if not found.latents:
        return
    result.live_units = sum(own.active_units or 0 for own in found.latents.values())
    result.curves.pop("kl_by_site")
    for name, own in found.latents.items():
        result.curves[f"kl_by_site/{name}"] = [[float(site), bits] for site, bits in enumerate(own.kl_curve)]
        result.latents[name] = LatentResult(
            kl_bits_per_token=own.kl_bits_per_token,
            live_units=own.active_units,
            units=model.latents[name].dims,
            mutual_information_bits=own.mutual_information_bits,
            cross_entropy_bits=_bits(own),
        )


def _bits(found: Diagnostics) -> dict[str, float]:
    """Cross-entropies in bits per token."""
    return {name: nats / math.log(2) for name, nats in found.cross_entropy.items()}


def samples_of(model: LatentDecoder, texts: Sequence[Text], *, seed: int, count: int = 3, length: int = 120) -> list[Sample]:
    """Continuations of a held-out prompt at temperature 1: with a latent draw for each, and with one draw for all."""
    prompt = texts[0].data[:PROMPT_BYTES].decode("utf-8", errors="ignore")
    room = min(length, model.config.backbone.context // 2)
    found = []
    for latents in ("fresh", "shared") if model.has_latents else ("fresh",):
        texts_made = generate(
            model, [prompt], max_tokens=room, samples=count, seed=seed, latents=latents, truncate="left"
        )
        label = latents if model.has_latents else "none"
        found.append(Sample(prompt, label, [made.text or "" for made in texts_made]))
    return found


