"""The tables of docs/results.md and docs/alive.md, from the lines that the studies keep beside them.

    python docs/build_results.py            write the tables
    python docs/build_results.py --check    exit with 1 if a page is not what would be written

In a page a table stands between the lines <!-- numbers: NAME --> and <!-- end of numbers -->, NAME a study of studies/, with
-latents behind it for what z carries; diversity-samples is of studies/diversity.json, which `latentlm diversity` has written,
figure4 of studies/figure4.json, what `latentlm reproduce synthetic --json` printed, without the pictures.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import filled, markdown, put
from latentlm_evals.figures import svg
from latentlm_evals.study.plan import Study, read_study, runs_of
from latentlm_evals.study.results import ArmResult, finished, read_lines, tabulated
from latentlm_evals.study.table import LATENTS, SCORES, latents, scores

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "studies"
PICTURES = ROOT / "docs" / "img"
_HONEST, _OWN, _LINE = "#1d1f24", "#e8590c", "#adb5bd"
SAMPLES = STUDIES / "diversity.json"
FIGURE4 = STUDIES / "figure4.json"
PAGES = tuple(ROOT / "docs" / page for page in ("results.md", "alive.md", "diversity.md", "studies.md"))


@functools.cache
def results(name: str) -> tuple[Study, int, int, list[ArmResult], float]:
    """A study, its runs, how many of them are finished, what they say, and targets over bytes of the texts that are scored."""
    path = STUDIES / f"{name}.yaml"
    study = read_study(path)
    runs = runs_of(study, path.parent)
    lines = finished(runs, read_lines(path.with_suffix(".jsonl")))
    first = next(iter(lines.values()), None)
    scale = sum(first["targets"]) / sum(first["bytes"]) if first else 1.0
    return study, len(runs), len(lines), tabulated(study, lines), scale


def predicted(name: str) -> str:
    """How well each arm predicts; above the table how much of the study is done, and where."""
    study, runs, done, found, _ = results(name)
    left = "" if done == runs else f"; **{runs - done} of {runs} runs are not made yet**"
    if all(one.arm != study.first for one in found):
        left += f"; the baseline, `{study.first}`, is not there yet"
    alone = sum(one.runs == 1 for one in found)
    seeds = f"{alone} arms have one seed: no ranking" if alone else "intervals cover texts and seeds"
    about = study.description.rstrip(".")
    head = f"`latentlm study studies/{name}.yaml --table`: {about} ({seeds}{left})."
    return f"{head}\n\n{_table(SCORES, scores(found), found, study)}"


def carried(name: str) -> str:
    """What z carries in each arm that has one."""
    study, _, _, found, _ = results(name)
    latent = [one for one in found if "ce_posterior" in one.means]
    return _table(LATENTS, latents(latent), latent, study)


def _table(head: Sequence[str], cells: Sequence[Sequence[str]], found: Sequence[ArmResult], study: Study) -> str:
    """Without columns that say nothing; behind each arm's name what it is for."""
    kept = [number for number in range(1, len(head)) if any(row[number] != "–" for row in cells)]
    says = [f"`{one.arm}`" + (f": {study.arms[one.arm].says}" if study.arms[one.arm].says else "") for one in found]
    rows = [[said, *(row[number] for number in kept)] for said, row in zip(says, cells, strict=True)]
    return markdown([head[0], *(head[number] for number in kept)], rows)


def sampled() -> str:
    """Each arm's latent-only samples, means over seeds, and a plain decoder's at equal pass@1, means over pairs; by how much
    the numbers of different right answers differ, from the least to the most of the pairs."""
    found = json.loads(SAMPLES.read_text(encoding="utf-8"))
    measures = {"pass@1": ".2f", "pass@8": ".2f", "distinct": ".1f", "valid": ".1f", "coverage": ".2f"}

    def said(cells: Sequence[dict[str, Any]]) -> list[str]:
        means = {name: statistics.mean(cell["measures"][name]["value"] for cell in cells) for name in measures}
        return [f"{means[name]:{form}}" for name, form in measures.items()]

    rows = []
    for arm in dict.fromkeys(pair["model"].rpartition("-")[0] for pair in found["comparisons"]):
        fresh = [cell for cell in found["cells"] if cell["latents"] == "fresh" and not cell["temperature"]]
        own = [cell for cell in fresh if cell["model"].startswith(arm)]
        plain = [cell for cell in found["cells"] if (cell["matched_to"] or "").startswith(arm)]
        pairs = [pair for pair in found["comparisons"] if pair["model"].startswith(arm)]
        more = [pair["differences"]["valid"]["value"] for pair in pairs]
        heat = [pair["match"]["temperature"] for pair in pairs]
        rows.append([f"`{arm}`, greedy, z fresh ({len(own)})", *said(own), ""])
        matched = f"plain at equal pass@1, temperature {min(heat):.2f} to {max(heat):.2f} ({len(plain)})"
        rows.append([matched, *said(plain), f"{min(more):+.1f} to {max(more):+.1f}"])
    head = ["samples (runs or pairs)", "pass@1", "pass@8", "distinct", "right", "coverage", "latent-only minus plain, right"]
    return markdown(head, rows)


