"""The results as tables, for the terminal and for docs/benchmarks.md, and what they say about the goals.

`results` is what ``python -m benchmarks --json FILE`` writes: {machine, command, mapper, steps, ceiling, generation, scoring,
large}, the last six lists of rows.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.table
import torch

from benchmarks.timing import Row

Results = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A title, what is to be known before reading, column names, and cells."""

    title: str
    note: str
    columns: list[str]
    cells: list[list[str]]

    def rich(self) -> rich.table.Table:
        """For the terminal."""
        table = rich.table.Table(title=self.title)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
        for row in self.cells:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For the page."""
        lines = [self.columns, ["---" if number < 2 else "---:" for number in range(len(self.columns))], *self.cells]
        rows = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"## {self.title}\n\n{self.note}\n\n{rows}\n"


def tables(results: Results) -> list[Table]:
    """One table for each suite that has results."""
    makers: dict[str, Callable[[list[Row]], Table]] = {
        "mapper": _mapper,
        "steps": _steps,
        "ceiling": _ceiling,
        "generation": _generation,
        "scoring": _scoring,
        "large": _large,
    }
    return [make(results[suite]) for suite, make in makers.items() if results.get(suite)]


def _ratio(row: Row) -> str:
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"


def _mapper(rows: list[Row]) -> Table:
    cells = []
    for row in rows:
        name = [f"H={row['bits']}, D={row['width']}", row["path"]]
        if row["seconds"] is None:
            cells.append([*name, row["note"], "", "", "", ""])
            continue
        cells.append(
            [
                *name,
                f"{1e3 * row['seconds']:.2f}",
                f"{row['time_ratio']:.2f}",
                f"{row['extra_mib']:.0f}",
                f"{row['memory_ratio']:.1f}",
                f"{row['error']:.0e}",
            ]
        )
    return Table(
        "Binary Mapper",
        f"Bit logits to R and back for {rows[0]['tokens']} tokens, the table's gradient included, each in its own process.\n"
        "Ratios are to `ours`; memory is the growth of the peak; the error is that of the logits' gradient against dense\n"
        "autograd in float64. `grouped` and `additive` are other, smaller tables, with the same exact gradient.",
        ["size", "path", "CPU ms", "time ratio", "MiB", "memory ratio", "error"],
        cells,
    )


def _steps(rows: list[Row]) -> Table:
    cells = []
    for row in rows:
        rate = f"{row['tokens_per_second']:.0f}" if "tokens_per_second" in row else ""
        memory = f"{row['extra_mib']:.0f}" if "extra_mib" in row else ""
        theory = f"{row['theory']:.2f}" if "theory" in row else ""
        cells.append([row["contender"], f"{row['seconds']:.3f}", rate, _ratio(row), theory, memory])
    return Table(
        "Training step",
        f"Forward, backward and AdamW; {rows[0]['case']}, float32, median of {rows[0]['runs']} interleaved rounds.\n"
        "The ratio is the step's CPU time over the vanilla step's of the same round (median, quartiles). Theory: one block in\n"
        "L more; at the largest H also the mapper's one matrix product, timed alone as the mapper takes it (torch.matmul's is\n"
        "given too). Memory: growth of the peak over two steps, in a process of its own (activations, gradients, optimiser).",
        ["contender", "CPU s", "tokens/s", "ratio to vanilla", "theory", "MiB"],
        cells,
    )


_OPERATORS = {
    "aten::mm": "products, MKL",
    "mkldnn::_linear_pointwise": "products, oneDNN",
    "aten::bmm": "products of batches",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "attention, back",
}
"""Names that say more than PyTorch's."""


