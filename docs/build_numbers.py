"""Every likelihood that the pages print, measured by one command, and the tables made from what it found.

    python docs/build_numbers.py --measure    measure what is not in docs/numbers yet, then write the tables (`make numbers`)
    python docs/build_numbers.py              write the tables from docs/numbers
    python docs/build_numbers.py --check      exit with 1 if a page is not what would be written

docs/numbers holds one JSON file for each model and measurement; benchmarks/published.py says what is in it and
when it is measured again. On a machine with a GPU and many cores: --measure --device cuda --jobs 8. In a page a table stands
between the lines
<!-- numbers: NAME --> and <!-- end of numbers -->. """

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.published import BASELINE, KINDS, kept, measure_missing
from latentlm.errors import UserError
from latentlm.likelihood import Score, paired_difference

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "docs" / "comparison.md", ROOT / "docs" / "latents.md")
_SPAN = re.compile(r"(<!-- numbers: ([\w-]+) -->\n).*?(<!-- end of numbers -->)", re.DOTALL)


# --------------------------------------------------------------------------------------------------------- tables


def likelihoods() -> list[list[str]]:
    """Bits per byte of every model, their verdicts, and the differences from the baseline."""
    found = kept("likelihood")
    rows = [["model", "bits per byte, honest", "good to", "converged", "difference, paired", "ELBO",
             "posterior CE (no likelihood)", "KL, bits per token", "live units", "by"]]  # fmt: skip
    for name, row in found.items():
        latent = row["has_latents"]
        rows.append([
            f"`{name}`", f"{row['bits_per_byte']['value']:.4f} ± {row['bits_per_byte']['standard_error']:.4f}",
            f"{row['uncertainty']:.4f}" if latent else "exact", ("yes" if row["converged"] else "**no**") if latent else "",
            "baseline" if name == BASELINE else _difference(row, found.get(BASELINE)), f"{row['elbo_bits_per_byte']:.4f}",
            f"{row['posterior_bits_per_byte']:.4f}" if latent else "", f"{row['kl_bits_per_token']:.4f}" if latent else "",
            f"{row['live_units']} of {row['units']}" if latent and row["live_units"] is not None else "", row["method"],
        ])  # fmt: skip
    return rows


def _difference(row: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    if baseline is None:
        return "–"
    first, second = ([_score(each) for each in one["scores"]] for one in (row, baseline))
    found = paired_difference(first, second, row["sizes"])
    return f"{found.value:+.4f} ± {found.standard_error:.4f}"


def _score(row: dict[str, Any]) -> Score:
    return Score(**{**row, "warnings": tuple(row["warnings"])})


def use() -> list[list[str]]:
    """Cross-entropies under other latents than the text's own."""
    sources = ("posterior", "shuffled", "prior", "constant")
    rows = [["model", "z from the text's own posterior", "another text's", "the prior", "constant",
             "mutual information, bits per site"]]  # fmt: skip
    for name, row in kept("likelihood").items():
        if row["cross_entropy_bits"]:
            information = row["mutual_information_bits"]
            rows.append([f"`{name}`", *(f"{row['cross_entropy_bits'][source]:.4f}" for source in sources),
                         "–" if information is None else f"{information:.4f}"])  # fmt: skip
    return rows


def intervals() -> list[list[str]]:
    """How often intervals hold the truth."""
    rows = [["model", "texts (iwae and smc agree)", "error of the truth, nats", "value ± 1.96 errors", "interval", "converged",
             "samples", "value - truth, nats"]]  # fmt: skip
    for name, row in kept("coverage").items():
        rows.append([
            f"`{name}`", f"{row['texts']} ({row['agreeing']})", f"{row['truth_error']:.3f}", f"{row['alone']:.1%}",
            f"{row['interval']:.1%}", f"{row['converged']:.0%}", f"{row['samples']:.0f}", f"{row['bias']:+.3f}",
        ])  # fmt: skip
    return rows


TABLES: dict[str, Callable[[], list[list[str]]]] = {"likelihoods": likelihoods, "use": use, "intervals": intervals}


def written(page: str) -> str:
    """The page with its tables made anew. Raises UserError for a table that nobody makes."""

    def table(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise UserError(f'No table is named "{found[2]}"; there are {", ".join(TABLES)}.')
        head, *rows = TABLES[found[2]]()
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        return found[1] + "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n" + found[3]

    return _SPAN.sub(table, page)


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--measure", action="store_true", help="measure what is missing first")
    task.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    parser.add_argument("--only", nargs="+", default=[], metavar="MODEL", help="with --measure: these models alone")
    parser.add_argument("--kind", choices=list(KINDS), help="with --measure: this kind alone")
    parser.add_argument("--device", default="cpu", help="with --measure: cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="with --measure: processes, one measurement each")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error("--jobs: there is at least one process")
    failures = []
    if options.measure:
        kinds = [options.kind] if options.kind else []
        try:
            failures = measure_missing(options.only, kinds, device=options.device, jobs=options.jobs, console=Console())
        except UserError as error:
            sys.exit(f"error: {error}")
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = written(text)
        if new != text:
            stale.append(page.name)
            if not options.check:
                page.write_text(new, encoding="utf-8")
    if failures:
        sys.exit("\n\n".join(failures))
    if options.check and stale:
        sys.exit(f"Out of date: {', '.join(stale)}. Run: python docs/build_numbers.py")


if __name__ == "__main__":
    main()
