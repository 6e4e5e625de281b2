"""The Binary Mapper's exact gradient in blocks, against dense autograd and x-transformers' latent path: time and memory.

One step is: bit logits and sampled bits -> rows R of the table -> back, with gradients of the logits and of the table.

    ours            latentlm_free.mapper.lookup
    dense autograd  (Y + (G - stopgrad(G))) @ W over all codes, written plainly with PyTorch operations
    x-transformers  its BinaryMapper and Linear(2^H, D), if the package is installed (it samples its own bits)
    grouped, additive   our structured tables, with the same gradient

Each case runs in a process of its own on one thread. Time is the median of CPU seconds (so other load on the machine hardly
matters); memory is the growth of the peak resident set from just before the first step, the table's gradient included.
Cosine and largest error: the logits' gradient of the first 32 tokens against dense autograd in float64.

Run: ``python -m benchmarks.mapper [--quick] [--json FILE]`` (under 3 minutes), or ``--crossover`` for dense against blocks by
H, which sets ``DENSE_UP_TO`` in the mapper. Needs 4 GB of memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.outputs import writable
from benchmarks.timing import call
from latentlm.training.record.memory import peak_mib
from latentlm_free.mapper import codes, lookup
from latentlm_free.table import make_table

PATHS = ("ours", "dense autograd", "x-transformers", "grouped", "additive")
CHECKED_TOKENS = 32
Step = Callable[[], Tensor]  # one forward and backward; returns the gradient of the logits, (T, H)


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure every path at H=8 and H=16, D=256 and 512, T=2048 (quick: H=8 and 12, D=64, T=256); one dict for each case.

    Keys: path, bits, width, tokens, seconds (None where not installed), runs, extra_mib, cosine, error, and, relative to
    "ours" at the same size, time_ratio and memory_ratio.
    """
    tokens, sizes, widths = (256, (8, 12), (64,)) if quick else (2048, (8, 16), (256, 512))
    results = []
    for bits in sizes:
        for width in widths:
            cases = [_in_subprocess(path, tokens, bits, width) for path in PATHS]
            ours = cases[0]
            for case in cases:
                measured = case["seconds"] is not None
                case["time_ratio"] = case["seconds"] / ours["seconds"] if measured else None
                case["memory_ratio"] = case["extra_mib"] / max(ours["extra_mib"], 1e-3) if measured else None
            results += cases
    return results


def _in_subprocess(path: str, tokens: int, bits: int, width: int) -> dict[str, Any]:
    size = {"path": path, "bits": bits, "width": width, "tokens": tokens}
    if path == "x-transformers" and importlib.util.find_spec("x_transformers") is None:
        return size | {"seconds": None, "note": "not installed"}
    try:
        measured: dict[str, Any] = call("benchmarks.mapper", "--case", json.dumps(size))
    except RuntimeError as error:
        if path == "ours":
            raise
        return size | {"seconds": None, "note": str(error)}
    return size | measured


def _measure(size: dict[str, Any], *, budget: float = 5.0) -> dict[str, Any]:
    """Time and memory of one case, in this process."""
    torch.set_num_threads(1)
    _build(size["path"], 8, 12, 16)[0]()  # loads the libraries behind the first products, which are nobody's working set
    step, reference = _build(size["path"], size["tokens"], size["bits"], size["width"])
    before = peak_mib()
    gradient, first = _timed(step)
    extra = peak_mib() - before
    seconds = [first] if first > 1 else []  # a short first step is a warm-up, a long one hardly differs from the next
    while len(seconds) < 2 or (sum(seconds) < budget and len(seconds) < 15):
        seconds.append(_timed(step)[1])
    ours, exact = gradient[:CHECKED_TOKENS].double(), reference()
    return {
        "seconds": statistics.median(seconds),
        "runs": len(seconds),
        "extra_mib": extra,
        "cosine": F.cosine_similarity(ours.flatten(), exact.flatten(), dim=0).item(),
        "error": (ours - exact).abs().max().item(),
    }


def _timed(step: Step) -> tuple[Tensor, float]:
    """The result of a step, and the CPU seconds that it took."""
    start = time.process_time()
    result = step()
    return result, time.process_time() - start


