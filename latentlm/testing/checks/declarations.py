"""Parts do what they declare: blocks, slots, taps, family. (That they declare it, and that declarations fit together, is looked
at when a decoder is built.)

Legend: B rows, S sites, E event dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from latentlm.composed import ComposedDecoder
from latentlm.interface import Batch, BlockCondition, Condition, Context, Injection, Latent
from latentlm.testing.comparing import TEXTS, called, pack
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject, noise


class _Read(Mapping[int, Tensor]):
    """Taps that note which of them are read."""

    def __init__(self, taps: Mapping[int, Tensor], noted: set[int]) -> None:
        self.taps, self.noted = taps, noted

    def __getitem__(self, tap: int) -> Tensor:
        self.noted.add(tap)
        return self.taps[tap]

    def __iter__(self) -> Iterator[int]:
        return iter(self.taps)

    def __len__(self) -> int:
        return len(self.taps)


def _copied(subject: Subject) -> ComposedDecoder:
    """A copy to watch."""
    model = subject.copied()
    need(isinstance(model, ComposedDecoder) and model.has_latents, "it has no parts")
    assert isinstance(model, ComposedDecoder)
    return model


def _work(subject: Subject, model: ComposedDecoder) -> None:
    """Everything that a decoder is asked: training, generation."""
    batch = pack(TEXTS, vocabulary=subject.config.backbone.vocabulary)
    model.train()
    model.loss(batch, step=0, noise=noise(2))
    model.eval()
    model.loss(batch, step=0, noise=noise(2))
    prompts, lengths = torch.tensor(subject.tokens(2, 6)), torch.tensor([6, 4])
    for source in ("posterior", "prior"):
        state = model.prefill(prompts, lengths, latents=source, noise=noise(2))  # type: ignore[arg-type]
        for token in subject.tokens(1, 6, seed=4)[0]:
            state = model.step(state, torch.tensor([token, token]), noise=noise(2))


@check("structure")
def taps_as_declared(subject: Subject) -> None:
    """Encoders and priors read no tap that they do not declare."""
    model = _copied(subject)
    noted: dict[tuple[str, str], set[int]] = {}

    def watched(call: Callable[..., Any], own: set[int]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            shown = [
                replace(given, taps=_Read(given.taps, own)) if isinstance(given, Context) else given for given in arguments
            ]
            return call(*shown, **named)

        return run

    for name, latent in model.latents.items():
        for socket, part in latent.named_parts():
            if socket == "injection":
                continue
            own = noted.setdefault((name, socket), set())
            part.forward = watched(part.forward, own)
            if socket == "prior":
                latent.prior.start = watched(latent.prior.start, own)  # type: ignore[method-assign]
    _work(subject, model)
    for (name, socket), read in noted.items():
        part = dict(model.latents[name].named_parts())[socket]
        declared = set(getattr(part, "taps", ()))
        assert read <= declared, (
            f"{called(model, socket, name)} reads taps {sorted(read - declared)}, but `taps` says {sorted(declared)}: in "
            "another decoder they may not be there, or may depend on z"
        )


@check("structure")
def blocks_and_slots_as_declared(subject: Subject) -> None:
    """Injections condition the blocks and fill the slots that they declare, and no others."""
    model = _copied(subject)
    made: list[tuple[str, Condition]] = []

    def watched(part: Injection, name: str) -> Callable[[Latent, Context], Condition]:
        forward = part.forward

        def run(latent: Latent, context: Context) -> Condition:
            condition = forward(latent, context)
            made.append((name, condition))
            return condition

        return run

    for name, latent in model.latents.items():
        latent.injection.forward = watched(latent.injection, name)  # type: ignore[method-assign, assignment]
    _work(subject, model)
    for name, condition in made:
        part = model.latents[name].injection
        outside = sorted(set(condition.blocks) - set(part.blocks))
        what = called(model, "injection", name)
        assert not outside, (
            f"{what} conditions blocks {outside}, but `blocks` says {part.blocks}: the trunk is taken to end at the first of "
            "these"
        )
        undeclared = sorted(_slots(condition) - set(part.slots))
        assert not undeclared, f"{what} fills the slots {undeclared}, but `slots` says {part.slots}: declare them"


def _slots(condition: Condition) -> set[str]:
    """The slots that hold something."""
    used = {name for name in ("embedding", "logit_bias") if getattr(condition, name) is not None}
    for block in condition.blocks.values():
        used |= {slot.name for slot in fields(BlockCondition) if getattr(block, slot.name) is not None}
    return used


@check("structure")
@torch.no_grad()
def values_of_the_family(subject: Subject) -> None:
    """Latents whose parts say "bits" are zeros and ones; every draw is finite."""
    model = _copied(subject)
    context = model.context(Batch.of(subject.tokens(2)))
    for what, latents in {"prior": model.sample_prior(context, noise(2)), "encoder": model.infer(context, noise(2))}.items():
        for name, latent in model.latents.items():
            socket = what if what == "prior" or latent.has_encoder else "prior"
            value, part = latents[name].value, called(model, socket, name)
            assert bool(value.isfinite().all()), f"{part} draws values that are not finite"
            families = {own.family for _, own in latent.named_parts()}
            assert "bits" not in families or bool(((value == 0) | (value == 1)).all()), (
                f'{part} draws other values than zeros and ones, but `family` says "bits"'
            )
