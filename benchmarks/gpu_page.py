"""docs/gpu.md: what was measured on a GPU, from the files in docs/gpu.

    training.json   python -m benchmarks.gpu_training --json docs/gpu/training.json
    kernels.json    python -m benchmarks.gpu_kernels --json docs/gpu/kernels.json
    51m/NAME.json   `latentlm train studies/51m/NAME.yaml --out RUN`, then `python studies/51m/measure.py RUN FILE`

Run: ``python -m benchmarks.gpu_page`` writes the page's tables; ``--check`` exits with 1 where they are not what would be
written.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu_kernels.__main__ import fastest, rate_of
from benchmarks.pages import filled, markdown
from benchmarks.timing import ROOT, Row
from latentlm.likelihood import Score, bits_per_byte, paired_difference
from latentlm.likelihood.summary import in_words

PAGE, KEPT = ROOT / "docs" / "gpu.md", ROOT / "docs" / "gpu"
TOLERANCE = 0.01
"""Bits per byte, as they were measured to."""
ARMS = {
    "vanilla": "vanilla",
    "full-half": "the paper's table, 1/2 bit",
    "full-additive-half": "the same, additive start, 1/2 bit",
    "additive-half": "one vector per bit, 1/2 bit",
    "additive-one": "one vector per bit, 1 bit",
}


def _kept(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    return found


def machine() -> str:
    """What was measured on."""
    kernels = _kept("kernels")["machine"]
    return f"{kernels['gpu']}, torch {kernels['torch']}, {kernels['date']}."


def training() -> str:
    """Speed of training at each size."""
    head = ["size", "decoder", "documents", "compiled", "tokens/s", "MFU", "time, ratio to vanilla", "counted", "GiB"]
    rows = []
    for row in _kept("training")["rows"]:
        counted = row["flops_per_token"] / _vanilla(row)["flops_per_token"]
        documents = "packed" if row["packed"] else "one a row"
        speeds = [f"{row['tokens_per_second']:,.0f}", f"{row['mfu']:.1%}", f"{row['ratio']:.2f}", f"{counted:.2f}"]
        rows.append([row["size"], row["contender"], documents, "yes" * row["compiled"], *speeds, f"{row['gib']:.0f}"])
    return markdown(head, rows, words=4)


def _vanilla(row: Row) -> Row:
    alike = ("size", "compiled", "packed")
    rows: list[Row] = _kept("training")["rows"]
    return next(one for one in rows if one["contender"] == "vanilla" and all(one[key] == row[key] for key in alike))


def kernels(suite: str) -> str:
    """One part of the kernels' benchmark: of variants the fastest."""
    rows = [row for row in fastest(_kept("kernels")["rows"]) if row["suite"] == suite and "milliseconds" in row]
    head = ["case", "contender", "ms", "TFLOP/s", "GiB", "error"]
    return markdown(head, [_kernel(row) for row in rows], words=2)


def _kernel(row: Row) -> list[str]:
    rate = rate_of(row)
    speed = f"{row['terabytes_per_second']:.2f} TB/s" if "terabytes_per_second" in row else f"{rate:.0f}" if rate else ""
    found = row.get("error_gradient", "equal" if row.get("equal") else "")
    error = found if isinstance(found, str) else f"{found:.1e}"
    return [row["case"], row["contender"], f"{row['milliseconds']:.2f}", speed, f"{row['extra_gib']:.1f}", error]


def study() -> str:
    """The runs at 51M parameters."""
    head = ["decoder", "parameters, M", "KL, bits per token", "information, bits per token", "live bits",
            "CE under own z", "ELBO", "honest", "good to", "converged", "honest less vanilla", "recovery",
            "CE under another text's z", "the prior's z"]  # fmt: skip
    vanilla = _kept("51m/vanilla")
    return markdown(head, [_arm(name, _kept(f"51m/{arm}"), vanilla) for arm, name in ARMS.items()])


def _arm(name: str, row: Row, vanilla: Row) -> list[str]:
    """Nats per token but where it says bits."""
    unit = math.log(2) * sum(row["sizes"]) / sum(score["tokens"] for score in row["scores"])  # of a bit per byte
    honest = f"{unit * row['bits_per_byte']['value']:.4f}"
    facts = [name, f"{row['parameters'] / 1e6:.1f}"]
    if not row["has_latents"]:
        return [*facts, "", "", "", "", "", honest, "exact", "", "", "", "", ""]
    scores, plain = ([Score(**score) for score in one["scores"]] for one in (row, vanilla))
    estimate, difference = bits_per_byte(scores, row["sizes"]), paired_difference(scores, plain, row["sizes"])
    own, kl = unit * row["posterior_bits_per_byte"], row["kl_bits_per_token"]
    gained = unit * vanilla["bits_per_byte"]["value"] - own
    entropies = {source: bits * math.log(2) for source, bits in row["cross_entropy_bits"].items()}
    return [
        *facts, f"{kl:.3f}", f"{row['mutual_information_bits']:.3f}", f"{row['live_units']} of {row['units']}", f"{own:.4f}",
        f"{unit * row['elbo_bits_per_byte']:.4f}", honest, in_words(unit * estimate.uncertainty),
        "yes" if estimate.converged(TOLERANCE) else "**no**",
        f"{unit * difference.value:+.4f} ± {unit * difference.standard_error:.4f}", f"{gained / (kl * math.log(2)):.0%}",
        f"{entropies['shuffled'] - entropies['posterior']:+.4f}", f"{entropies['prior'] - entropies['posterior']:+.4f}",
    ]  # fmt: skip


def curves() -> str:
    """KL and information while the runs go on."""
    head = ["decoder", *(f"step {held['step']:,}" for held in _kept("51m/full-half")["held_out"])]
    rows = []
    for arm, name in list(ARMS.items())[1:]:
        lines = _kept(f"51m/{arm}")["held_out"]
        rows.append([name, *(f"{line['kl_bits_per_token']:.3f} / {line['information_bits_per_site']:.3f}" for line in lines)])
    return markdown(head, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    **{made.__name__: made for made in (machine, training, study, curves)},
    **{suite: partial(kernels, suite) for suite in ("ceilings", "mapper", "attention", "head", "noise")},
}


def main() -> None:
    """The command line described above."""
    text = PAGE.read_text(encoding="utf-8")
    new = filled(text, BLOCKS)
    if sys.argv[1:] == ["--check"]:
        sys.exit("Out of date: gpu.md. Run: python -m benchmarks.gpu_page" if new != text else 0)
    if sys.argv[1:]:
        sys.exit(__doc__)
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