def _ceiling(rows: list[Row]) -> Table:
    peak = rows[0]["peak"]
    cells = []
    for row in rows:
        speed = row["gigaflop"] / row["seconds"]
        cells.append([row["contender"], "all of it", "", "100%", f"{speed:.1f}", f"{speed / peak:.0%}"])
        for part in row["operators"]:
            known = part["gigaflops"]
            said = ["", ""] if known is None else [f"{known:.1f}", f"{known / peak:.0%}"]
            name = _OPERATORS.get(part["operator"], part["operator"].removeprefix("aten::"))
            cells.append(["", name, f"{part['calls']:.0f}", f"{part['share']:.1%}", *said])
    return Table(
        "The processor's limit",
        f"The steps of the table above, {rows[0]['case']}, float32, median of {rows[0]['runs']} interleaved rounds, beside\n"
        "one large matrix product, whose faster path is the peak. Operations of a step are counted as `latentlm zoo show`\n"
        "does; an operator's calls, and its share of a step's time, are those of PyTorch's profiler.",
        ["contender", "operator", "calls", "time", "GFLOP/s", "of the peak"],
        cells,
    )


def _generation(rows: list[Row]) -> Table:
    cells = []
    for row in rows:
        rate, extra = f"{row['tokens_per_second']:.0f}", f"{row['extra_ms_per_step']:+.2f}"
        cells.append([row["case"], row["contender"], rate, _ratio(row), extra])
    return Table(
        "Generation",
        f"Cached generation at a fixed length, float32, median of {rows[-1]['runs']} or more interleaved rounds; tokens per\n"
        "CPU second of `generate`, ours and transformers'. The ratio is the time over vanilla's of the same round (median,\n"
        "quartiles): above 1 is slower. The last column is the difference in milliseconds per step. What a latent adds to a\n"
        "step is its draw, its row of the table and one more norm, some thirty small operations; the encoder's pass over the\n"
        "prompt is counted too. `compiled`: each step is one graph (`compile=True`), made before the clock runs.",
        ["case", "contender", "tokens/s", "time ratio to vanilla", "ms per step"],
        cells,
    )


def _scoring(rows: list[Row]) -> Table:
    cells = []
    for row in rows:
        theory = f"{row['theory']:.2f}" if "theory" in row else ""
        cells.append([row["case"], row["contender"], f"{row['seconds']:.3f}", _ratio(row), theory])
    return Table(
        "Scoring",
        "lm-eval's requests through its own `hf` adapter and through ours, on equal weights; float32, batches of 8, median\n"
        f"of {rows[0]['runs']} interleaved rounds. The ratio is the time over vanilla's of the same round (with quartiles).\n"
        "Theory counts operations: trunk, encoder and prior once, the blocks above and the head K times; what options of one\n"
        "question have in common once. K=1 takes a second pass for `is_greedy`: its only sample has seen the targets.",
        ["case", "contender", "CPU s", "ratio to vanilla", "theory"],
        cells,
    )


def _large(rows: list[Row]) -> Table:
    cells = []
    for row in rows:
        if "note" in row:
            cells.append([row["case"], row["note"], "", "", ""])
            continue
        count, load, forward = f"{row['parameters']:,}", f"{row['load_seconds']:.0f}", f"{row['forward_seconds']:.1f}"
        cells.append([row["case"], count, load, forward, f"{row['peak_gib']:.1f}"])
    return Table(
        "Large models",
        "`zoo.load` with random weights in bfloat16, then one forward pass, encoder included, on a few tokens.\n"
        "Wall time, all threads; from a run with `make bench BENCH_OPTIONS=--large` on the same day and machine.",
        ["model", "parameters", "load s", "forward s", "peak GiB"],
        cells,
    )


# --------------------------------------------------------------------------------------------------------------- goals


def goals(results: Results) -> list[tuple[str, str, bool]]:
    """What was aimed at, what was measured, whether it is met."""
    return [
        *_mapper_goals(results.get("mapper", [])),
        *_step_goals(results.get("steps", [])),
        *_generation_goals(results),
        *_scoring_goals(results.get("scoring", [])),
    ]


