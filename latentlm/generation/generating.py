"""Text from a latent decoder: p(z) first, then p(x | z), token by token with a cache.

    model.generate(["def "], max_tokens=32)                                        # fresh latents, independent per sample
    model.generate(prompts, max_tokens=32, temperature=0, latents="shared")        # every row meets the same latents
    model.generate(["def "], max_tokens=32, temperature=0, latents=model.encode("def add(a, b):"))

The encoder runs on the prompt and draws the latents of its sites; every later site comes from the prior (Fleuret 2025, section
3: this is also what the likelihood `operational` is the density of). Position t feeds token x_t together with the latent of its
site, and predicts x_{t+1}; so the latent of the prompt's last token already acts on the first new token.

Random numbers are keyed by (seed, prompt, number among equal prompts, sample), apart for latents and tokens: what a prompt
yields does not depend on its neighbours, on their order or on the batch size. Shared latents use one key for all rows, aligned
so that the n-th site after the prompt draws the same numbers in every row.

Legend: B rows (prompt-major: row b*K + k is sample k of prompt b), S sites, E event dimensions, K samples, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from latentlm.errors import UserError
from latentlm.generation.continuation import Job, Row, run
from latentlm.generation.latents import check_events, rows_of
from latentlm.generation.prompts import count_sites, end_of_text, fed_tokens, fitted, request_keys
from latentlm.generation.sampling import TokenSampling
from latentlm.generation.stopping import StopStrings
from latentlm.interface import Batch, Generation, Given, Latent, Noise, OnToken

if TYPE_CHECKING:
    from latentlm.interface import LatentDecoder

_MODE_TEMPERATURE = 1e-9  # sharp enough to put a sample on the mode, and above float32's underflow


def generate(
    model: LatentDecoder,
    prompts: str | Sequence[str | Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    samples: int = 1,
    latents: Literal["fresh", "shared"] | Given = "fresh",
    continuation_latents: Given | None = None,
    prefill: Literal["posterior", "prior"] = "posterior",
    last_latent: Literal["posterior", "prior"] = "posterior",
    prior_temperature: float = 1.0,
    truncate: Literal["left"] | None = None,
    keys: Sequence[Hashable] | None = None,
    batch_size: int = 32,
    on_token: OnToken | None = None,
) -> list[Generation]:
    """Continue each prompt `samples` times; returns the continuations prompt by prompt.

    A text prompt is fed after end-of-text, as documents are in training; a list of tokens is taken as it is.

    latents               "fresh": drawn anew for every row. "shared": the same draws for every row, aligned by the distance
                          from the prompt's end. Or given values, from the first site of the prompt on (one for all rows, one
                          per prompt, or one per row): where they end, `prefill` and then the prior go on.
    continuation_latents  given values from the first site after the prompt's on; they win over `latents` there.
    prefill               who draws the prompt's sites that are not given: the encoder, or the prior.
    last_latent           who draws the site at the prompt's last token, where the encoder draws the others.
    prior_temperature     below 1 sharpens the prior, above 1 flattens it.
    truncate              "left" keeps the last tokens of a prompt that is too long for the context, else an error.
    keys                  names of the prompts for the random numbers, one per prompt, instead of their tokens.

    Tokens that the tokenizer does not know (a vocabulary padded for speed) are never drawn.
    Raises UserError for settings that cannot be served, before any work.
    """
    sampling = TokenSampling(temperature=temperature, top_k=top_k, top_p=top_p)
    stops = StopStrings(stop, model.tokenizer)
    _check(max_tokens=max_tokens, samples=samples, batch_size=batch_size, prior_temperature=prior_temperature)
    texts = [prompts] if isinstance(prompts, str) else prompts
    fed = [fed_tokens(model, prompt, number) for number, prompt in enumerate(texts)]
    fed = fitted(model, fed, max_tokens=max_tokens, truncate=truncate)
    rows = _rows(model, fed, samples, latents, continuation_latents)
    names = request_keys(fed) if keys is None else keys
    if len(names) != len(fed):
        raise UserError(f"{len(fed)} prompts, but {len(names)} keys: give one key per prompt.")
    noise = Noise.keyed(seed, names, samples=samples)
    shared = Noise.keyed(seed, ["shared"] * len(rows)) if latents == "shared" else noise
    job = Job(
        model=model,
        sampling=sampling,
        stop=stops,
        end_of_text=end_of_text(model),
        vocabulary=None if model.tokenizer is None else model.tokenizer.vocabulary,
        max_tokens=max_tokens,
        prefill=prefill,
        last_latent=last_latent,
        prior_temperature=prior_temperature,
        on_token=_announcer(on_token, samples),
        uniforms=None if sampling.greedy else noise.stream("tokens").uniform(max_tokens, 1)[..., 0],
        noise=shared.stream("latents").at([-row.sites for row in rows]),
    )
    # Rows of like length go together, for little padding; no row's result depends on its neighbours.
    ordered = sorted(rows, key=lambda row: -len(row.prompt))
    for first in range(0, len(ordered), batch_size):
        run(job, ordered[first : first + batch_size])
    return [_finished(job, row, samples) for row in rows]


@torch.no_grad()
def encode(
    model: LatentDecoder,
    text: str | Sequence[int],
    *,
    temperature: float = 1.0,
    samples: int = 1,
    seed: int = 0,
) -> Latent:
    """Latents of a text, drawn by the encoder: (K, S, E), site by site from end-of-text, which is fed first, on.

    Temperature 0 takes the most likely value of every event. Without an encoder they are drawn from the prior. Raises UserError
    for a model without latents, and a text longer than its context."""
    if not model.has_latents:
        raise UserError("This model has no latents: there is nothing to encode a text into.")
    if temperature < 0 or samples < 1:
        raise UserError("temperature must be 0 or more, and samples at least 1.")
    tokens = fed_tokens(model, text, 0)
    (tokens,) = fitted(model, [tokens], max_tokens=0, truncate=None)
    noise = Noise.keyed(seed, request_keys([tokens]), samples=samples).stream("latents")
    noise = noise.at([-count_sites(model, len(tokens))])  # the numbers that `generate` draws for the same prompt
    temperature = max(temperature, _MODE_TEMPERATURE)
    if not model.has_encoder:
        fed = torch.tensor([tokens] * samples, device=model.device)
        lengths = torch.full((samples,), len(tokens), device=model.device)
        state = model.prefill(fed, lengths, latents="prior", noise=noise, prior_temperature=temperature)
        assert state.latents is not None
        return Latent(state.latents)
    posterior = model.posterior(model.context(Batch.of([tokens], given=[len(tokens)], device=model.device)))
    posterior = posterior.tempered(temperature)
    repeated = posterior.select(torch.zeros(samples, dtype=torch.long, device=model.device))
    return Latent(repeated.sample(noise).value)


def _check(*, max_tokens: int, samples: int, batch_size: int, prior_temperature: float) -> None:
    """Refuse counts below one and temperatures that are not positive."""
    for name, value in (("max_tokens", max_tokens), ("samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}.")
    if not prior_temperature > 0:
        raise UserError(f"prior_temperature must be above 0, not {prior_temperature}.")


def _rows(
    model: LatentDecoder,
    prompts: list[list[int]],
    samples: int,
    latents: Literal["fresh", "shared"] | Given,
    continuation: Given | None,
) -> list[Row]:
    """The rows of a call, prompt-major, with their given latents."""
    if isinstance(latents, str) and latents not in ("fresh", "shared"):
        raise UserError(f'latents must be "fresh", "shared" or latent values, not "{latents}".')
    covered = _per_row(model, None if isinstance(latents, str) else latents, len(prompts), samples)
    continued = _per_row(model, continuation, len(prompts), samples)
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    return [
        Row(
            number=number,
            prompt=prompt,
            sites=count_sites(model, len(prompt)),
            covered=covered[number],
            continuation=continued[number],
        )
        for number, prompt in enumerate(repeated)
    ]


def _per_row(model: LatentDecoder, given: Given | None, prompts: int, samples: int) -> Sequence[Tensor | None]:
    """Given latents as one (S, E) for each of the prompts * samples rows."""
    if given is None:
        return [None] * (prompts * samples)
    check_events(given, model)
    values = [value.to(model.device) for value in rows_of(given)]
    if len(values) == 1:
        return values * (prompts * samples)
    if len(values) == prompts:
        return [value for value in values for _ in range(samples)]
    if len(values) != prompts * samples:
        raise UserError(
            f"{len(values)} latents are given for {prompts} prompts with {samples} samples each: "
            f"give 1, {prompts}, or {prompts * samples}."
        )
    return values


def _announcer(on_token: OnToken | None, samples: int) -> Callable[[int, int], None]:
    """The caller's function, with a row number instead of prompt and sample."""
    if on_token is None:
        return lambda row, token: None
    return lambda row, token: on_token(row // samples, row % samples, token)


def _finished(job: Job, row: Row, samples: int) -> Generation:
    """The row as the caller gets it."""
    assert row.finish is not None
    text: str | None = None
    if job.model.tokenizer is not None:
        raw = job.model.tokenizer.decode_bytes(row.tokens)
        place = job.stop.place(raw)
        row.finish = row.finish if place is None else "stop"
        text = raw[:place].decode("utf-8", errors="replace")
    return Generation(
        text=text,
        tokens=row.tokens,
        prompt=row.prompt,
        latents=row.latents,
        finish=row.finish,
        sample=row.number % samples,
    )
