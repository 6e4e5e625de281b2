"""Scoring through the lm-eval adapters: ours against lm-eval's own `hf` on the same weights, and the free model over vanilla.

    one token, 4 and 10 options      questions whose options are one token: one pass each
    12 tokens, 4 options             options of one question share what their context alone decides
    12 tokens, distinct contexts     nothing to share
    rolling                          whole texts, one window each

    hf             lm-eval's HFLM on a Llama folder
    vanilla        our adapter on the same folder
    free K=1 ...   the Free Transformer on the same backbone, `operational` (rolling: `iwae`) with K samples
    chunk K=16     a code for every 8 tokens: options share the sites that their context closes
    gaussian K=16  a vector for the document, whose posterior has seen the option: they share the trunk alone, the embedding

Beside the ratios stands what the operations come to: trunk, encoder and prior once, the blocks above and the head K times, each
token of a context once for all options that share it (the encoder, which has seen the option, runs for each).

Run: ``python -m benchmarks.scoring [--quick]`` (about 3 minutes); prints rows of benchmarks/timing.py as JSON.
"""

from __future__ import annotations

import json
import logging
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from benchmarks.contenders import FULL, QUICK, Size, free, llama
from benchmarks.timing import Row, command, interleaved, summary
from latentlm.composed import build
from latentlm.config import ModelConfig
from latentlm.interface import LatentDecoder
from latentlm.tokenizer import BPETokenizer
from latentlm_evals.adapter import LatentLM

Job = Callable[[], list[Any]]
SAMPLES = (1, 4, 16)
COARSE = {
    "chunk K=16": {"decoder": "chunk", "granularity": "chunk:8"},
    "gaussian K=16": {"decoder": "gaussian", "event_dims": 32},
}
"""Settings of the decoders with coarser latents, on the same backbone."""
BATCH = 8


@dataclass(frozen=True)
class Case:
    """Questions and their options, in tokens (a byte is one); no options: whole texts."""

    name: str
    questions: int
    context: int
    options: int = 0
    length: int = 0
    """Of an option."""
    coarse: bool = False
    """Whether the decoders with coarser latents are timed too."""


def cases(quick: bool) -> list[Case]:
    """What is scored."""
    questions, context = (2, 12) if quick else (8, 64)
    return [
        Case("one token, 4 options", questions, context, options=4, length=1),
        Case("one token, 10 options", questions, context, options=10, length=1),
        Case("12 tokens, 4 options", questions // 2, context, options=4, length=12, coarse=True),
        Case("12 tokens, distinct contexts", 2 * questions, context, options=1, length=12),
        Case("rolling", questions, 2 * context, coarse=True),
    ]


def run(*, quick: bool = False) -> list[Row]:
    """Rows of all contenders for every case."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    size = QUICK if quick else replace(FULL, rounds=7)
    bits, rows = size.bits[0], []
    with tempfile.TemporaryDirectory() as folder:
        adapters = _adapters(size, bits, Path(folder))
        for case in cases(quick):
            jobs = {name: _job(adapter, case) for name, adapter in adapters.items() if case.coarse or name not in COARSE}
            _check_equal(jobs, case)
            made = summary(interleaved(jobs, rounds=size.rounds), reference="vanilla", suite="scoring", case=case.name)
            for row in made:
                if row["contender"].startswith("free"):
                    row["theory"] = theory(size, case, samples=int(row["contender"].split("=")[1]))
            rows += made
    return rows


def theory(size: Size, case: Case, *, samples: int) -> float:
    """Operations of the free model over vanilla's, both as lean as the method allows: multiplications by weights, and
    attention."""
    backbone = size.backbone
    width, blocks = backbone.width, backbone.blocks
    assert backbone.feed_forward is not None
    weights = 4 * width**2 + 3 * width * backbone.feed_forward

    def block(tokens: int, seen: float) -> float:
        """One block over so many tokens that see so many others."""
        return tokens * (weights + 2 * width * seen)

    options = max(1, case.options)
    inputs = max(0, case.length - 1)  # of an option, beyond its context
    once = block(case.context, case.context / 2) + options * block(inputs, case.context + inputs / 2) * (inputs > 0)
    head = width * backbone.vocabulary * (case.context if not case.options else 1 + options * inputs)
    whole = case.context + inputs
    # Of one target the posterior has seen nothing: the context alone is encoded.
    encoded = (block(case.context, case.context) if case.options else 0.0) + (
        options * block(whole, whole) if inputs or not case.options else 0.0
    )
    trunk = blocks // 2
    latent = trunk * once + encoded + samples * ((blocks - trunk) * once + head)
    return latent / (blocks * once + head)


def _adapters(size: Size, bits: int, folder: Path) -> dict[str, Any]:
    """By contender."""
    BPETokenizer.train([""], vocabulary=257).save(folder)  # bytes, in a form that transformers reads
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    llama(size).save_pretrained(folder)
    plain, latent = LatentLM(str(folder), batch_size=BATCH), free(size, bits)
    latent.backbone = plain.model.backbone  # one backbone for both: see generation.py
    same: dict[str, Any] = {"tokenizer": str(folder), "add_bos_token": False, "batch_size": BATCH}
    return {
        "vanilla": plain,
        "hf": HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=BATCH),
        **{f"free K={samples}": LatentLM(latent, samples=samples, **same) for samples in SAMPLES},
        **{name: LatentLM(_coarse(settings, size), samples=16, **same) for name, settings in COARSE.items()},
    }


def _coarse(settings: dict[str, Any], size: Size) -> LatentDecoder:
    return build(ModelConfig.model_validate({**settings, "backbone": size.backbone.model_dump()})).eval()


def _job(adapter: Any, case: Case) -> Job:
    """One evaluation."""
    asked = requests(case)
    call = adapter.loglikelihood if case.options else adapter.loglikelihood_rolling
    return lambda: call(asked, disable_tqdm=True)


def requests(case: Case) -> list[Instance]:
    """As lm-eval makes them."""
    rng = random.Random(0)

    def letters(count: int) -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=count))

    arguments: list[tuple[str, ...]] = []
    for _ in range(case.questions):
        context = letters(case.context)
        arguments += [(context, letters(case.length)) for _ in range(case.options)] or [(context,)]
    kind = "loglikelihood" if case.options else "loglikelihood_rolling"
    return [Instance(request_type=kind, doc={}, arguments=args, idx=number) for number, args in enumerate(arguments)]


def _check_equal(jobs: dict[str, Job], case: Case) -> None:
    """Raise AssertionError unless vanilla and `hf` answer alike."""
    for ours, theirs in zip(jobs["vanilla"](), jobs["hf"](), strict=True):
        one, other = (ours[0], theirs[0]) if case.options else (ours, theirs)
        assert abs(one - other) < 1e-3, f"{case.name}: {one} and {other}"


if __name__ == "__main__":
    command(__doc__, run)
