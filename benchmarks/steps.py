"""One training step (forward, backward, AdamW): our decoder against transformers' Llama, the free step against the vanilla one.

    vanilla              our decoder, rows of one document
    vanilla, packed      the same tokens as four documents per row, with the document mask
    transformers Llama   LlamaForCausalLM, same shape and parameter count (logits checked to be equal on equal weights), sdpa
    free H=8, H=16       the Free Transformer, full table
    free H=16, additive  one vector per bit instead of the table

All float32. Beside the ratios stands what theory asks of the free step: one block in L more, and, in blocks, the one matrix
product of the mapper's exact gradient (tokens x D by D x 2^H). That product is timed alone, as the mapper takes it (from oneDNN
where PyTorch has it) and, for those who would write ``@``, as torch.matmul does it; theory counts the former, the faster.

Run: ``python -m benchmarks.steps [--quick]`` (about 2 minutes); prints rows of benchmarks/timing.py as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.contenders import (
    FULL,
    QUICK,
    Size,
    causal_batch,
    check_same_work,
    free,
    llama,
    packed_batch,
    parameters,
    vanilla,
)
from benchmarks.timing import Row, call, interleaved, summary
from latentlm.interface import Batch, LatentDecoder, Noise
from latentlm.training.record.memory import peak_mib
from latentlm_free.mapper import CPU_SIZES, _scores

Step = Callable[[], object]


def names(size: Size) -> list[str]:
    """The contenders, the reference first."""
    frees = [f"free H={bits}" for bits in size.bits]
    return ["vanilla", "vanilla, packed", "transformers Llama", *frees, f"{frees[-1]}, additive table"]


def make(name: str, size: Size) -> tuple[nn.Module, Step]:
    """The model and the training step of a contender."""
    if name == "transformers Llama":
        theirs, batch = llama(size), causal_batch(size)
        targets = batch.targets
        return theirs, _step(theirs, lambda: _llama_loss(theirs, batch.inputs, targets))
    batch = packed_batch(size) if name.endswith("packed") else causal_batch(size)
    if name.startswith("vanilla"):
        model = vanilla(size)
    else:
        bits = int(name.split("=")[1].split(",")[0])
        model = free(size, bits, table="additive" if name.endswith("additive table") else "full")
    return model, _step(model, _loss(model, batch))


def _loss(model: LatentDecoder, batch: Batch) -> Callable[[], Tensor]:
    noise = Noise.keyed(0, range(len(batch.inputs)))
    return lambda: model.loss(batch, step=0, noise=noise).total


def _llama_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the same targets; transformers' own loss would shift them once more."""
    logits = model(input_ids=inputs, use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, fused=True)  # as `latentlm train` has it

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def table_product(size: Size, bits: int, product: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """<g, W_d> for all tokens and codes, in the mapper's blocks."""
    tokens, codes = CPU_SIZES
    gradient, table = torch.randn(size.rows * size.tokens, size.width), torch.randn(2**bits, size.width)

    def step() -> None:
        for g in gradient.split(tokens):
            for rows in table.split(codes):
                product(g, rows)

    return step


def run(*, quick: bool = False) -> list[Row]:
    """Rows of all contenders, with their memory and, for the free ones, the ratio that theory gives."""
    size = QUICK if quick else FULL
    check_same_work(size)
    made = {name: make(name, size) for name in names(size)}
    steps: dict[str, Step] = {name: step for name, (_, step) in made.items()}
    product = f"the table's product alone, H={size.bits[-1]}"
    steps[f"{product}, torch.matmul"] = table_product(size, size.bits[-1], lambda g, rows: g @ rows.T)
    steps[product] = table_product(size, size.bits[-1], _scores)
    rows = summary(interleaved(steps, rounds=size.rounds), reference="vanilla", suite="steps", case=str(size))
    for row in rows:
        name = row["contender"]
        if name in made:
            row["parameters"] = parameters(made[name][0])
            row["tokens_per_second"] = size.rows * size.tokens / row["seconds"]
            if not quick or name == "vanilla":
                row["extra_mib"] = call("benchmarks.steps", "--memory", name, *(["--quick"] if quick else []))
        if name.startswith("free"):
            row["theory"] = 1 + 1 / size.blocks
            if name == f"free H={size.bits[-1]}":
                row |= {"theory": row["theory"] + rows[-1]["ratio"], "with_product": True}
    return rows


def memory(name: str, size: Size) -> float:
    """MiB by which two steps raise this process's peak: activations, gradients, optimiser."""
    torch.set_num_threads(1)
    make(name, QUICK)[1]()  # loads the libraries behind the first step, which are nobody's working set
    _, step = make(name, size) if size != QUICK else make(name, QUICK)
    before = peak_mib()
    step()
    step()
    return peak_mib() - before


def main() -> None:
    """The command line described above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a test of the benchmark itself")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    print(json.dumps(memory(options.memory, size) if options.memory else run(quick=options.quick)))


if __name__ == "__main__":
    main()
