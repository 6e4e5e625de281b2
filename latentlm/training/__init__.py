"""Training: from a recipe to a model that the zoo can load.

    result = train(load_recipe("free-tiny", ["train.steps=500"]), out=Path("runs/free-tiny"))

Six files matter, in this order:

    recipes       from what the user typed to a checked recipe
    setup         from a recipe to device, data, model and stream
    loop          `train`: begin or go on, step until the end or until asked to stop
    run           one run: after a step, whatever is due: a metrics line, an evaluation, a checkpoint
    trainer       one optimiser step: where the loss is taken and the gradient made
    evaluation    the held-out bound, and whether the latents are alive

Beside them: `optimizer` (AdamW and its rate), `plan` (what a run will cost: the dry run), and two rooms, `data` (text into
batches) and `record` (what a run writes). The names below are imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentlm.training.data import PackedStream, Prepared, load_documents, prepare
    from latentlm.training.evaluation import evaluate, excerpts
    from latentlm.training.loop import InterruptedRun, train
    from latentlm.training.plan import Plan, make_plan
    from latentlm.training.recipes import find_recipe, load_recipe, zoo_recipes
    from latentlm.training.record import RunResult, read_metrics, read_result
    from latentlm.training.setup import make_model, make_stream, resolve
    from latentlm.training.trainer import DivergedError, Trainer

_HOMES = {
    "recipes": ("find_recipe", "load_recipe", "zoo_recipes"),
    "data": ("PackedStream", "Prepared", "load_documents", "prepare"),
    "setup": ("make_model", "make_stream", "resolve"),
    "loop": ("InterruptedRun", "train"),
    "trainer": ("DivergedError", "Trainer"),
    "evaluation": ("evaluate", "excerpts"),
    "plan": ("Plan", "make_plan"),
    "record": ("RunResult", "read_metrics", "read_result"),
}

__all__ = [
    "DivergedError", "InterruptedRun", "PackedStream", "Plan", "Prepared", "RunResult", "Trainer", "evaluate", "excerpts",
    "find_recipe", "load_documents", "load_recipe", "make_model", "make_plan", "make_stream", "prepare", "read_metrics",
    "read_result", "resolve", "train", "zoo_recipes",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """A public name, from the module that it lives in: reading a recipe needs no torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, imported or not, and the modules that are."""
    return sorted({*globals(), *__all__})
