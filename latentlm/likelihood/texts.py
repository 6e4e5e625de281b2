"""Texts as the estimators see them: what is given, what is a target, and what they share.

A text's last token is a target only: no input, and no site is drawn for it. So texts that differ in their last token alone, and
draw the same random numbers, are one *row* of a batch: one pass, of which each reads off its own last target (options of one
token: what they are all told is the context). Rows with the same given tokens and numbers begin alike: one *stem*, whose trunk
runs once.

Legend: A texts, B rows, N targets, T inputs, K samples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentlm.interface import Batch, Context, LatentDecoder, Stems


@dataclass(frozen=True)
class Texts:
    """Texts of which the first `lengths` tokens are given and the rest are targets, with the trunk's pass over their inputs."""

    context: Context
    """Of the rows."""
    lengths: Tensor
    """(B,) long: given tokens, m >= 1."""
    targets: Tensor
    """(A, N) long, padded."""
    positions: Tensor
    """(B, N) long: row position that predicts each target, m-1 .. n-2."""
    mask: Tensor
    """(B, N) bool: real targets."""
    rows: Tensor
    """(A,) long: the row of each text, rising."""
    stems: Stems | None = None
    """Rows whose given tokens and random numbers are the same; None where no two are."""

    @classmethod
    def of(
        cls,
        model: LatentDecoder,
        tokens: Sequence[Sequence[int]],
        lengths: Sequence[int],
        *,
        keys: Sequence[Hashable] | None = None,
    ) -> Texts:
        """Run the trunk. Texts share rows and stems where their `keys`, which stand for their random numbers, are equal;
        without keys every text is a row of its own. Texts of one row follow one another (`in_rows` says how to order them).
        """
        assert all(1 <= given < len(text) for text, given in zip(tokens, lengths, strict=True))
        rows = list(range(len(tokens))) if keys is None else _numbered(in_rows(tokens, lengths, keys))
        firsts = [number for number, row in enumerate(rows) if number == 0 or row != rows[number - 1]]
        given = [lengths[number] for number in firsts]
        batch = Batch.of([tokens[number][:-1] for number in firsts], given=given, device=model.device)
        stems = None if keys is None else _stems([(keys[n], tuple(tokens[n][: lengths[n]])) for n in firsts], batch)
        counts = [len(text) - own for text, own in zip(tokens, lengths, strict=True)]
        targets = torch.zeros(len(tokens), max(counts), dtype=torch.long)
        for number, (text, own) in enumerate(zip(tokens, lengths, strict=True)):
            targets[number, : counts[number]] = torch.tensor(list(text[own:]), dtype=torch.long)
        step = torch.arange(max(counts), device=model.device)
        given_tokens = torch.tensor(given, device=model.device)
        mask = step[None] < torch.tensor([counts[number] for number in firsts], device=model.device)[:, None]
        positions = torch.where(mask, given_tokens[:, None] - 1 + step[None], 0)
        context = model.context(batch) if stems is None else model.shared_context(batch, stems)
        row = torch.tensor(rows, device=model.device)
        return cls(context, given_tokens, targets.to(model.device), positions, mask, row, stems)

    @property
    def firsts(self) -> Tensor:
        """(B,) long: the first text of each row."""
        return torch.searchsorted(self.rows, torch.arange(self.context.rows, device=self.rows.device))

    def select(self, numbers: Tensor) -> Texts:
        """Some of the texts, in rising order."""
        kept, rows = self.rows[numbers].unique(return_inverse=True)
        return replace(
            self,
            context=self.context.select(kept),
            lengths=self.lengths[kept],
            targets=self.targets[numbers],
            positions=self.positions[kept],
            mask=self.mask[kept],
            rows=rows,
            stems=None if self.stems is None else self.stems.select(kept),
        )


def in_rows(tokens: Sequence[Sequence[int]], lengths: Sequence[int], keys: Sequence[Hashable]) -> list[Hashable]:
    """What is the same for the texts of one row."""
    return [(key, given, tuple(text[:-1])) for text, given, key in zip(tokens, lengths, keys, strict=True)]


def _numbered(names: Sequence[Hashable]) -> list[int]:
    """Names as numbers, in the order in which they come; equal ones stand together."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    found = [numbers[name] for name in names]
    assert found == sorted(found), "texts of one row follow one another"
    return found


def _stems(beginnings: Sequence[tuple[Hashable, tuple[int, ...]]], batch: Batch) -> Stems | None:
    """From each row's key and given tokens."""
    earliest: dict[Hashable, int] = {}
    first = [earliest.setdefault(beginning, row) for row, beginning in enumerate(beginnings)]
    if len(earliest) == len(beginnings):
        return None
    device = batch.inputs.device
    return Stems(torch.tensor(first, device=device), torch.tensor([len(given) for _, given in beginnings], device=device))
