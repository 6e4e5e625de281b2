"""The folder of a run: who may write into it, and whether a recipe continues what is there.

card.yaml, model.safetensors       the finished model, a zoo model like any other
recipe.yaml                        the resolved recipe; its presence says that the run was started
manifest.json, metrics.jsonl, checkpoints/, tokenizer.json
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from latentlm.config import EvaluateConfig, Recipe, as_yaml, parse, read_json, read_text, read_yaml
from latentlm.config.reading import open_plain
from latentlm.config.writing import acquired, check_replaceable, check_writable, open_to_append, remove_leftovers, write_text
from latentlm.errors import UserError, typed_path
from latentlm.tokenizer import FILE as TOKENIZER
from latentlm.training.recipes import RECIPE
from latentlm.zoo.shelves import CARD
from latentlm.zoo.unfinished import CHECKPOINTS
from latentlm.zoo.weights import refuse_bytes

METRICS, WEIGHTS, PROFILE = "metrics.jsonl", "model.safetensors", "profile"
_LOCK = ".lock"
_MARK = "a run of latentlm\n"
"""What the lock says from the moment a run writes its first file: it alone tells the files of a run that has saved nothing from
those of someone else who happens to call theirs so."""
MANIFEST = "manifest.json"
_BEGUN = {RECIPE, METRICS, TOKENIZER, "tokenizer_config.json", MANIFEST}
_FILES, _FOLDERS = sorted({*_BEGUN, WEIGHTS, CARD}), ("tensorboard", PROFILE, CHECKPOINTS)
_OF_A_RUN = {*_BEGUN, *_FOLDERS}
"""What a run writes ahead of its first checkpoint, beside its lock; _FILES: all that it writes in the end."""

_MANIFEST_KEYS = {"name", "started", "command", "versions", "seeds", "device", "data"}
"""Among those of a manifest of any version (manifest.py)."""
_FREE_TO_CHANGE = {
    "name", "description", "data.path",
    "train.log_every", "train.eval_every", "train.eval_documents", "train.save_every", "train.keep",
    "train.device", "train.threads", "train.parallel.replicate", "train.tensorboard",
    "train.profile", "train.profile.start", "train.profile.steps",
    *(f"train.{key}" for key in ("evaluate", *(f"evaluate.{name}" for name in EvaluateConfig.model_fields))),
}  # fmt: skip
"""Settings that a resumed run may change: they decide what is written, where the data lie and where it is computed, not what
is learned. (That the data are the same, their fingerprint says.)"""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for this process, after a check that it can be written to. Raises UserError."""
    refuse_bytes(out.absolute())
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        reason = "a file of that name is there" if isinstance(error, FileExistsError) else reason
        raise UserError(f"cannot write into {out}: {reason}. Choose another folder with --out.") from None
    with _open_lock(out) as lock:
        if not acquired(lock.fileno()):
            raise UserError(f"another process is training in {out}. Wait for it, or choose another folder with --out.")
        remove_leftovers(out)
        yield


def check_places(out: Path) -> None:
    """Refuse what stands where the run will write, some of it in the end alone. Raises UserError."""
    for name in _FILES:
        check_replaceable(out / name, None, kind="")
    for folder in (out / name for name in _FOLDERS):  # a link to one on a larger disk will do
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is no folder, and stays as it is. Choose another folder with --out.")
        check_writable(folder / "new")


def check_free(out: Path, *, resume: bool) -> None:
    """Refuse to overwrite a run, or someone else's files; writes nothing. Raises UserError with what to do."""
    if is_finished(out) and not resume:
        raise UserError(f"{out} holds a finished run. Choose another folder with --out, or delete it first.")
    if is_started(out) and (is_finished(out) or _has_saved(out) or _is_empty_run(out) or _is_unmarked_run(out)):
        if not resume and not _is_empty_run(out):
            raise UserError(f"{out} holds a run that was started. Go on with --resume, or choose another folder with --out.")
        return
    own = _OF_A_RUN if _is_empty_run(out) else {}  # a run that ended before it had saved anything
    others = sorted(path.name for path in _entries(out) if path.name not in own and not path.name.startswith("."))
    if others:
        listed = ", ".join(others[:3])
        raise UserError(f"{out} is not empty and no run ({listed}). Choose another folder with --out.")


