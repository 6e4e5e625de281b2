"""A decoder's sockets as a drawing in text: where z is inferred, where it comes from otherwise, where it enters, what it costs.

    print(draw(build(config, device="meta")))

        embedding
            │
       blocks 0-1        the trunk, free of z
            ├──────────► encoder free                q(z | x), sees ahead, tap 2
            ├──────────► prior uniform_bits          p(z)
            │            z: 8 bits per token         KL schedule free_bits
         block 2      ◄─ injection free              kv
            │
         block 3
            │
      norm, readout
"""

from __future__ import annotations

from collections.abc import Iterator

from latentlm.composed import ComposedDecoder
from latentlm.composed.sockets import Sockets, needs
from latentlm.config import PartSpec
from latentlm.interface import LatentDecoder

_LEFT = 17
_MIDDLE = _LEFT // 2
_STEM = " " * _MIDDLE + "│"
_IN = " ◄─ "
_OUT = " " * _MIDDLE + "├" + "─" * (_LEFT + len(_IN) - _MIDDLE - 3) + "► "
_GAP = " " * len(_IN)
_NAME = 27
_WIDTH = 80


def draw(model: LatentDecoder) -> str:
    """The drawing, in lines. A decoder that is not composed of parts is one box."""
    if not isinstance(model, ComposedDecoder):
        return f"{type(model).__name__}: a decoder of its own, without sockets"
    return "\n".join(line.rstrip() for line in _lines(model))


def _lines(model: ComposedDecoder) -> Iterator[str]:
    blocks = model.config.backbone.blocks
    latents = list(model.latents.values())
    several = len(latents) > 1
    embedded = [own for own in latents if "embedding" in own.injection.slots]
    yield from _entered(_box("embedding"), embedded, several, ("embedding",))
    yield _STEM
    if not latents:
        yield _box(_span(0, blocks - 1))
    else:
        yield from _latent_lines(model, latents)
    yield _STEM
    biased = [own for own in latents if "logit_bias" in own.injection.slots]
    yield from _entered(_box("norm, readout"), biased, several, ("logit_bias",))


def _latent_lines(model: ComposedDecoder, latents: list[Sockets]) -> Iterator[str]:
    """From the trunk to the last block."""
    blocks, cut = model.config.backbone.blocks, model.cut
    if cut > 0:
        yield f"{_box(_span(0, cut - 1))}{_GAP}the trunk, free of z"
    for own in latents:
        for socket, part, about in _readers(model, own):
            yield from _beside(_OUT, _name(socket, part), about)
        z, margin = f"{own.name}: {_kind(own)}", f"{_STEM:{_LEFT}}{_GAP}"
        if len(z) > _NAME:
            yield margin + z
            z = ""
        yield f"{margin}{z:{_NAME}} {_price(own)}"
    inner = {own.name: own.injection.blocks if _inner(own) else () for own in latents}
    for number, (first, last, entering) in enumerate(_spans(inner, cut, blocks)):
        if number:
            yield _STEM
        yield from _entered(_box(_span(first, last)), [own for own in latents if own.name in entering], len(latents) > 1)


def _entered(box: str, latents: list[Sockets], several: bool, slots: tuple[str, ...] | None = None) -> Iterator[str]:
    """A box, and what enters it: a line for each latent, through the slots named or its inner ones."""
    if not latents:
        yield box
    for number, own in enumerate(latents):
        assert own.config.injection is not None
        name, through = _name("injection", own.config.injection), ", ".join(slots or _inner(own))
        whose = f" of {own.name}" if several else ""
        yield from _beside(f"{box if number == 0 else _STEM:{_LEFT}}{_IN}", name, f"{through}{whose}")


def _beside(start: str, name: str, about: str) -> Iterator[str]:
    """A part and what is said of it: on one line, or where that is wider than a terminal on two."""
    line = f"{start}{name:{_NAME}} {about}"
    if len(line) <= _WIDTH:
        yield line
    else:
        yield f"{start}{name}"
        yield f"{_STEM:{_LEFT}}{_GAP}  {about}"


def _inner(own: Sockets) -> tuple[str, ...]:
    """Slots of blocks."""
    return tuple(slot for slot in own.injection.slots if slot not in ("embedding", "logit_bias"))


def _readers(model: ComposedDecoder, own: Sockets) -> Iterator[tuple[str, PartSpec, str]]:
    """Encoder and prior: socket, specification, what they are and read."""
    config, encoder, prior = own.config, own.encoder, own.prior
    if config.encoder is not None and encoder is not None:
        seen = "sees ahead" if encoder.sees_future else "causal"
        how = "fitted" if encoder.needs_objective else _taps(encoder.taps)
        what = f"q({own.name} | {', '.join(('x', *needs(model.latents, own.name, 'encoder')[1]))})"
        yield "encoder", config.encoder, ", ".join(text for text in (what, seen, how) if text)
    assert config.prior is not None
    given = [text for text, holds in (("x so far", prior.taps), (f"{own.name} before", prior.autoregressive)) if holds]
    given += needs(model.latents, own.name, "prior")[1]
    what = f"p({own.name} | {', '.join(given)})" if given else f"p({own.name})"
    yield "prior", config.prior, ", ".join(text for text in (what, _taps(prior.taps)) if text)


def _name(socket: str, part: PartSpec) -> str:
    return f"{socket} {part.name}"


def _taps(taps: tuple[int, ...]) -> str:
    return "" if not taps else f"tap {', '.join(map(str, taps))}"


def _kind(own: Sockets) -> str:
    """What a latent is, and how many there are."""
    families = {part.family for part in (own.prior, own.injection) if part.family}
    word = {"bits": "bits", "real": "real numbers", "levels": "levels"}.get(next(iter(families), ""), "dimensions")
    scale, _, count = own.granularity_text.partition(":")
    return f"{own.dims} {word} per {scale}" + (f" of {count}" if count else "")


def _price(own: Sockets) -> str:
    schedule = own.config.kl_schedule
    return "no KL schedule" if schedule is None else f"KL schedule {schedule.name}"


def _spans(entering: dict[str, tuple[int, ...]], start: int, stop: int) -> Iterator[tuple[int, int, frozenset[str]]]:
    """The blocks start .. stop-1 as runs that the same latents enter: (first, last, their names)."""
    first = start
    for block in range(start, stop):
        here, after = (frozenset(name for name, blocks in entering.items() if b in blocks) for b in (block, block + 1))
        if block + 1 == stop or here != after:
            yield first, block, here
            first = block + 1


def _span(first: int, last: int) -> str:
    return f"block {first}" if first == last else f"blocks {first}-{last}"


def _box(text: str) -> str:
    """A box of the column, its middle over the stem."""
    return f"{text:^{_LEFT}}"
