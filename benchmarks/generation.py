"""Cached generation at a fixed length: tokens per second of our `generate` and of transformers' on a Llama of the same shape.

    vanilla              our decoder
    transformers Llama   LlamaForCausalLM.generate, same shape, sdpa, its own cache
    free H=16            the Free Transformer on the same backbone: the encoder on the prompt, then a latent from the prior
                         for every token
    ..., compiled        the same two with `compile=True`: each step one graph, made before the clock runs

Batches of 1, 8 and 64 prompts of one length, temperature 0 and 1, 128 new tokens, float32; and one case of a model that is a
dozen times larger.

Run: ``python -m benchmarks.generation [--quick]`` (about 15 minutes, of which graphs take seven); prints rows of
benchmarks/timing.py as JSON.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contenders import FULL, LARGER, QUICK, Size, free, llama, vanilla
from benchmarks.timing import Row, command, interleaved, summary
from latentlm.generation import generate
from latentlm.interface import LatentDecoder

Job = Callable[[], object]


def run(*, quick: bool = False) -> list[Row]:
    """Rows of all contenders for every batch size and temperature."""
    plans = [(QUICK if quick else FULL, (1, 8, 64), (0.0, 1.0)), *([] if quick else [(LARGER, (1,), (1.0,))])]
    rows: list[Row] = []
    for size, batches, temperatures in plans:
        models = _models(size, compiled=not quick)
        for batch, temperature in itertools.product(batches, temperatures):
            jobs = {name: _job(name, model, size, batch, temperature) for name, model in models.items()}
            case = f"width {size.width}, batch {batch}, temperature {temperature:g}"
            facts = {"suite": "generation", "case": case, "batch": batch, "temperature": temperature}
            made = summary(interleaved(jobs, rounds=size.rounds), reference="vanilla", **facts)
            for row in made:
                row["tokens_per_second"] = batch * size.new / row["seconds"]
                row["extra_ms_per_step"] = 1e3 * made[0]["seconds"] * (row["ratio"] - 1) / size.new
            rows += made
    return rows


def _models(size: Size, *, compiled: bool) -> dict[str, Any]:
    """The contenders, the reference first. A graph takes half a minute to make, whatever its size."""
    plain, latent = vanilla(size).eval(), free(size, size.bits[-1]).eval()
    # One backbone for both: where weights happen to lie in memory makes a difference of 5% between equal models.
    latent.backbone = plain.backbone
    bits = size.bits[-1]
    both = {"vanilla, compiled": plain, f"free H={bits}, compiled": latent} if compiled else {}
    return {"vanilla": plain, "transformers Llama": llama(size).eval(), f"free H={bits}": latent, **both}


def _job(name: str, model: Any, size: Size, count: int, temperature: float) -> Job:
    """One call of `generate` that makes `size.new` tokens in each of `count` rows."""
    prompts = torch.randint(0, 256, (count, size.prompt), generator=torch.Generator().manual_seed(0))
    if name.startswith("transformers"):
        return _theirs(model, prompts, size.new, temperature)
    return _ours(model, prompts, size.new, temperature, compiled=name.endswith("compiled"))


def _ours(model: LatentDecoder, prompts: torch.Tensor, new: int, temperature: float, *, compiled: bool) -> Job:
    rows = prompts.tolist()

    def job() -> None:
        made = generate(model, rows, max_tokens=new, temperature=temperature, batch_size=len(rows), compile=compiled)
        assert all(len(text.tokens) == new for text in made)

    return job


def _theirs(model: Any, prompts: torch.Tensor, new: int, temperature: float) -> Job:
    settings: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        settings |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}

    def job() -> None:
        with torch.no_grad():
            made = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, **settings)
        assert made.shape[1] == prompts.shape[1] + new

    return job


if __name__ == "__main__":
    command(__doc__, run)
