"""Evaluates the shipped tasks in one process of several, for test_ranks.py: `torchrun --nproc-per-node 2 sharing.py OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

from latentlm.composed import build
from latentlm.config import BackboneConfig, ModelConfig
from latentlm.tokenizer import ByteTokenizer
from latentlm_evals.adapter import LatentLM
from latentlm_evals.evaluation import run_with
from latentlm_evals.suites import SUITE_TASKS


def task_with_examples(folder: Path) -> str:
    """A task whose prompts begin with two examples drawn at random; returns its name."""
    rows = [{"question": f"What is {n} and {n}?", "choices": [f"{2 * n}", "x"], "answer": n % 2} for n in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "examples",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": 2,
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\n",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
    }
    (folder / "examples.yaml").write_text(yaml.safe_dump(task))
    return "examples"


def main(out: Path) -> None:
    torch.set_num_threads(1)
    config = ModelConfig(decoder="free", event_dims=2, backbone=BackboneConfig(width=16, blocks=2, heads=2, context=256))
    model = build(config, seed=3).eval()
    model.tokenizer = ByteTokenizer()
    lm = LatentLM(model, samples=2)
    with TemporaryDirectory() as folder:  # each process its own: they need not wait for each other
        tasks = [*SUITE_TASKS, task_with_examples(Path(folder))]
        results = run_with(lm, tasks, include_path=Path(folder), limit=5)  # an odd number: unlike shares
    if results is not None:
        kept = {key: results[key] for key in ("results", "samples", "n-samples")}
        kept["latentlm"] = results["config"]["latentlm"]
        out.write_text(json.dumps(kept, default=str))
    print(f"process {lm.rank} of {lm.world_size}: {'results' if results else 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