def is_started(out: Path) -> bool:
    """Whether there is a run to resume."""
    return (out / RECIPE).exists()


def _is_empty_run(out: Path) -> bool:
    """Whether a run of ours began here that has saved nothing: it was refused, diverged, or was killed before it had."""
    return _is_marked(out) and not is_finished(out) and not _has_saved(out)


def _has_saved(out: Path) -> bool:
    return any((out / CHECKPOINTS).glob("step-*"))


def _is_unmarked_run(out: Path) -> bool:
    """Whether an earlier version began a run here, which did not mark its lock, or the marked lock was left behind by a copy.
    Its recipe is word for word what a run writes, so that to write it again loses nothing, and so is what else is there."""
    try:
        written = read_text(out / RECIPE) == as_yaml(saved_recipe(out))
        manifest = read_json(out / MANIFEST) if os.path.lexists(out / MANIFEST) else None
    except UserError:
        return False
    beside = (_BEGUN - {RECIPE}) & {path.name for path in _entries(out)}
    return written and (manifest.keys() >= _MANIFEST_KEYS if isinstance(manifest, dict) else not beside)


def _is_marked(out: Path) -> bool:
    try:
        with open_plain(out / _LOCK) as lock:
            return bool(lock.read(len(_MARK) + 1) == _MARK.encode())
    except (OSError, ValueError):
        return False


def mark_begun(out: Path) -> None:
    """Say that the run's files are a run's, before the first of them is written. The folder is held."""
    with _open_lock(out) as lock:
        if not lock.read():
            lock.write(_MARK)


def _open_lock(out: Path) -> TextIO:
    """The lock, made where there is none. Raises UserError where a file of that name is no lock of ours."""
    lock = open_to_append(out / _LOCK)
    lock.seek(0)
    try:
        said = lock.read(len(_MARK) + 1)
    except UnicodeDecodeError:
        said = "no text"
    if said not in ("", _MARK):
        lock.close()
        raise UserError(f"{out / _LOCK} is not the lock of a run, and stays as it is. Choose another folder with --out.")
    lock.seek(0)
    return lock


def begin_anew(out: Path) -> None:
    """Forget a run that has saved nothing."""
    if _is_empty_run(out):
        (out / RECIPE).unlink(missing_ok=True)


def is_finished(out: Path) -> bool:
    """Whether the run has its card, which is written last."""
    return (out / CARD).exists()


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Write the resolved recipe: every setting, defaults included."""
    write_text(out / RECIPE, as_yaml(recipe))


def saved_recipe(out: Path) -> Recipe:
    """The recipe that the run was started with. Raises UserError."""
    return parse(Recipe, read_yaml(out / RECIPE), source=f"recipe {out / RECIPE}")


def check_same_recipe(out: Path, begun: Recipe, recipe: Recipe) -> None:
    """Refuse to resume with other settings than the run in `out` was begun with. Raises UserError with the keys that differ."""
    before, after = (flat_settings(each.model_dump(mode="json")) for each in (begun, recipe))
    free = _FREE_TO_CHANGE | ({"data.tokenizer"} if _is_own_tokenizer(out, recipe.data.tokenizer) else set())
    differing = [key for key in sorted({*before, *after} - free) if before.get(key) != after.get(key)]
    if differing:
        listed = "; ".join(f"{key}: {before.get(key)} in the run, {after.get(key)} now" for key in differing)
        raise UserError(
            f"the recipe differs from the one that {out} was started with ({listed}). Resume with the run's own recipe, "
            f"`latentlm train {out / RECIPE} --out {out} --resume`, or train into another folder with --out."
        )


def _is_own_tokenizer(out: Path, spec: str) -> bool:
    """Whether a tokenizer.json elsewhere is the one that the run keeps a copy of."""
    try:
        own, other = (read_json(path) for path in (out / TOKENIZER, typed_path(spec)))
    except UserError:
        return False
    ignored = {"truncation": None, "padding": None}  # never used, and not kept
    return isinstance(own, dict) and isinstance(other, dict) and bool({**own, **ignored} == {**other, **ignored})


def flat_settings(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {"a.b": value}."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        if f"{prefix}{key}" == "model.latents":
            flat["model.latents"] = list(value)  # their order, which is part of the model
    return flat


def _entries(out: Path) -> list[Path]:
    return list(out.iterdir()) if out.is_dir() else []
