"""What docs/gpu.md says of a run of this folder: likelihood, bound and latents on 48 held-out documents, and its evaluations.

Run: ``python studies/51m/measure.py RUN docs/gpu/51m/NAME.json`` (a minute on a GPU, which it takes where there is one).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from latentlm import zoo
from latentlm.training.data import load_documents
from latentlm.training.recipes import load_recipe
from latentlm_evals.measure import Precision, held_out_texts, measure

HELD_OUT = (
    "step", "tokens", "cross_entropy", "kl_bits_per_token", "bits_per_byte", "live_bits", "information_bits_per_site"
)  # fmt: skip


def main() -> None:
    """Measure a run and write the file."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    run, file = Path(sys.argv[1]), Path(sys.argv[2])
    model = zoo.load(str(run), device="cuda" if torch.cuda.is_available() else "cpu")
    documents = load_documents(load_recipe(str(run / "recipe.yaml"), []).data).held_out
    texts = held_out_texts(documents, count=48, limit=2048, seed=0)
    found = asdict(measure(model, run.name, texts, precision=Precision(max_samples=1024), seed=0))
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [{key: line.get(key) for key in HELD_OUT} for line in lines if line["split"] == "held_out"]
    data = {key: value for key, value in manifest["data"].items() if key != "path"}
    facts = {"card": manifest["device"]["name"], "torch": manifest["versions"]["torch"], "data": data}
    for key in ("training", "samples"):
        found.pop(key)
    for score in found["scores"]:
        for key in ("warnings", "greedy", "proposal", "near_ties"):
            score.pop(key)
    file.write_text(json.dumps({"facts": facts, "held_out": held_out, **found}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
