"""Texts as the estimators see them: what is given, what is a target, and what they share.

A text's last token is a target only: no input, and no site is drawn for it. So texts that differ in their last token alone, and
draw the same random numbers, are one *row* of a batch: one pass, of which each reads off its own last target (options of one
token: what they are all told is the context). Rows with the same given tokens and numbers begin alike: one *stem*, whose trunk
runs once. So does that of a long beginning that the given tokens of several rows have in common (the examples of a prompt).

Legend: A texts, B rows, N targets, T inputs, K samples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentlm.interface import Batch, Context, LatentDecoder, Stems

LEAST = 16
"""Tokens of a beginning that is worth a pass of its own."""


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
        trunk = None if keys is None else _of_the_trunk(stems, [tokens[n][: lengths[n]] for n in firsts], batch)
        context = model.context(batch) if trunk is None else model.shared_context(batch, trunk)
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


def reading_order(contexts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[int]:
    """An order of requests of so many tokens each: longest first, but those of one context together, and contexts with a long
    beginning in common (`families`)."""
    names = [tuple(context) for context in contexts]
    distinct = list(dict.fromkeys(names))
    family = {name: number for number, members in enumerate(families(distinct)) for name in members}
    longest: dict[Hashable, int] = {}
    for name, length in zip(names, lengths, strict=True):
        for group in (name, family[name]):
            longest[group] = max(longest.get(group, 0), length)
    place = {name: number for number, name in enumerate(distinct)}

    def rank(number: int) -> tuple[int, ...]:
        name = names[number]
        return (-longest[family[name]], family[name], -longest[name], place[name], -lengths[number])

    return sorted(range(len(names)), key=rank)


def families(contexts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Distinct contexts by what they have in common: of neighbours in their alphabetical order, one of a family begins as the
    other for half of its tokens, and for `LEAST` at least."""
    found: list[list[tuple[int, ...]]] = []
    for context in sorted(contexts):
        before = found[-1][-1] if found else ()
        if _common(before, context) >= max(LEAST, min(len(before), len(context)) / 2):
            found[-1].append(context)
        else:
            found.append([context])
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return place
    return min(len(one), len(other))


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


def _of_the_trunk(stems: Stems | None, given: Sequence[Sequence[int]], batch: Batch) -> Stems | None:
    """What rows have in common for the trunk, which sees tokens alone: their stems, and what several stems begin with."""
    device = batch.inputs.device
    contexts = [tuple(context) for context in given]
    numbers = list(range(len(contexts))) if stems is None else sorted(set(stems.first.tolist()))
    first, lengths = list(range(len(numbers))), [len(contexts[number]) for number in numbers]
    rows: dict[tuple[int, ...], list[int]] = {}
    for place, number in enumerate(numbers):
        rows.setdefault(contexts[number], []).append(place)
    for family in families(list(rows)):
        members = sorted(place for context in family for place in rows[context])
        common = _common(family[0], family[-1])  # in alphabetical order, all between have it too
        for place in members if common >= LEAST else []:
            first[place], lengths[place] = members[0], common
    if first == list(range(len(numbers))):
        return stems
    parent = Stems(torch.tensor(first, device=device), torch.tensor(lengths, device=device))
    return parent if stems is None else replace(stems, parent=parent)
