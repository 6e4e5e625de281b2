"""A study in a table: a row for each arm."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from latentlm_evals.study.plan import Study
from latentlm_evals.study.results import ArmResult

HEAD = ("arm", "seeds", "honest, bits/byte", "good to", "from the baseline", "above exact, nats", "KL, bits", "information",
        "own z", "another's", "prior's", "recovery", "near, one z / across", "masks, one z", "valid", "tokens/s")  # fmt: skip


def rows(found: Sequence[ArmResult]) -> list[list[str]]:
    """The cells of each arm."""
    return [
        [
            one.arm,
            str(one.runs),
            f"{one.bits_per_byte:.4f}" + ("" if one.spread is None else f" ± {one.spread:.4f}"),
            "exact" if one.uncertainty == 0 else f"{one.uncertainty:.4f}" + ("" if one.converged else ", no"),
            _difference(one),
            "–" if one.excess_nats is None else f"{one.excess_nats:+.4f}",
            *_latent(one),
            *_groups(one.groups),
            f"{one.means['tokens_per_second']:,.0f}",
        ]
        for one in found
    ]  # fmt: skip


def _difference(one: ArmResult) -> str:
    found = one.difference
    return "–" if found is None else f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _latent(one: ArmResult) -> list[str]:
    if "ce_posterior" not in one.means:
        return ["–"] * 6
    entropies = [f"{one.means[f'ce_{source}']:.4f}" for source in ("posterior", "shuffled", "prior")]
    return [f"{one.means['kl_bits']:.3f}", f"{one.means['information_bits']:.3f}", *entropies,
            "–" if one.recovery is None else f"{one.recovery:.0%}"]  # fmt: skip


def _groups(found: dict[str, float] | None) -> list[str]:
    if found is None:
        return ["–"] * 3
    shared = [f"{found['near']:.2f} / {found['across']:.2f}", f"{found['masks']:.2f}"] if "near" in found else ["–"] * 2
    return [*shared, f"{found['valid']:.2f}"]


def table(study: Study, found: Sequence[ArmResult]) -> Table:
    """For a terminal."""
    made = Table(title=f"{escape(study.name)}: held-out texts, z's cross-entropies in nats per token", title_justify="left",
                 box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fmt: skip
    cells = rows(found)
    kept = [number for number in range(len(HEAD)) if any(row[number] != "–" for row in cells)]
    for number in kept:
        made.add_column(HEAD[number], justify="right" if number else "left")
    for row in cells:
        made.add_row(*(escape(row[number]) for number in kept))
    return made
