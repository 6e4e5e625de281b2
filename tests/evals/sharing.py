"""Evaluates the shipped tasks in one process of several, for test_ranks.py: `torchrun --nproc-per-node 2 sharing.py OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.tokenizer import ByteTokenizer
from latentlm_evals.adapter import LatentLM
from latentlm_evals.evaluation import run_with
from latentlm_evals.suites import SUITE_TASKS


def main(out: Path) -> None:
    torch.set_num_threads(1)
    config = ModelConfig(decoder="free", event_dims=2, backbone=BackboneConfig(width=16, blocks=2, heads=2, context=256))
    model = build(config, seed=3).eval()
    model.tokenizer = ByteTokenizer()
    lm = LatentLM(model, samples=2)
    results = run_with(lm, SUITE_TASKS, limit=5)  # an odd number: the processes have unlike shares
    if results is not None:
        kept = {key: results[key] for key in ("results", "samples", "n-samples")}
        kept["latentlm"] = results["config"]["latentlm"]
        out.write_text(json.dumps(kept, default=str))
    print(f"process {lm.rank} of {lm.world_size}: {'results' if results else 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
