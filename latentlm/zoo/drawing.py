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
from latentlm.config import PartSpec
from latentlm.interface import LatentDecoder

_LEFT = 17
_MIDDLE = _LEFT // 2
_STEM = " " * _MIDDLE + "│"
_IN = " ◄─ "
_OUT = " " * _MIDDLE + "├" + "─" * (_LEFT + len(_IN) - _MIDDLE - 3) + "► "
_GAP = " " * len(_IN)
_NAME = 27


def draw(model: LatentDecoder) -> str:
    """The drawing, in lines. A decoder that is not composed of parts is one box."""
    if not isinstance(model, ComposedDecoder):
        return f"{type(model).__name__}: a decoder of its own, without sockets"
    return "\n".join(line.rstrip() for line in _lines(model))


def _lines(model: ComposedDecoder) -> Iterator[str]:
    config, injection = model.config, model.injection
    blocks = config.backbone.blocks
    embedded = injection is not None and "embedding" in injection.slots
    yield _box("embedding") + (_IN + _injection(model, ("embedding",)) if embedded else "")
    yield _STEM
    if injection is None:
        yield _box(_span(0, blocks - 1))
    else:
        yield from _latent_lines(model)
    yield _STEM
    biased = injection is not None and "logit_bias" in injection.slots
    yield _box("norm, readout") + (_IN + _injection(model, ("logit_bias",)) if biased else "")


def _latent_lines(model: ComposedDecoder) -> Iterator[str]:
    """From the trunk to the last block."""
    injection, cut = model.injection, model.cut
    assert injection is not None
    blocks = model.config.backbone.blocks
    if cut > 0:
        yield f"{_box(_span(0, cut - 1))}{_GAP}the trunk, free of z"
    for socket, part, about in _readers(model):
        yield f"{_OUT}{_name(socket, part):{_NAME}} {about}"
    z, margin = f"z: {_kind(model)}", f"{_STEM:{_LEFT}}{_GAP}"
    if len(z) > _NAME:
        yield margin + z
        z = ""
    yield f"{margin}{z:{_NAME}} {_price(model)}"
    inner = tuple(slot for slot in injection.slots if slot not in ("embedding", "logit_bias"))
    spans = _spans(injection.sites if inner else (), cut, blocks)
    for number, (first, last, injected) in enumerate(spans):
        if number:
            yield _STEM
        yield _box(_span(first, last)) + (_IN + _injection(model, inner) if injected else "")


def _readers(model: ComposedDecoder) -> Iterator[tuple[str, PartSpec, str]]:
    """Encoder and prior: socket, specification, what they are and read."""
    config, encoder, prior = model.config, model.encoder, model.prior_part
    if config.encoder is not None and encoder is not None:
        seen = "sees ahead" if encoder.sees_future else "causal"
        how = "fitted" if encoder.needs_objective else _taps(encoder.taps)
        yield "encoder", config.encoder, ", ".join(text for text in ("q(z | x)", seen, how) if text)
    if config.prior is not None and prior is not None:
        given = [text for text, holds in (("x so far", prior.taps), ("z before", prior.autoregressive)) if holds]
        what = f"p(z | {', '.join(given)})" if given else "p(z)"
        yield "prior", config.prior, ", ".join(text for text in (what, _taps(prior.taps)) if text)


def _injection(model: ComposedDecoder, slots: tuple[str, ...]) -> str:
    assert model.config.injection is not None
    return f"{_name('injection', model.config.injection):{_NAME}} {', '.join(slots)}"


def _name(socket: str, part: PartSpec) -> str:
    return f"{socket} {part.name}"


def _taps(taps: tuple[int, ...]) -> str:
    return "" if not taps else f"tap {', '.join(map(str, taps))}"


def _kind(model: ComposedDecoder) -> str:
    """What a latent is, and how many there are."""
    kinds = {part.latents for part in (model.prior_part, model.injection) if part is not None and part.latents}
    word = {"bits": "bits", "real": "real numbers", "levels": "levels"}.get(next(iter(kinds), ""), "dimensions")
    scale, _, count = model.granularity.partition(":")
    return f"{model.event_dims} {word} per {scale}" + (f" of {count}" if count else "")


def _price(model: ComposedDecoder) -> str:
    schedule = model.config.kl_schedule
    return "no KL schedule" if schedule is None else f"KL schedule {schedule.name}"


def _spans(sites: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
    """The blocks start .. stop-1 as runs of injected ones and others: (first, last, injected)."""
    first = start
    for block in range(start, stop):
        injected = block in sites
        if block + 1 == stop or (block + 1 in sites) != injected:
            yield first, block, injected
            first = block + 1


def _span(first: int, last: int) -> str:
    return f"block {first}" if first == last else f"blocks {first}-{last}"


def _box(text: str) -> str:
    """A box of the column, its middle over the stem."""
    return f"{text:^{_LEFT}}"
