"""Every likelihood that the pages and the cards print, measured by one command, and the tables made from what it found.

    python docs/build_numbers.py --measure    measure what is not in docs/numbers yet, then write the tables (`make numbers`)
    python docs/build_numbers.py              write the tables from docs/numbers
    python docs/build_numbers.py --check      exit with 1 if a page is not what would be written

docs/numbers holds one JSON file for each model and measurement; benchmarks/published.py says what is in it and when it is
measured again. On a machine with a GPU and many cores: --measure --device cuda --jobs 8. In a page a table or list stands
between the lines
<!-- numbers: NAME --> and <!-- end of numbers -->.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.kit_intervals import kept_shares, measure_shares
from benchmarks.pages import filled, markdown, put
from benchmarks.published import BASELINE, KINDS, PRECISION, kept, measure_missing, models
from latentlm.config import as_yaml
from latentlm.errors import UserError
from latentlm.likelihood import Estimate, Score, bits_per_byte, paired_difference
from latentlm_evals.study.results import USED

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(ROOT / page for page in ("README.md", "docs/comparison.md", "docs/latents.md", "docs/conformance.md"))
CARDS = ROOT / "zoo" / "latentlm_zoo" / "cards"
SEEDS = 0.03
"""Bits per byte by which two seeds of one vanilla decoder differ (docs/log.md)."""
Row = dict[str, Any]


# --------------------------------------------------------------------------------------------------------- tables


def likelihoods() -> str:
    """Bits per byte of every model, their verdicts, and the differences from the baseline."""
    head = ["model", "text seen, MB", "bits per byte, honest", "good to", "converged", "difference, paired", "ELBO",
            "posterior CE (no likelihood)", "KL, bits per token", "live units", "by"]  # fmt: skip
    return _table(head, kept("likelihood"), lambda name, row: [[*_honest(name, row), *_bound(row), row["method"]]])


def summary() -> str:
    """The first columns of `likelihoods`."""
    head = ["model", "text seen, MB", "bits per byte, honest", "good to", "converged", "difference, paired"]
    return _table(head, kept("likelihood"), lambda name, row: [_honest(name, row)])


def first() -> str:
    """The baseline and the two latent decoders that saw as much text: what a likelihood costs, and what z is to the decoder."""
    head = ["model", "bits per byte, honest", "good to", "from the plain decoder", "another text's z costs, bits per token"]
    found = {name: row for name, row in kept("likelihood").items() if name in (BASELINE, "free-tiny", "causal-tiny")}
    says = {BASELINE: "no latent", "free-tiny": "bits, uniform prior", "causal-tiny": "bits, learned prior"}

    def cells(name: str, row: Row) -> list[str]:
        label, _, value, good_to, _, difference = _honest(name, row)
        used = row.get("cross_entropy_bits") or {}
        cost = f"{used['shuffled'] - used['posterior']:+.2f}" if "shuffled" in used else ""
        return [f"{label}: {says[name]}", value, good_to, "" if name == BASELINE else difference, cost]

    return _table(head, found, lambda name, row: [cells(name, row)])


def _honest(name: str, row: Row) -> list[str]:
    value, latent = row["bits_per_byte"], row["has_latents"]
    found = _estimate(row)
    return [
        f"`{name}`", f"{_seen(name) / 1e6:.1f}", f"{value['value']:.4f} ± {value['standard_error']:.4f}",
        found.good_to if latent else "exact", _verdict_of(row) if latent else "",
        _difference(name, row),
    ]  # fmt: skip


def _verdict_of(row: Row) -> str:
    """Whether the likelihood is good to the tolerance, and how much of it is settled where that is too little."""
    found = _estimate(row)
    if found.converged(PRECISION.tolerance):
        return "yes"
    return "**no**" if math.isfinite(found.uncertainty) else f"**no**: {found.settled:.0%} settled"


def _bound(row: Row) -> list[str]:
    if not row["has_latents"]:
        return [f"{row['elbo_bits_per_byte']:.4f}", "", "", ""]
    live = "–" if row["live_units"] is None else f"{row['live_units']} of {row['units']}"
    return [*(f"{row[key]:.4f}" for key in ("elbo_bits_per_byte", "posterior_bits_per_byte", "kl_bits_per_token")), live]


def _seen(name: str) -> int:
    """Bytes that a model was trained on."""
    tokens: int = models()[name].training["tokens"]
    return tokens


def _difference(name: str, row: Row) -> str:
    found = _paired(name, row)
    return "baseline" if name == BASELINE else "–" if found is None else f"{found.value:+.4f} ± {found.standard_error:.4f}"


def _paired(name: str, row: Row) -> Estimate | None:
    """From the baseline, where both saw as much text: a file of the library more or less is no other training."""
    baseline = kept("likelihood")[BASELINE]
    if name == BASELINE or baseline is None or not math.isclose(_seen(name), _seen(BASELINE), rel_tol=1e-3):
        return None
    first, second = ([_score(each) for each in one["scores"]] for one in (row, baseline))
    return paired_difference(first, second, row["sizes"])


def _estimate(row: Row) -> Estimate:
    return bits_per_byte([_score(score) for score in row["scores"]], row["sizes"])


def _score(row: Row) -> Score:
    return Score(**{**row, "warnings": tuple(row["warnings"]), "islands": tuple(row["islands"])})


def use() -> str:
    """Cross-entropies under other latents than the text's own."""
    head = ["model", "z from the text's own posterior", "another text's", "the prior", "constant",
            "mutual information, bits per site"]  # fmt: skip
    latents = {name: row for name, row in kept("likelihood").items() if models()[name].model.by_latent}
    return _table(head, latents, lambda name, row: [_used(f"`{name}`{latent}", own) for latent, own in _latents(row)])


