"""A study in two tables: a row for each arm."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD

from latentlm.cli.tables import ReadableTable
from latentlm.cli.text import escaped
from latentlm.likelihood.summary import in_words
from latentlm_evals.study.plan import Study
from latentlm_evals.study.results import ArmResult

SCORES = ("arm", "seeds", "parameters", "honest, bits/byte", "good to", "from the baseline", "above exact, nats a target",
          "on", "tokens/s", "memory, MiB")  # fmt: skip
LATENTS = ("arm", "uses z", "KL, bits", "information", "live", "persistence", "own z", "another's", "prior's", "constant",
           "recovery", "near, one z / across", "masks, one z", "valid")  # fmt: skip


def scores(found: Sequence[ArmResult]) -> list[list[str]]:
    """The cells of each arm: how well it predicts, and what it took."""
    return [
        [
            one.arm,
            str(one.runs),
            f"{one.parameters:,}",
            f"{one.bits_per_byte:.4f}" + ("" if one.spread is None else f" ± {one.spread:.4f}"),
            "exact" if one.uncertainty == 0 else in_words(one.uncertainty) + ("" if one.converged else ", no"),
            _difference(one),
            "–" if one.excess_nats is None else f"{one.excess_nats:+.4f}",
            one.machine or "–",
            *_cost(one),
        ]
        for one in found
    ]


def latents(found: Sequence[ArmResult]) -> list[list[str]]:
    """The cells of each arm: what z carries, and what texts under one z share."""
    return [[one.arm, *_latent(one), *_groups(one.groups)] for one in found]


def _cost(one: ArmResult) -> list[str]:
    """Of training; seeds on unlike machines have no mean."""
    if " and " in one.machine:
        return ["–"] * 2
    memory = f"{one.means['peak_memory_mib']:,.0f}" if "peak_memory_mib" in one.means else "–"
    return [f"{one.means['tokens_per_second']:,.0f}", memory]


def _difference(one: ArmResult) -> str:
    found = one.difference
    return "–" if found is None else f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _latent(one: ArmResult) -> list[str]:
    if "ce_posterior" not in one.means:
        return ["–"] * 10
    entropies = [f"{one.means[f'ce_{source}']:.4f}" for source in ("posterior", "shuffled", "prior", "constant")]
    return [f"{one.awake} of {one.runs}", f"{one.means['kl_bits']:.3f}", f"{one.means['information_bits']:.3f}",
            f"{one.means['live_bits']:.1f}", f"{one.means['persistence']:.2f}", *entropies,
            "–" if one.recovery is None else f"{one.recovery:.0%}"]  # fmt: skip


def _groups(found: dict[str, float] | None) -> list[str]:
    if found is None:
        return ["–"] * 3
    shared = [f"{found['near']:.2f} / {found['across']:.2f}", f"{found['masks']:.2f}"] if "near" in found else ["–"] * 2
    return [*shared, f"{found['valid']:.2f}"]


def tables(study: Study, found: Sequence[ArmResult]) -> list[ReadableTable]:
    """For a terminal; the second only where some arm has a latent."""
    title = f"{escaped(study.name)}: held-out texts"
    made = [_table(title, SCORES, scores(found))]
    if any("ce_posterior" in one.means for one in found):
        made.append(_table("What z carries; cross-entropies in nats per token", LATENTS, latents(found)))
    return made


def notes(study: Study, waiting: Sequence[str], found: Sequence[ArmResult]) -> list[str]:
    """What a reader of the tables has to know: runs without a line (their names), arms of one seed."""
    said = []
    if waiting:
        of = "run has" if len(waiting) == 1 else "runs have"
        said.append(f"{len(waiting)} {of} no result yet: {', '.join(waiting)}.")
    if all(one.arm != study.first for one in found):
        said.append(f"The baseline, {study.first}, is not there yet: nothing is compared with it.")
    if alone := [one.arm for one in found if one.runs == 1]:
        said.append(f"One seed, so no ranking: {', '.join(alone)}.")
    return said


def _table(title: str, head: Sequence[str], cells: Sequence[Sequence[str]]) -> ReadableTable:
    """Without columns that say nothing."""
    made = ReadableTable(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    kept = [number for number in range(len(head)) if any(row[number] != "–" for row in cells)]
    for number in kept:
        made.add_column(head[number], justify="right" if number else "left", no_wrap=bool(number))
    for row in cells:
        made.add_row(*(escaped(row[number]) for number in kept))
    return made
