"""Every likelihood that the pages print, measured by one command, and the tables made from what it found.

    python docs/build_numbers.py --measure    measure what is not in docs/numbers yet, then write the tables (`make numbers`)
    python docs/build_numbers.py              write the tables from docs/numbers
    python docs/build_numbers.py --check      exit with 1 if a page is not what would be written

docs/numbers holds one JSON file for each model and measurement. A file names the hash of the weights: those of other weights
are measured again, all others are kept, so that a run that was stopped goes on. In a page a table stands between the lines
<!-- numbers: NAME --> and <!-- end of numbers -->. """

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import coverage
from latentlm import zoo
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.likelihood import Score, paired_difference
from latentlm.training.data import load_documents
from latentlm.training.recipes import load_recipe
from latentlm_evals.fingerprint import weights_hash
from latentlm_evals.measure import Precision, held_out_texts, measure

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "numbers"
PAGES = (ROOT / "docs" / "comparison.md", ROOT / "docs" / "latents.md")
BASELINE = "vanilla-tiny"
DATA = "demo-free"
DOCUMENTS, BYTES = 48, 2048
PRECISION = Precision(max_samples=256)
_SPAN = re.compile(r"(<!-- numbers: ([\w-]+) -->\n).*?(<!-- end of numbers -->)", re.DOTALL)


def models() -> list[str]:
    """The trained cards, the baseline first."""
    names = [card.name for card in zoo.list() if card.status == "trained"]
    return sorted(names, key=lambda name: (name != BASELINE, name))


# ------------------------------------------------------------------------------------------------------ measuring


def measure_all(console: Console) -> None:
    """What is not kept yet, model by model."""
    for kind, make in (("likelihood", _likelihood), ("coverage", _coverage)):
        for name in models():
            model = zoo.load(name)
            facts = {"weights": weights_hash(model), "machine": platform.machine(), "settings": _settings(kind)}
            if (kind == "coverage" and not model.has_latents) or _known(kind, name) == facts:
                continue
            found = {"facts": facts, **make(name, model, console)}
            KEPT.mkdir(exist_ok=True)
            _file(kind, name).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            console.print(f"Measured the {kind} of {name}.")


def _settings(kind: str) -> dict[str, Any]:
    if kind == "coverage":
        return {"texts": 20, "bytes": 64, "estimates": 50, "samples": 2048}
    return {"documents": DOCUMENTS, "bytes": BYTES, **asdict(PRECISION)}


def _likelihood(name: str, model: LatentDecoder, console: Console) -> dict[str, Any]:
    documents = load_documents(load_recipe(DATA, []).data).held_out
    texts = held_out_texts(documents, count=DOCUMENTS, limit=BYTES, seed=0)
    with console.status(f"Measuring the likelihood of {name}") as status:
        result = measure(
            model, name, texts, precision=PRECISION, seed=0,
            progress=lambda done, total: status.update(f"Measuring the likelihood of {name}: {done} of {total} windows"),
        )  # fmt: skip
    return json.loads(json.dumps(asdict(result), allow_nan=True))  # type: ignore[no-any-return]


def _coverage(name: str, model: LatentDecoder, console: Console) -> dict[str, Any]:
    asked = _settings("coverage")
    return coverage.run(
        name, texts=asked["texts"], size=asked["bytes"], estimates=asked["estimates"], samples=asked["samples"], console=console
    )


def _file(kind: str, name: str) -> Path:
    return KEPT / f"{kind}-{name}.json"


def _read(kind: str) -> dict[str, dict[str, Any]]:
    """What is kept, by model."""
    found = {name: _file(kind, name) for name in models()}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.is_file()}


def _known(kind: str, name: str) -> dict[str, Any] | None:
    """The facts of what is kept."""
    path = _file(kind, name)
    return json.loads(path.read_text(encoding="utf-8"))["facts"] if path.is_file() else None


# --------------------------------------------------------------------------------------------------------- tables


def likelihoods() -> list[list[str]]:
    """Bits per byte of every model, their verdicts, and the differences from the baseline."""
    kept = _read("likelihood")
    rows = [["model", "bits per byte, honest", "good to", "converged", "difference, paired", "ELBO",
             "posterior CE (no likelihood)", "KL, bits per token", "live units", "by"]]  # fmt: skip
    for name, row in kept.items():
        latent = row["has_latents"]
        rows.append([
            f"`{name}`", f"{row['bits_per_byte']['value']:.4f} ± {row['bits_per_byte']['standard_error']:.4f}",
            f"{row['uncertainty']:.4f}" if latent else "exact", ("yes" if row["converged"] else "**no**") if latent else "",
            "baseline" if name == BASELINE else _difference(row, kept.get(BASELINE)), f"{row['elbo_bits_per_byte']:.4f}",
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


def _score(kept: dict[str, Any]) -> Score:
    return Score(**{**kept, "warnings": tuple(kept["warnings"])})


def use() -> list[list[str]]:
    """Cross-entropies under other latents than the text's own."""
    sources = ("posterior", "shuffled", "prior", "constant")
    rows = [["model", "z from the text's own posterior", "another text's", "the prior", "constant",
             "mutual information, bits per site"]]  # fmt: skip
    for name, row in _read("likelihood").items():
        if row["cross_entropy_bits"]:
            information = row["mutual_information_bits"]
            rows.append([f"`{name}`", *(f"{row['cross_entropy_bits'][source]:.4f}" for source in sources),
                         "–" if information is None else f"{information:.4f}"])  # fmt: skip
    return rows


def intervals() -> list[list[str]]:
    """How often intervals hold the truth."""
    rows = [["model", "texts (iwae and smc agree)", "error of the truth, nats", "value ± 1.96 errors", "interval", "converged",
             "samples", "value - truth, nats"]]  # fmt: skip
    for name, row in _read("coverage").items():
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
    options = parser.parse_args()
    if options.measure:
        measure_all(Console())
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = written(text)
        if new != text:
            stale.append(page.name)
            if not options.check:
                page.write_text(new, encoding="utf-8")
    if options.check and stale:
        sys.exit(f"Out of date: {', '.join(stale)}. Run: python docs/build_numbers.py")


if __name__ == "__main__":
    main()
