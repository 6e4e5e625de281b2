"""Texts that a model was not trained on, by the recipe that lies beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from latentlm.config import Recipe, parse, read_yaml
from latentlm.errors import UserError, typed_path
from latentlm.training.data import load_documents
from latentlm.training.recipes import RECIPE
from latentlm.zoo.shelves import find
from latentlm_evals.probe.attributes import FEWEST, Attribute


def without_trained(attribute: Attribute, models: Iterable[str]) -> tuple[Attribute, int]:
    """The texts that are among none of the models' training documents, and how many were left out. A model without a recipe
    beside it, or whose data are no longer here, is taken at its word. Raises UserError where too few are left."""
    if attribute.source is not None:  # fresh draws
        return attribute, 0
    trained = {document.strip() for model in models for document in _documents(model)}
    rows = [row for row, text in enumerate(attribute.texts) if text.strip() not in trained]
    left = attribute.only(rows)
    seen = len(attribute.texts) - len(rows)
    if seen and min(int(left.labels.sum()), len(rows) - int(left.labels.sum())) < FEWEST:
        raise UserError(
            f"{seen} of the {len(attribute.texts)} texts of {attribute.name} were trained on, and too few are left: a probe "
            f"needs {FEWEST} of either kind. Train with a larger data.held_out, or give other texts."
        )
    return replace(left, left_out=attribute.left_out), seen


def _documents(model: str) -> Iterable[bytes]:
    """What a model was trained on, where that can be told."""
    path = find(model).folder / RECIPE
    if not path.is_file():
        return ()
    data = parse(Recipe, read_yaml(path), source=f"recipe {path}").data
    if not typed_path(data.path).exists():
        return ()
    try:
        return [document.data for document in load_documents(data).train]
    except UserError:  # something else lies there now
        return ()