def _latents(row: Row) -> list[tuple[str, Row]]:
    """What is known of a model's one latent, or of each."""
    return [(f", {latent}", own) for latent, own in row["latents"].items()] or [("", row)]


def _used(name: str, own: Row) -> list[str]:
    entropies = [f"{own['cross_entropy_bits'][source]:.4f}" for source in ("posterior", "shuffled", "prior", "constant")]
    information = own["mutual_information_bits"]
    return [name, *entropies, "–" if information is None else f"{information:.4f}"]


def reading() -> str:
    """What the likelihoods and `use` say, by rule."""
    found = {name: row for name, row in kept("likelihood").items() if row is not None}
    lines = [_verdict(found)]
    for name, row in found.items():
        if row["has_latents"]:
            lines += [f"* `{name}`{latent} {_role(own['cross_entropy_bits'])}" for latent, own in _latents(row)]
    return "\n".join(lines)


def _verdict(found: dict[str, Row]) -> str:
    """Whether a latent model is better than the baseline."""
    paired = {name: _paired(name, row) for name, row in found.items()}
    alike = {name: difference for name, difference in paired.items() if difference is not None}
    if not alike:
        return f"* No latent model that saw as much text as `{BASELINE}` is measured beside it."
    better = [
        f"`{name}`" for name, difference in alike.items()
        if difference.value + 1.96 * difference.standard_error + _estimate(found[name]).uncertainty < -SEEDS
    ]  # fmt: skip
    winners = " and ".join(better) or "**none**"
    by = f"by more than two seeds of it differ ({SEEDS} bits per byte), errors included; one seed of each is no ranking"
    return f"* Of the latent models that saw as much text as `{BASELINE}` ({len(alike)}), {winners} did better {by}."


def _role(entropies: dict[str, float]) -> str:
    """What the decoder makes of a latent."""
    other, prior = (entropies[source] - entropies["posterior"] for source in ("shuffled", "prior"))
    if other >= USED:
        return f"**uses z**: another text's costs {other:.2f} bits per token."
    if prior >= USED:
        return f"wants z in one place whatever the text: another's is as good, the prior's costs {prior:.2f} bits per token."
    alike = f"its own, another text's and the prior's serve alike, within {USED} bits per token"
    return f"ignores z: {alike}. What sets it apart is not z."


def cost() -> str:
    """Sizes, operations, and the speed of the card's training."""
    head = ["model", "parameters", "training operations per token", "tokens/s, training", "on"]
    baseline = kept("likelihood")[BASELINE]

    def line(name: str, row: Row) -> list[list[str]]:
        operations, training = row["training_operations"], models()[name].training
        ratio = "" if baseline is None else f" ({operations / baseline['training_operations']:.2f}x)"
        speed = training["tokens"] / training["seconds"]
        return [[f"`{name}`", f"{row['parameters']:,}", f"{operations / 1e6:.2f}M{ratio}", f"{speed:,.0f}", training["device"]]]

    return _table(head, kept("likelihood"), line)


def intervals() -> str:
    """How often intervals hold the truth."""
    head = ["model", "texts (iwae and smc agree)", "error of the truth, nats", "value ± 1.96 errors", "settled",
            "interval of these", "converged", "by smc", "samples", "value - truth, nats"]  # fmt: skip
    return _table(head, kept("coverage"), lambda name, row: [[
        f"`{name}`", f"{row['texts']} ({row['agreeing']})", f"{row['truth_error']:.3f}", f"{row['alone']:.1%}",
        f"{row['settled']:.0%}", f"{row['interval']:.1%}", f"{row['converged']:.0%}", f"{row['by_filter']:.0%}",
        f"{row['samples']:.0f}", f"{row['bias']:+.3f}",
    ]])  # fmt: skip


def shares() -> str:
    """The bias of few samples by their defensive share."""
    head = ["model", "share from the prior", "bias, nats of a text", "bits per byte", "root mean square error, nats"]
    return _table(head, kept("shares"), lambda name, found: [[
        f"`{name}`", f"{row['share']:g}", f"{row['bias']:+.3f} ± {row['standard_error']:.3f}",
        f"{row['bias_bits_per_byte']:+.4f}", f"{row['error']:.3f}",
    ] for row in found["rows"]])  # fmt: skip


