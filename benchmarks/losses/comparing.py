"""What two revisions say, number by number: the same bits or not, as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import rich.table

from benchmarks.losses.running import Case, Reply

SHOWN = 8
"""Most differing numbers of a case in the table; the JSON has them all."""
Status = Literal["same", "different", "failed", "new", "gone"]


@dataclass(frozen=True)
class Difference:
    """A number that is not the same; None where a revision lacks it."""

    number: str
    before: Any
    after: Any

    @property
    def relative(self) -> float | None:
        """|after - before| over the larger of the two; None for what is no number."""
        if not isinstance(self.before, float | int) or not isinstance(self.after, float | int):
            return None
        return abs(self.after - self.before) / max(abs(self.after), abs(self.before), 1e-300)


@dataclass
class Verdict:
    """What became of one case."""

    case: Case
    status: Status
    compared: int = 0
    different: list[Difference] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    """Numbers that only the working tree has: no differences."""
    errors: dict[str, str] = field(default_factory=dict)
    """Label of the revision -> last line of its complaint."""
    seconds: float = 0.0
    """Of the slower revision."""


def judge(case: Case, replies: Mapping[str, Reply]) -> Verdict:
    """Compare a case's replies; the first label is the earlier revision. A number that only the earlier one has cannot be shown
    to be the same, and so is a difference; one that only the working tree has is new."""
    before, after = replies.values()
    seconds = max(before.seconds, after.seconds)
    if errors := {label: reply.error for label, reply in replies.items() if reply.error is not None}:
        return Verdict(case, "failed", errors=errors, seconds=seconds)
    names = list(before.numbers)
    changed = [name for name in names if before.numbers[name] != after.numbers.get(name)]
    different = [Difference(name, _value(before.numbers[name]), _value(after.numbers.get(name))) for name in changed]
    new = [name for name in after.numbers if name not in before.numbers]
    return Verdict(case, "different" if different else "same", len(names), different, new, seconds=seconds)


def _value(text: str | None) -> Any:
    """A reply's text as the value it stands for."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return float.fromhex(text)


def exit_status(verdicts: Sequence[Verdict]) -> int:
    """0: all the same; 1: a number differs; 2: a case failed, so nothing is known of it."""
    found = {verdict.status for verdict in verdicts}
    return 2 if "failed" in found else 1 if "different" in found else 0


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Plain data, one entry for each case."""
    rows = []
    for verdict in verdicts:
        different = [{**asdict(one), "relative": one.relative} for one in verdict.different]
        rows.append({**asdict(verdict), "case": verdict.case.id, "different": different})
    return rows


# ------------------------------------------------------------------------------------------------------------- tables


def overview(verdicts: Sequence[Verdict], *, title: str) -> rich.table.Table:
    """A row for each case."""
    table = rich.table.Table(title=title)
    for name in ("case", "numbers", "differ", "seconds", "verdict"):
        table.add_column(name, justify="right" if name in ("numbers", "differ", "seconds") else "left", overflow="fold")
    for verdict in verdicts:
        ran = verdict.status in ("same", "different")
        counts = [str(verdict.compared), str(len(verdict.different))] if ran else ["", ""]
        table.add_row(verdict.case.id, *counts, f"{verdict.seconds:.1f}" if verdict.seconds else "", _said(verdict))
    return table


def _said(verdict: Verdict) -> str:
    """The verdict in words."""
    if verdict.status == "failed":
        return "[red]failed[/red]"
    if verdict.status == "different":
        measured = [one.relative for one in verdict.different if one.relative is not None]
        most = f", by up to {max(measured):.1e} of its size" if measured else ""
        return f"[red]different[/red]: {verdict.different[0].number}{most}"
    new, gone = "new: the other revision lacks it", "gone from the working tree"
    words = {"same": "[green]the same bits[/green]", "new": new, "gone": gone}
    return words[verdict.status] + (f"; {len(verdict.new)} new numbers" if verdict.new else "")


def details(verdicts: Sequence[Verdict], *, labels: Sequence[str]) -> rich.table.Table | None:
    """The first numbers of each case that differ; None where there are none."""
    found = [(verdict.case.id, one) for verdict in verdicts for one in verdict.different[:SHOWN]]
    if not found:
        return None
    count = sum(len(verdict.different) for verdict in verdicts)
    more = f" ({len(found)} of {count}; --json has them all)" if len(found) < count else ""
    table = rich.table.Table(title=f"Numbers that differ{more}")
    for name in ("case", "number", *labels, "relative"):
        table.add_column(name, overflow="fold")
    for case, one in found:
        relative = "" if one.relative is None else f"{one.relative:.1e}"
        table.add_row(case, one.number, _short(one.before), _short(one.after), relative)
    return table


def _short(value: Any) -> str:
    """A value that fits a cell."""
    text = "lacking" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
