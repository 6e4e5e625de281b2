"""What every case finds in its folder: a trained model with latents, a Llama folder, texts, latents, evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from guessing import evaluated, logged
from llama_folders import llama_folder

RECIPE = {
    "name": "run",
    "model": {
        "decoder": "free",
        "event_dims": 4,
        "backbone": {"width": 16, "blocks": 4, "heads": 2, "kv_heads": 1, "context": 32},
    },
    "data": {"path": "texts", "tokenizer": "bytes"},
    "train": {"steps": 2, "batch": 2, "context": 32, "eval_documents": 2, "save_every": 1, "log_every": 1, "threads": 1},
}
"""A model that trains in a second."""


def recipe(**changes: object) -> str:
    """The recipe with some settings changed, dots as double underscores, as YAML."""
    made = json.loads(json.dumps(RECIPE))
    for key, value in changes.items():
        node = made
        *parents, last = key.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return yaml.safe_dump(made, sort_keys=False)


def make(folder: Path) -> Path:
    """Write all of it into an empty folder. Trains for a second."""
    from latentlm import zoo
    from latentlm.generation.latents import save_latents
    from latentlm.training import train
    from latentlm.training.recipes import load_recipe

    texts = folder / "texts"
    texts.mkdir(parents=True)
    for number in range(8):
        (texts / f"{number}.txt").write_text(
            f"The text with number {number} says little, and says it {number} times over.\n" * 4
        )
    (folder / "my.yaml").write_text(recipe(data__path=str(texts)))
    train(load_recipe(str(folder / "my.yaml")), out=folder / "run", progress=False)
    (folder / "my.yaml").write_text(recipe())
    model = zoo.load(str(folder / "run"))
    save_latents(folder / "z.safetensors", [model.encode("The text", seed=0)], model=model)
    llama_folder(folder / "llama")
    for number, name in enumerate(("one", "two")):
        logged(folder / "logged" / name, evaluated(number, ["latentlm_copy"], limit=3))
    (folder / "notes.txt").write_text("what a user wrote\n")
    return folder


if __name__ == "__main__":
    import sys

    make(Path(sys.argv[1]))
