"""Tables for a terminal that stay readable where it is too narrow for them: no name is lost, and no digit.

    table = ReadableTable("model", "bits/byte", names=1)

rich squeezes the columns that may wrap, down to nothing, and breaks words and numbers. Here text wraps between its words; where
that is not enough, the columns are laid out in several tables, one below the other, each with the names. Names and numbers
fold only where one column beside the names is too much.
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
_TEXT_WIDTH = 20  # below which lines of text that wrap are no pleasure
_ENDLESS = 100_000


class ReadableTable(Table):
    """A `rich.table.Table` whose first `names` columns are names. Of a column that is `no_wrap` the cells keep their lines
    whole; its header wraps between words."""

    def __init__(self, *headers: Column | str, names: int = 1, **options: Any) -> None:
        super().__init__(*headers, **options)
        self.names = names

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        part = copy.copy(self)
        if isinstance(self.title, str) and self.title_justify == "left":  # which rich wraps at the table's own width
            yield console.render_str(self.title, style=self.title_style or "table.title", highlight=False)
            part.title = None
        for columns in self._parts(console, options):
            part.columns = columns
            part.columns = part._fitted(console, options)
            yield from Table.__rich_console__(part, console, options)
            part.title = None

    def _parts(self, console: Console, options: ConsoleOptions) -> Iterator[list[Column]]:
        """The columns of each table: as many as it holds without breaking a word or a line that is to stay whole."""
        names, numbers = self.columns[: self.names], self.columns[self.names :]
        part = copy.copy(self)
        taken: list[Column] = []
        for column in numbers:
            part.columns = [*names, *taken, column]
            if taken and part._excess(console, options) > sum(part._spare(console, options)):
                yield [*names, *taken]
                taken = []
            taken.append(column)
        yield [*names, *taken]

    def _excess(self, console: Console, options: ConsoleOptions) -> int:
        """Characters by which the table is too wide with every line whole."""
        return Measurement.get(console, options.update(width=_ENDLESS), self).maximum - options.max_width

    def _spare(self, console: Console, options: ConsoleOptions) -> list[int]:
        """Characters that each column can do without before a word breaks, or a line that is to stay whole."""
        longest = options.max_width * 2 // 5  # of a word or name that is never broken
        found = []
        for place, column in enumerate(self.columns):
            line, word = self._needed(console, options, column)
            if column.no_wrap and place >= self.names:
                floor = word
            else:
                is_text = column.justify == "left" and place >= self.names
                floor = max(min(word, longest), min(line, _TEXT_WIDTH) if is_text else 0)
            found.append(line - floor)
        return found

    def _needed(self, console: Console, options: ConsoleOptions, column: Column) -> tuple[int, int]:
        """The longest line of a column and what must not break of it, in characters: the cells' lines where they are to stay
        whole, else the words."""
        endless = options.update(width=_ENDLESS)
        heads = [column.header] if self.show_header else []
        (line, word), (head_line, head_word) = (_extent(console, endless, cells) for cells in (column.cells, heads))
        return max(line, head_line), max(line if column.no_wrap else word, head_word)

    def _fitted(self, console: Console, options: ConsoleOptions) -> list[Column]:
        """The columns, with widths at which the table fits where rich would have to squeeze or cut it."""
        excess = self._excess(console, options)
        if excess <= 0:
            return self.columns
        lines, words = map(list, zip(*(self._needed(console, options, column) for column in self.columns), strict=True))
        endless = options.update(width=_ENDLESS)
        single = [_extent(console, endless, [column.header, *column.cells])[1] for column in self.columns]
        spared = [line - spare for line, spare in zip(lines, self._spare(console, options), strict=True)]
        everything, names, numbers = range(len(lines)), range(self.names), range(self.names, len(lines))
        widths = list(lines)
        for places, floors in (
            (everything, spared),
            (names, [min(NAME_WIDTH, word) for word in words]),
            (numbers, single),
            (numbers, [min(_NUMBER_WIDTH, word) for word in words]),
            (names, [min(_NARROWEST, word) for word in words]),
            (numbers, [1] * len(words)),
        ):
            excess = _shrink(widths, floors, places, excess)
        return [
            replace(column, width=width, overflow="fold", no_wrap=column.no_wrap and width >= line)
            for column, width, line in zip(self.columns, widths, lines, strict=True)
        ]


def _extent(console: Console, options: ConsoleOptions, cells: Iterable[Any]) -> tuple[int, int]:
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
