"""What parts gather while they train, and move once per optimiser step (`Part.advance`): moving averages, restarts.

    loss, loss, ...     gather; persistent buffers stand still
    advance             moves the buffers, and what was gathered is gone

Legend: B rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentlm.interface import Batch, LatentDecoder, Noise, Part
from latentlm.testing.checks.gradients import parts_of
from latentlm.testing.comparing import assert_close, called
from latentlm.testing.registry import check, need
from latentlm.testing.subject import Subject

_ROWS = 8


def _buffers(model: LatentDecoder) -> dict[str, Tensor]:
    """Persistent buffers, as they stand."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in parameters}


def _moving(model: LatentDecoder) -> list[str]:
    """What messages call the parts that have an `advance` of their own."""
    return [
        called(model, socket, name)
        for (name, socket), part in parts_of(model).items()
        if isinstance(part, Part) and type(part).advance is not Part.advance
    ]


def _gather(model: LatentDecoder, subject: Subject, rows: list[int], *, step: int) -> None:
    """Forward and back through these of eight texts."""
    texts = subject.tokens(_ROWS, seed=20 + step)
    keys = Noise.keyed(step, range(_ROWS)).select(rows)
    model.loss(Batch.of([texts[row] for row in rows]), step=step, noise=keys).total.backward()


@check("advance")
def loss_moves_no_buffer(subject: Subject) -> None:
    """A training pass moves no persistent buffer: that is for `advance`, once per optimiser step."""
    model = subject.copied().train()
    need(_buffers(model), "it has no persistent buffers")
    before = _buffers(model)
    for _ in range(2):
        _gather(model, subject, list(range(_ROWS)), step=0)
    moved = [name for name, tensor in _buffers(model).items() if not torch.equal(tensor, before[name])]
    assert not moved, (
        f"a training pass moves {', '.join(moved)}: with several micro-batches, or a block that is computed twice, it would "
        "move more often. Gather in a buffer with persistent=False, and move in `advance`"
    )


@check("advance")
def advance_empties(subject: Subject) -> None:
    """What a part gathered in one step is gone in the next: a model that is loaded after a step goes on like the one before."""
    model = subject.copied().train()
    need(_moving(model), "no part of it has an `advance` of its own")
    every = list(range(_ROWS))
    _gather(model, subject, every, step=0)
    model.advance(0)
    loaded = subject.copied().train()
    loaded.load_state_dict(model.state_dict())
    for one in (model, loaded):
        _gather(one, subject, every[:4], step=1)
        one.advance(1)
    _assert_alike(model, loaded, "after a step, against a model loaded in between", "empty in `advance` what was gathered")


@check("advance")
def micro_batches_gather_alike(subject: Subject) -> None:
    """Eight rows in one pass, and in two of four, move the buffers alike."""
    whole, split = subject.copied().train(), subject.copied().train()
    need(_moving(whole), "no part of it has an `advance` of its own")
    need(_buffers(whole), "it has no persistent buffers")
    every = list(range(_ROWS))
    _gather(whole, subject, every, step=0)
    for rows in (every[:4], every[4:]):
        _gather(split, subject, rows, step=0)
    for one in (whole, split):
        one.advance(0)
    _assert_alike(split, whole, "of two micro-batches, against one batch of their rows", "gather sums, divide in `advance`")


def _assert_alike(one: LatentDecoder, other: LatentDecoder, what: str, remedy: str) -> None:
    """Equal buffers."""
    expected = _buffers(other)
    for name, tensor in _buffers(one).items():
        said = f"{name} ({', '.join(_moving(one))}) {what}: {remedy}"
        assert_close(tensor.double(), expected[name].double(), said)
