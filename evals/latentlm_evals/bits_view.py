"""What the bits of a token do, to be looked at: a text under the bits that its encoder gives it, and what one bit changes.

    liveliest   the bits whose posterior mean moves most over the text: P(bit = 1) at every token
    flips       one bit of one token's latent set to 0 and to 1, everything else as the encoder drew it: the next token's
                probabilities under both, where they differ most (total variation)
    written     the same prompt continued twice with the same random numbers, the bit 0 at all new tokens and 1 at all

Legend: T tokens, E bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentlm.generation import generate
from latentlm.interface import Batch, Bits, Context, Latent, LatentDecoder, Latents, Noise
from latentlm.interface.granularity import Token
from latentlm.tokenizer import Tokenizer

_SHOWN, _FLIPS, _BEFORE, _LIKELY = 3, 6, 28, 3
_ROWS = 64
"""Rows of a pass."""


@dataclass(frozen=True)
class BitShown:
    """One bit over the text."""

    number: int
    variance: float
    """Of P(bit = 1) over the text."""
    chances: list[float]
    """P(bit = 1) at each token."""


@dataclass(frozen=True)
class Flip:
    """What the bit of one token says of the next."""

    before: str
    """The end of the text up to it."""
    after: str
    """The token that really follows."""
    distance: float
    """Total variation between the two distributions, 0 to 1."""
    under: list[list[tuple[str, float]]]
    """The likeliest tokens with the bit 0, and with it 1."""


@dataclass(frozen=True)
class BitsView:
    """What there is to look at of one latent."""

    latent: str
    pieces: list[str]
    """The text, token by token."""
    bits: list[BitShown]
    """The liveliest first; the flips and the texts are the first one's."""
    flips: list[Flip]
    prompt: str
    written: list[list[str]]
    """Continuations with the bit 0, and with it 1; number i of both has the same random numbers."""


@torch.no_grad()
def view(model: LatentDecoder, tokens: Sequence[int], *, prompt: str, seed: int = 0, length: int = 60) -> BitsView | None:
    """Look at the first latent that is bits of a token, over a text given with its first token; None where there is none."""
    tokenizer = model.tokenizer
    names = [name for name, one in model.latents.items() if one.has_encoder and isinstance(one.granularity, Token)]
    if not names or tokenizer is None:
        return None
    tokens = list(tokens[: min(len(tokens), model.config.backbone.context + 1)])
    context = model.context(Batch.of([tokens[:-1]], [tokens[1:]], device=model.device))
    drawn = model.infer(context, Noise.keyed(seed, ["bits"]))
    posterior = model.posterior(context, names[0], drawn)
    if not isinstance(posterior, Bits):
        return None
    chances = posterior.expected()[0].double().cpu()  # (T, E)
    variances = chances.var(0, unbiased=False)
    order = variances.argsort(descending=True).tolist()[:_SHOWN]
    apart = [_next(model, context, drawn, names[0], order[0], value) for value in (0.0, 1.0)]
    return BitsView(
        latent=names[0],
        pieces=[_piece(tokenizer, token) for token in tokens[:-1]],
        bits=[BitShown(bit, float(variances[bit]), chances[:, bit].tolist()) for bit in order],
        flips=_flips(tokenizer, tokens, *apart),
        prompt=prompt,
        written=[_written(model, prompt, names[0], order[0], value, seed=seed, length=length) for value in (0.0, 1.0)],
    )


def _next(model: LatentDecoder, context: Context, drawn: Latents, name: str, bit: int, value: float) -> Tensor:
    """Probabilities of the token after each place with the bit of that place alone set: (T, V)."""
    own = drawn[name].value
    count = own.shape[1]
    found = []
    for places in torch.arange(count, device=own.device).split(_ROWS):
        changed = own.repeat(len(places), 1, 1)
        changed[torch.arange(len(places)), places, bit] = value
        rows = drawn.select(torch.zeros_like(places)).plus(name, Latent(changed))
        hidden = model.hidden(context, rows)[torch.arange(len(places)), places]
        found.append(model.logits(hidden).softmax(-1).cpu())
    return torch.cat(found)


def _flips(tokenizer: Tokenizer, tokens: Sequence[int], zero: Tensor, one: Tensor) -> list[Flip]:
    """The places that differ most, no two of them within three tokens."""
    distances = 0.5 * (zero - one).abs().sum(-1)
    chosen: list[int] = []
    for place in distances.argsort(descending=True).tolist():
        if len(chosen) < _FLIPS and all(abs(place - other) > 3 for other in chosen):
            chosen.append(place)
    return [
        Flip(
            before=tokenizer.decode(list(tokens[max(1, place - _BEFORE) : place + 1])),
            after=_piece(tokenizer, tokens[place + 1]),
            distance=float(distances[place]),
            under=[_likely(tokenizer, chances[place]) for chances in (zero, one)],
        )
        for place in sorted(chosen)
    ]


def _likely(tokenizer: Tokenizer, chances: Tensor) -> list[tuple[str, float]]:
    top = chances.topk(_LIKELY)
    return [(_piece(tokenizer, int(token)), float(chance)) for token, chance in zip(top.indices, top.values, strict=True)]


def _piece(tokenizer: Tokenizer, token: int) -> str:
    """A token as it reads; end-of-text by its name."""
    return "end of text" if token in tokenizer.special or token >= tokenizer.vocabulary else tokenizer.decode([token])


def _written(
    model: LatentDecoder, prompt: str, name: str, bit: int, value: float, *, seed: int, length: int, count: int = 3
) -> list[str]:
    """Continuations under latents of the prior with one bit set; what the prior draws is taken from a first continuation."""
    length = min(length, model.config.backbone.context // 2)
    first = generate(model, [prompt], max_tokens=length, samples=count, seed=seed, truncate="left")
    given = []
    for made in first:
        assert made.latents is not None
        new = made.latents[name].value[:, len(made.prompt) :].clone()
        new[..., bit] = value
        given.append(Latent(new))
    again = generate(
        model, [prompt], max_tokens=length, samples=count, seed=seed, continuation_latents={name: given}, truncate="left"
    )  # type: ignore[arg-type]
    return [one.text or "" for one in again]
