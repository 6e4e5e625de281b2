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

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from latentlm.config import checking, memory
from latentlm.config.checking import flag, function, real, several, whole
from latentlm.errors import UserError
from latentlm.generation.continuation import Job, Row, run
from latentlm.generation.latents import check_events, rows_of, same_names
from latentlm.generation.prompts import end_tokens, fed_tokens, fitted, request_keys
from latentlm.generation.sampling import TokenSampling
from latentlm.generation.stopping import StopStrings
from latentlm.interface import (
    Batch,
    Generation,
    Given,
    Latent,
    Latents,
    LatentSource,
    Noise,
    OnToken,
    Wanted,
    by_name,
    count_sites,
    noise_of,
)
from latentlm.interface.generation import Continued
from latentlm.interface.granularity import Document
from latentlm.interface.latents import prior_temperatures

if TYPE_CHECKING:
    from latentlm.interface import LatentDecoder

Source = Literal["posterior", "prior"]
SOURCES = ("posterior", "prior")
_ROW = 2**10  # bytes of a row's objects and random keys, at least
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
    latents: Wanted | Mapping[str, Wanted] | Sequence[Latents] = "fresh",
    continuation_latents: Continued | Mapping[str, Continued] | Sequence[Latents] | None = None,
    prefill: Source | Mapping[str, Source] = "posterior",
    last_latent: Source | Mapping[str, Source] = "posterior",
    prior_temperature: float | Mapping[str, float] = 1.0,
    truncate: Literal["left"] | None = None,
    keys: Sequence[Hashable] | None = None,
    batch_size: int = 32,
    compile: bool = False,
    on_token: OnToken | None = None,
) -> list[Generation]:
    """Continue each prompt `samples` times; returns the continuations prompt by prompt.

    A text prompt is fed after end-of-text, as documents are in training; a list of tokens is taken as it is.

    latents               "fresh": drawn anew for every row. "shared": the same draws for every row, aligned by the distance
                          from the prompt's end. Or given values, from the first site of the prompt on (one for all rows, one
                          per prompt, or one per row): where they end, `prefill` and then the prior go on.
    continuation_latents  given values from the first site after the prompt's on; they win over `latents` there. "fresh": none.
    prefill               who draws the prompt's sites that are not given: the encoder, or the prior.
    last_latent           who draws the site at the prompt's last token, where the encoder draws the others.
    prior_temperature     below 1 sharpens the prior, above 1 flattens it.
    truncate              "left" keeps the last tokens of a prompt that is too long for the context, else an error.
    In a decoder of several latents each of these five is one setting for all, or a mapping by name; what is not named is fresh.

    compile               one graph for each step (torch.compile): faster once it is made, which takes half a minute, for each
                          temperature of the priors, and anew for a second number of rows or columns; that one serves all
                          others, somewhat slower. Rows that have ended stay until all have. What `on_token` changes of the
                          model may be seen some tokens later, or never.
                          Rounding differs. Latents after the prompt are the prior's, none is given.
    keys                  names of the prompts for the random numbers, one per prompt, instead of their tokens.

    A text is what its tokens add behind the prompt: decode(prompt + tokens) less decode(prompt). It ends at an end token
    (`model.end_tokens`, else the tokenizer's end-of-text), which is not part of it, at a stop string, or after `max_tokens`.
    Tokens that the tokenizer does not know (a vocabulary padded for speed) are never drawn.
    Raises UserError for settings that cannot be served, before any work.
    """
    checking.model(model)
    sampling = TokenSampling(temperature=temperature, top_k=top_k, top_p=top_p)
    stops = StopStrings(stop, model.tokenizer)
    max_tokens, samples = whole("max_tokens", max_tokens, least=1), whole("samples", samples, least=1)
    batch_size, seed = whole("batch_size", batch_size, least=1), whole("seed", seed, least=None)
    function("on_token", on_token)
    flag("compile", compile)
    latent_names = list(model.latents)
    if latents is None:
        raise UserError('latents must be "fresh", "shared" or latent values, not None.')
    wanted = by_name(
        _transposed(latents), latent_names, default="fresh", what="latents", words=("fresh", "shared"), or_values=True
    )
    temperatures = prior_temperatures(prior_temperature, latent_names)
    if not latent_names and not isinstance(latents, str | Mapping):
        check_events(latents, model)  # type: ignore[arg-type]
    texts = [prompts] if isinstance(prompts, str) else several("prompts", prompts, of="texts, or of lists of tokens")
    fed = [fed_tokens(model, prompt, number) for number, prompt in enumerate(texts)]
    fed = fitted(model, fed, max_tokens=max_tokens, truncate=truncate)
    names = request_keys(fed) if keys is None else checking.keys(keys, len(fed), of="prompt")
    memory.check_count("samples", samples, each=len(fed) * (_ROW + 4 * max_tokens))
    rows = _rows(model, fed, samples, wanted, continuation_latents)
    if compile:
        model.check_compiled()
    if compile and any(row.gives_after_prompt for row in rows):
        raise UserError("compile draws the latents after the prompt from the prior: give none there, or leave compile out.")
    noise = Noise.keyed(seed, names, samples=samples)
    shared = Noise.keyed(seed, ["shared"] * len(rows))
    drawn = {name: shared if isinstance(how, str) and how == "shared" else noise for name, how in wanted.items()}
    job = Job(
        model=model,
        sampling=sampling,
        stop=stops,
        end_tokens=end_tokens(model),
        vocabulary=None if model.tokenizer is None else model.tokenizer.vocabulary,
        max_tokens=max_tokens,
        compile=compile,
        prefill=by_name(prefill, latent_names, default="posterior", what="prefill", words=SOURCES),
        last_latent=by_name(last_latent, latent_names, default="posterior", what="last_latent", words=SOURCES),
        prior_temperature=temperatures,
        on_token=_announcer(on_token, samples),
        uniforms=None if sampling.greedy else noise.stream("tokens").uniform(max_tokens, 1)[..., 0],
        noise={
            name: noise_of(own.stream("latents"), name, latent_names).at([-row.sites[name] for row in rows])
            for name, own in drawn.items()
        },
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
) -> Latents:
    """Latents of a text, drawn by their encoders: (K, S, E) each, site by site from end-of-text, which is fed first, on.

    Temperature 0 takes the most likely value of every event. A latent without an encoder is drawn from its prior. Raises
    UserError for a model without latents, and a text longer than its context."""
    checking.model(model)
    if not model.has_latents:
        raise UserError("This model has no latents: there is nothing to encode a text into.")
    temperature, samples = real("temperature", temperature, least=0), whole("samples", samples, least=1)
    seed = whole("seed", seed, least=None)
    tokens = fed_tokens(model, text, 0)
    (tokens,) = fitted(model, [tokens], max_tokens=0, truncate=None)
    sites = {name: count_sites(latent.granularity, tokens) for name, latent in model.latents.items()}
    values = sum(sites[name] * latent.dims for name, latent in model.latents.items())
    memory.check_count("samples", samples, each=_ROW + 4 * values, device=model.device)
    base = Noise.keyed(seed, request_keys([tokens]), samples=samples).stream("latents")
    temperature = max(temperature, _MODE_TEMPERATURE)
    names, drawn = list(model.latents), Latents({})
    context = model.context(Batch.of([tokens], given=[len(tokens)], device=model.device))
    rows = torch.zeros(samples, dtype=torch.long, device=model.device)
    fed, lengths = torch.tensor([tokens] * samples, device=model.device), torch.full_like(rows, len(tokens))
    # The numbers that `generate` draws for the same prompt.
    noises = {name: noise_of(base, name, names).at([-sites[name]]) for name in names}
    for name, latent in model.latents.items():
        if latent.has_encoder:
            posterior = model.posterior(context, name, drawn).tempered(temperature)
            repeated = posterior if drawn and posterior.shape[0] == samples else posterior.select(rows)
            value = repeated.sample(noises[name]).value
        else:
            sources: dict[str, LatentSource] = {**dict.fromkeys(names, "prior"), **drawn}  # type: ignore[dict-item]
            state = model.prefill(fed, lengths, latents=sources, noise=noises, prior_temperature=temperature)
            value = state.met[name].value
        drawn = drawn.plus(name, Latent(value))
    return drawn