def synthetic() -> str:
    """What generation shows of each model of Figure 4, its likelihood, and the outcomes that were asked for. Values of further
    seeds, where they are kept, stand behind the first's."""
    rows = []
    for one in json.loads(FIGURE4.read_text(encoding="utf-8")):
        seeds = one["likelihoods"]
        own, drawn = one["generated"]["shared"].get("prior"), one["generated"]["independent"]["prior"]
        more = [seed["groups"]["shared"]["prior"] for seed in seeds[1:] if seed.get("groups", {}).get("shared")]
        shared = [own, *more] if own else []
        ranges = one["intervals"]["shared"].get("prior", {})
        near = "; ".join(f"{each['near_within']:.2f}{_range(ranges, 'near_within', number)} / {each['near_across']:.2f}"
                         for number, each in enumerate(shared))  # fmt: skip
        spread = f"{own['spread_within']:.1f} / {own['spread_across']:.1f}" if own else f"– / {drawn['spread_across']:.1f}"
        masks = "; ".join(f"{each['masks']:.2f}{_range(ranges, 'masks', number)}" for number, each in enumerate(shared))
        above = "; ".join(map(_above, seeds))
        met = sum(each["met"] for each in one["outcome"])
        said = f"{met} of {len(one['outcome'])} (seed {one['judged'][0]}, of {one['seeds']})" if one["outcome"] else ""
        said += "".join(_verdict(each) for each in one["outcome"] if not (each["met"] and each["decided"]))
        rows.append([one["label"], near or f"– / {drawn['near_across']:.2f}", spread, f"{masks or '–'} / {drawn['masks']:.2f}",
                     f"{drawn['valid']:.2f}", f"{drawn['noise']:.3f}", f"{seeds[0]['kl_bits']:.3f}", above, said])  # fmt: skip
    head = ["model", "near, one z / across", "spread, one z / across", "masks, one z / z drawn for each", "valid", "noise",
            "KL, bits a token", "above exact, nats a character, by seed", "outcomes met"]  # fmt: skip
    return markdown(head, rows)


def _above(seed: dict[str, Any]) -> str:
    """How far a seed's likelihood is above the source's, on how many texts."""
    texts = re.search(r"(\d+) texts", seed["method"])
    said = f"{seed['excess_nats']:+.4f} ± {seed['standard_error']:.4f}{'' if seed['converged'] else ' (no)'}"
    return f"{said}, {texts[1]} texts" if texts else said


def _range(ranges: dict[str, list[float]], measure: str, number: int) -> str:
    """An interval over groups, of the first seed alone: of the others no groups are kept."""
    return " [{:.2f}, {:.2f}]".format(*ranges[measure]) if number == 0 else ""


def _verdict(outcome: dict[str, Any]) -> str:
    """An outcome that is not met, or undecided: over the groups that were made it could have been said otherwise."""
    met = ("met" if outcome["met"] else "**not met**") + ("" if outcome["decided"] else ", undecided")
    values = "; ".join([f"{outcome['value']:.2f} [{outcome['low']:.2f}, {outcome['high']:.2f}]",
                        *(f"seed {other['seed']}: {other['value']:.2f}" for other in outcome.get("others", []))])  # fmt: skip
    return f"; {met}: {outcome['criterion']} ({values})"


def pictured(name: str) -> str:
    """An SVG: the honest likelihood of each arm, and the cross-entropy under its own z and another text's, in bits per byte."""
    from matplotlib.figure import Figure

    study, _, _, found, tokens_per_byte = results(name)
    scale = tokens_per_byte / math.log(2)
    figure = Figure(figsize=(8.2, 0.3 * len(found) + 1.4), layout="constrained")
    axes = figure.subplots()
    for row, one in enumerate(found):
        face = _HONEST if one.converged else "white"
        axes.errorbar(one.bits_per_byte, row, xerr=one.spread, fmt="o" if one.converged else "<", color=_HONEST,
                      markerfacecolor=face, capsize=3, zorder=3)  # fmt: skip
        if "ce_posterior" in one.means:
            own, other = (one.means[f"ce_{source}"] * scale for source in ("posterior", "shuffled"))
            axes.plot([own, other], [row, row], color=_LINE, zorder=1)
            axes.plot(own, row, "o", color=_OWN, zorder=2)
            axes.plot(other, row, "o", color="white", markeredgecolor=_OWN, zorder=2)
        if one.arm == study.first:
            axes.axvline(one.bits_per_byte, color=_LINE, linewidth=1, linestyle=":", zorder=0)
    axes.set_yticks(range(len(found)), [f"{one.arm} ({one.runs})" for one in found])
    axes.invert_yaxis()
    axes.set_xlabel("bits per byte (runs behind the name)")
    axes.set_title(study.name, fontsize=9, loc="left")
    legend = {
        "honest, converged": ("o", _HONEST, _HONEST), "honest, at most": ("<", "white", _HONEST),
        "under its own z": ("o", _OWN, _OWN), "under another text's z": ("o", "white", _OWN),
    }  # fmt: skip
    for label, (marker, face, edge) in legend.items():
        axes.plot([], [], marker, markerfacecolor=face, markeredgecolor=edge, label=label)
    figure.legend(loc="outside lower left", ncols=4, fontsize=8, frameon=False, handletextpad=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def picture_of(name: str) -> Path:
    """Where a study's picture is."""
    return PICTURES / f"results-{name}.svg"


def begun() -> list[str]:
    """The studies that have something finished."""
    return [path.stem for path in sorted(STUDIES.glob("*.jsonl")) if results(path.stem)[3]]


def blocks() -> dict[str, Callable[[], str]]:
    """A table for each study that has lines."""
    made: dict[str, Callable[[], str]] = {}
    for name in begun():
        made[name] = functools.partial(predicted, name)
        made[f"{name}-latents"] = functools.partial(carried, name)
    made["diversity-samples"], made["figure4"] = sampled, synthetic
    return made


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    check = parser.parse_args().check
    pages = [(page, filled(page.read_text(encoding="utf-8"), blocks())) for page in PAGES]
    stale = put([*pages, *((picture_of(name), pictured(name)) for name in begun())], check=check)
    if check and stale:
        sys.exit(f"Out of date: {', '.join(stale)}. Run: python docs/build_results.py")


if __name__ == "__main__":
    main()
