"""Tables for a terminal that stay readable where it is too narrow for them: no name is lost, and no digit.

    table = ReadableTable("model", "bits/byte", names=1)

rich squeezes the columns that may wrap, down to nothing, and cuts words with an ellipsis; numbers of a model that diverged are
wide enough to leave no name. Here columns give way in turn: text wraps between its words, names fold, then numbers fold.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table

NAME_WIDTH = 13  # characters a line down to which names fold first
_NUMBER_WIDTH = 10  # then numbers
_NARROWEST = 5  # and then names again, before numbers fold to less
_ENDLESS = 100_000


class ReadableTable(Table):
    """A `rich.table.Table` whose first `names` columns are names. A column that is `no_wrap` keeps its lines whole as long as
    names can fold instead."""

    def __init__(self, *headers: Column | str, names: int = 1, **options: Any) -> None:
        super().__init__(*headers, **options)
        self.names = names

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitted = copy.copy(self)
        fitted.columns = self._fitted(console, options)
        yield from Table.__rich_console__(fitted, console, options)

    def _fitted(self, console: Console, options: ConsoleOptions) -> list[Column]:
        """The columns, with widths at which the table fits where rich would have to squeeze or cut it."""
        endless = options.update(width=_ENDLESS)
        excess = Measurement.get(console, endless, self).maximum - options.max_width
        if excess <= 0:
            return self.columns
        lines, words = map(list, zip(*(_needed(console, endless, self._said(column)) for column in self.columns), strict=True))
        words[: self.names] = [max(word, min(line, NAME_WIDTH)) for line, word in zip(lines, words[: self.names], strict=False)]
        whole = [line if column.no_wrap else word for column, line, word in zip(self.columns, lines, words, strict=True)]
        everything, names, numbers = range(len(lines)), range(self.names), range(self.names, len(lines))
        widths = list(lines)
        for places, floors in (
            (everything, whole),
            (names, [min(NAME_WIDTH, word) for word in words]),
            (numbers, words),
            (numbers, [min(_NUMBER_WIDTH, word) for word in words]),
            (names, [min(_NARROWEST, word) for word in words]),
            (numbers, [1] * len(words)),
        ):
            excess = _shrink(widths, floors, places, excess)
        return [
            replace(column, width=width, overflow="fold", no_wrap=column.no_wrap and width >= line)
            for column, width, line in zip(self.columns, widths, lines, strict=True)
        ]

    def _said(self, column: Column) -> Iterator[Any]:
        """All that stands in a column."""
        if self.show_header:
            yield column.header
        yield from column.cells


def _needed(console: Console, options: ConsoleOptions, cells: Iterable[Any]) -> tuple[int, int]:
    """The longest line and the longest word, in characters."""
    found = [Measurement.get(console, options, cell) for cell in cells]
    return max((one.maximum for one in found), default=1), max((one.minimum for one in found), default=1)


def _shrink(widths: list[int], floors: Sequence[int], places: Iterable[int], excess: int) -> int:
    """Take characters from the columns at these places, the widest first, none below its floor; what is still too much."""
    places = list(places)
    while excess > 0 and (free := [place for place in places if widths[place] > floors[place]]):
        widths[max(free, key=lambda place: widths[place])] -= 1
        excess -= 1
    return excess