def _rows(
    model: LatentDecoder,
    prompts: list[list[int]],
    samples: int,
    wanted: dict[str, Wanted],
    continuation: Continued | Mapping[str, Continued] | Sequence[Latents] | None,
) -> list[Row]:
    """The rows of a call, prompt-major, with their given latents."""
    covered, continued = {}, {}
    names = list(model.latents)
    after = by_name(
        _transposed(continuation), names, default=None, what="continuation_latents", words=("fresh",), or_values=True
    )
    if continuation is not None and not model.latents:
        check_events([], model)
    for name, how in wanted.items():
        if not isinstance(how, str):
            covered[name] = _per_row(model, name, how, len(prompts), samples)
        values = after[name]
        if values is not None and not isinstance(values, str):
            _check_follows(model, name)
            continued[name] = _per_row(model, name, values, len(prompts), samples)
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    return [
        Row(
            number=number,
            prompt=prompt,
            sites={name: count_sites(latent.granularity, prompt) for name, latent in model.latents.items()},
            covered={name: values[number] for name, values in covered.items()},
            continuation={name: values[number] for name, values in continued.items()},
        )
        for number, prompt in enumerate(repeated)
    ]


def _check_follows(model: LatentDecoder, name: str) -> None:
    """Refuse values for sites after the prompt of a latent that has none there. Raises UserError."""
    if isinstance(model.latents[name].granularity, Document):
        raise UserError(
            f"continuation_latents: {name} has one site per document, which begins with the prompt, so that none follows: "
            "give its value in `latents`."
        )


def _transposed(given: Any) -> Any:
    """Several `Latents`, one for each row, as a mapping from each latent to its values; everything else as it is."""
    if given is None or isinstance(given, str | Mapping | Latent):
        return given
    if not isinstance(given, Sequence):
        raise UserError(f'latents must be "fresh", "shared" or latent values, not {type(given).__name__}.')
    if not given or not all(isinstance(one, Latents) for one in given):
        return given
    return {name: [one[name] for one in given] for name in same_names(given)}


def _per_row(model: LatentDecoder, name: str, given: Given, prompts: int, samples: int) -> Sequence[Tensor]:
    """Given values of one latent as one (S, E) for each of the prompts * samples rows."""
    if not isinstance(given, Latent | Latents) and not (
        isinstance(given, Sequence) and all(isinstance(one, Latent) for one in given)
    ):
        raise UserError(f"The latents given for {name} are no `Latent` but {type(given).__name__}.")
    check_events(given, model, name)
    values = [value.to(model.device) for value in rows_of(given)]
    if len(values) == 1:
        return values * (prompts * samples)
    if len(values) == prompts:
        return [value for value in values for _ in range(samples)]
    if len(values) != prompts * samples:
        raise UserError(
            f"{len(values)} latents are given for {prompts} prompts with {samples} samples each: "
            f"give {_listed(sorted({1, prompts, prompts * samples}))}."
        )
    return values


def _listed(counts: list[int]) -> str:
    """1, 3 or 6."""
    *most, last = map(str, counts)
    return f"{', '.join(most)} or {last}" if most else last


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
        raw = job.model.tokenizer.decode_after(row.prompt, row.tokens)
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