def refining() -> str:
    """What refining a document's vector gains."""
    head = ["model", "effective samples, as encoded", "refined", "nats gained, median", "least to most"]
    return _table(head, kept("refining"), lambda name, found: [[
        f"`{name}`", f"{row['before']:.1f} of {row['samples']}", f"{row['after']:.1f}", f"{row['gained']:+.2f}",
        f"{row['gained_least']:+.1f} to {row['gained_most']:+.1f}",
    ] for row in found["rows"]])  # fmt: skip


def kit_intervals() -> str:
    """How often intervals hold the truth on decoders that can be summed (benchmarks/kit_intervals.py)."""
    found = kept_shares()
    if found is None:
        return "Not measured by today's rule: `make numbers`."
    shares = {(row["decoder"], row["encoder"], row["method"], row["samples"]): row["share"] for row in found["rows"]}
    cells = list(dict.fromkeys(key[1:] for key in shares))
    decoders = list(dict.fromkeys(key[0] for key in shares))
    head = ["encoder, estimator, samples", *(f"`{decoder}`" for decoder in decoders)]
    said = {"own": "the decoder's own", "planted": "planted"}
    lines = [
        [f"{said[cell[0]]}, `{cell[1]}`, {cell[2]}", *(f"{shares[decoder, *cell]:.1%}" for decoder in decoders)]
        for cell in cells
    ]
    return markdown(head, lines)


def machine() -> str:
    """Where it was measured."""
    rows = [row for kind in KINDS for row in kept(kind).values() if row is not None]
    places = sorted({f"{row['machine']['device_name']}, torch {row['machine']['torch']}" for row in rows})
    return f"Measured by `make numbers` on {'; '.join(places)}; float32." if rows else "Not measured yet: `make numbers`."


def _table(head: list[str], found: dict[str, Row | None], lines: Callable[[str, Row], list[list[str]]]) -> str:
    """Markdown; a model that is not measured says so."""
    rows: list[list[str]] = []
    for name, row in found.items():
        rows += [[f"`{name}`", "not measured", *[""] * (len(head) - 2)]] if row is None else lines(name, row)
    return markdown(head, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (machine, first, summary, likelihoods, use, reading, cost, intervals, shares, refining, kit_intervals)
}


def cards() -> Iterator[tuple[Path, str]]:
    """The cards with their likelihoods, as of `likelihoods`; one that is not measured loses what it said of other weights."""
    for name, row in kept("likelihood").items():
        path, card = CARDS / name / "card.yaml", models()[name]
        others = {key: value for key, value in card.scores.items() if key != "likelihood"}
        scores = others if row is None else {**others, "likelihood": _likelihood(row)}
        yield path, as_yaml(card.model_copy(update={"scores": scores}), exclude_none=True)


def _uses(row: Row) -> Row:
    """Whether the decoder uses each latent, and what others cost it, in bits per token."""
    found: Row = {}
    for latent, own in _latents(row) if row["has_latents"] else []:
        entropies, prefix = own["cross_entropy_bits"], f"{latent.removeprefix(', ') or 'z'}_"
        costs = {source: entropies[source] - entropies["posterior"] for source in ("shuffled", "prior")}
        found[f"{prefix}used"] = costs["shuffled"] >= USED
        found[f"{prefix}of_another_text_costs_bits"] = costs["shuffled"]
        found[f"{prefix}of_the_prior_costs_bits"] = costs["prior"]
    return found


def _likelihood(row: Row) -> Row:
    """What a card says of it."""
    found = _estimate(row)
    return {
        "bits_per_byte": found.value,
        "standard_error": row["bits_per_byte"]["standard_error"],
        **({"good_to": found.uncertainty} if math.isfinite(found.uncertainty) else {}),
        "converged": found.converged(PRECISION.tolerance),
        "documents": len(row["sizes"]),
        "bytes": sum(row["sizes"]),
        **_uses(row),
        "method": f"{row['method']}; honest, held-out documents (make numbers)",
    }


def written(page: str) -> str:
    """The page with its tables made anew."""
    return filled(page, BLOCKS)


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
            if kept_shares() is None:
                measure_shares(Console())
            failures = measure_missing(options.only, kinds, device=options.device, jobs=options.jobs, console=Console())
        except UserError as error:
            sys.exit(f"error: {error}")
    pages = [(page, written(page.read_text(encoding="utf-8"))) for page in PAGES]
    stale = put([*pages, *cards()], check=options.check)
    if failures:
        sys.exit("\n\n".join(failures))
    if options.check and stale:
        sys.exit(f"Out of date: {', '.join(stale)}. Run: python docs/build_numbers.py")


if __name__ == "__main__":
    main()