def _mapper_goals(rows: list[Row]) -> Iterable[tuple[str, str, bool]]:
    most = max((row["bits"] for row in rows), default=0)
    dense = [row for row in rows if row["bits"] == most and row["path"] in ("dense autograd", "x-transformers")]
    if dense := [row for row in dense if row["seconds"] is not None]:
        time, memory = min(row["time_ratio"] for row in dense), min(row["memory_ratio"] for row in dense)
        aim = f"exact gradient at H={most}: 3 times faster and 10 times smaller than every dense one"
        yield aim, f"at least {time:.1f} times faster, {memory:.1f} times smaller", time >= 3 and memory >= 10


def _step_goals(rows: list[Row]) -> Iterable[tuple[str, str, bool]]:
    for row in rows:
        if "theory" not in row:
            continue
        name = row["contender"]
        if name.endswith("additive table"):
            aim = f"{name}: a structured table at no measurable cost (one block in L more, and no more than 3%)"
        elif row.get("with_product"):
            aim = f"{name}: within one block in L plus the table's one matrix product"
        else:
            aim = f"{name}: within one block in L, and no more than 3%"
        slack = 0.0 if row.get("with_product") else 0.03
        said = f"{_ratio(row)} of the vanilla step, theory {row['theory']:.2f}"
        yield aim, said, row["ratio"] <= row["theory"] + slack


def _generation_goals(results: Results) -> Iterable[tuple[str, str, bool]]:
    cases: dict[str, dict[str, Row]] = {}
    for row in results.get("generation", []):
        cases.setdefault(row["case"], {})[row["contender"]] = row
    for case, rows in cases.items():
        for name, row in rows.items():
            plain = rows[name.replace(name.partition(",")[0], "vanilla")] if name.startswith("free") else None
            if plain is not None:
                ratio = row["ratio"] / plain["ratio"]
                yield f"{name} generates at the speed of {plain['contender']} within 3% ({case})", f"{ratio:.2f}", ratio <= 1.03
        if "vanilla, compiled" in rows:
            ratio, least = rows["transformers Llama"]["ratio"] / rows["vanilla, compiled"]["ratio"], _least(case)
            yield f"vanilla, compiled, {least} times as fast as transformers ({case})", f"{ratio:.2f} times", ratio >= least


def _least(case: str) -> float:
    """How many times as fast a small model should be, whose time is mostly overhead, and a large one, whose is memory's."""
    return 1.5 if case.startswith("width 256") else 1.0


def _scoring_goals(rows: list[Row]) -> Iterable[tuple[str, str, bool]]:
    for row in rows:
        if row["contender"] == "hf":
            aim = f"vanilla scores at least as fast as lm-eval's hf ({row['case']})"
            yield aim, f"hf takes {_ratio(row)} of vanilla's time", row["ratio"] >= 1
        elif row["contender"] == "free K=16":
            aim = f"16 samples at most 15% above the operations that they take ({row['case']})"
            yield aim, f"{_ratio(row)} of vanilla's time, theory {row['theory']:.2f}", row["ratio"] <= 1.15 * row["theory"]


# ---------------------------------------------------------------------------------------------------------------- page


def machine() -> dict[str, str]:
    """What the numbers were taken on."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return {
        "date": datetime.date.today().isoformat(),
        "processor": f"{name}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def page(results: Results) -> str:
    """docs/benchmarks.md."""
    facts = results["machine"]
    head = [
        "# Benchmarks",
        "",
        f"Measured on {facts['date']} with `{results['command']}`: {facts['processor']}, torch {facts['torch']}, "
        f"Python {facts['python']}.",
        "Times are CPU seconds of one thread; contenders take turns, so that what else the machine does meets them alike.",
        "The command replaces this page. Ratios carry over to other machines far better than seconds.",
        "",
        "## Goals",
        "",
        "| goal | measured | met |",
        "| --- | --- | --- |",
        *(f"| {aim} | {said} | {'yes' if met else '**no**'} |" for aim, said, met in goals(results)),
        "",
    ]
    return "\n".join(head) + "\n" + "\n".join(table.markdown() for table in tables(results))