def _build(path: str, tokens: int, bits: int, width: int) -> tuple[Step, Step]:
    """The step of one path, and the same gradient for the first tokens in float64."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(tokens, bits, generator=generator).requires_grad_()
    sampled = (torch.rand(tokens, bits, generator=generator) < logits.sigmoid()).long()
    upstream = torch.randn(tokens, width, generator=generator)
    table = make_table(path if path in ("grouped", "additive") else "full", bits, width)  # type: ignore[arg-type]
    table.init_weights(std=0.02, generator=generator)
    parameters = list(table.parameters())
    forward: Callable[[Tensor], Tensor]
    if path == "dense autograd":
        forward = lambda x: dense(x, sampled, parameters[0])  # noqa: E731
    elif path == "x-transformers":
        from x_transformers.free_transformer import BinaryMapper

        peer = BinaryMapper(bits).train()
        forward = lambda x: F.linear(peer(x, calc_aux_loss=False)[0], parameters[0].T)  # noqa: E731
        # Its Linear holds the transpose of our table; ours is passed as a view, so that no second one is counted.
    else:
        forward = lambda x: table(sampled, x)  # noqa: E731

    def step() -> Tensor:
        return torch.autograd.grad(forward(logits), [logits, *parameters], upstream)[0]

    def reference() -> Tensor:
        first = slice(0, CHECKED_TOKENS)
        precise = logits[first].detach().double().requires_grad_()
        every = (torch.arange(2**bits).unsqueeze(-1) >> torch.arange(bits)) & 1
        rows = table.double()(every, None).detach()  # (2^H, D), whatever the kind
        return torch.autograd.grad(dense(precise, sampled[first], rows), precise, upstream[first].double())[0]

    return step, reference


def dense(logits: Tensor, bits: Tensor, table: Tensor) -> Tensor:
    """The definition over all codes: (T, H), (T, H), (2^H, D) -> (T, D), through several (T, 2^H) matrices."""
    count = logits.shape[1]
    ones = ((torch.arange(2**count).unsqueeze(-1) >> torch.arange(count)) & 1).to(logits.dtype)  # (2^H, H)
    probability = (F.logsigmoid(logits) @ ones.T + F.logsigmoid(-logits) @ (1 - ones).T).exp()
    one_hot = F.one_hot(codes(bits), 2**count).to(logits.dtype)
    return (one_hot + (probability - probability.detach())) @ table


def crossover(*, tokens: int = 2048, width: int = 256) -> list[dict[str, Any]]:
    """Median milliseconds of dense and blocks for H = 4..12, in this process, on one thread."""
    torch.set_num_threads(1)
    results = []
    for bits in range(4, 13):
        row: dict[str, Any] = {"bits": bits}
        for method in ("dense", "blocks"):
            logits = torch.randn(tokens, bits).requires_grad_()
            sampled, table = (logits > 0).long(), torch.randn(2**bits, width).requires_grad_()
            seconds = []
            for _ in range(15):
                start = time.process_time()
                lookup(logits, sampled, table, method=method).sum().backward()  # type: ignore[arg-type]
                seconds.append(time.process_time() - start)
            row[method] = 1e3 * statistics.median(seconds)
        results.append(row)
    return results


def show(results: list[dict[str, Any]]) -> None:
    """Print the results of `run` as a table."""
    table = Table(title="Bit logits to R and back on one core in float32: CPU time and extra peak memory (ratios: to ours)")
    for name in ("H", "D", "path"):
        table.add_column(name, no_wrap=True)
    for name in ("CPU ms", "ratio", "MiB", "ratio", "cosine", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results:
        cells = [str(row["bits"]), str(row["width"]), row["path"]]
        if row["seconds"] is None:
            table.add_row(*cells, row["note"])
            continue
        cells += [f"{1e3 * row['seconds']:.2f}", f"{row['time_ratio']:.2f}x"]
        cells += [f"{row['extra_mib']:.0f}", f"{row['memory_ratio']:.1f}x"]
        table.add_row(*cells, f"{row['cosine']:.6f}", f"{row['error']:.1e}", end_section=row["path"] == PATHS[-1])
    Console(width=100).print(table)


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a test of the benchmark itself")
    parser.add_argument("--json", type=writable, help="also write the results to this file")
    parser.add_argument("--crossover", action="store_true", help="dense against blocks for H = 4..12")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(_measure(options.case)))
    elif options.crossover:
        for row in crossover():
            print(f"H={row['bits']:2d}  dense {row['dense']:7.2f} ms  blocks {row['blocks']:7.2f} ms")
    else:
        results = run(quick=options.quick)
        show(results)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
