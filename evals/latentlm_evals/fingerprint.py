"""What a cached answer depends on: the model, how it was scored, and the code that computed it.

lm-eval keys the answers in a `--use_cache` database by the request's text alone, so that another model, another number of
samples or another scoring mode would silently get the first one's answers. The adapter therefore writes a fingerprint into the
database and refuses one that holds another's. The same facts go into lm-eval's results.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import platform
import sqlite3
import subprocess
from collections.abc import MutableMapping
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import latentlm
from latentlm.config.reading import json_data
from latentlm.config.writing import check_replaceable
from latentlm.errors import UserError, resolved
from latentlm.interface import LatentDecoder
from latentlm_evals.outputs import made_folder

CACHE_KEY = "latentlm fingerprint"
"""Name of the fingerprint in the database; lm-eval's own keys are hexadecimal digests."""

Facts = dict[str, Any]


def model_facts(model: LatentDecoder) -> Facts:
    """Which weights and which code: card, its hash (the weights' hash is in it), data type, plugin and frame versions."""
    card = model.card
    return {
        "card": card.name if card else None,
        "card_status": card.status if card else None,
        "card_sha256": _hash(_in_order(card.model_dump(mode="json"))) if card else None,
        "weights_sha256": card.weights.sha256 if card and card.weights else weights_hash(model),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "end_tokens": None if model.end_tokens is None else sorted(model.end_tokens),
        "tokenizer": model.tokenizer.name if model.tokenizer else None,
        "tokenizer_sha256": _hash(tokenizer_facts(model)),
        "latentlm": latentlm.__version__,
        "commit": commit(),
        "plugins": plugin_versions(model),
    }


@functools.cache
def commit() -> str | None:
    """The commit of latentlm's own code, "+" where files that git knows were changed since; None outside a checkout."""
    root = Path(latentlm.__file__).parent.parent

    def git(*words: str) -> str:
        asked = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20)
        return asked.stdout.strip()

    try:
        if not git("ls-files", "latentlm/__init__.py"):  # installed into somebody else's repository
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine_facts(model: LatentDecoder) -> Facts:
    """Where the answers were computed: what may change them by rounding and no more."""
    import torch

    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": str(device), "device_name": name, "torch": torch.__version__}


def tokenizer_facts(model: LatentDecoder) -> Facts | None:
    """How the tokenizer reads a text that exercises it, which tells apart tokenizers of one name and size."""
    if model.tokenizer is None:
        return None
    probe = "".join(map(chr, range(32, 127))) + " the quick brown fox\n\tdef __init__(self): return 0.25\n\u00e9\u4e2d"
    return {"vocabulary": model.tokenizer.vocabulary, "probe": [int(token) for token in model.tokenizer.encode(probe)]}


def weights_hash(model: LatentDecoder) -> str:
    """SHA-256 of the parameters, for a model that no card describes or whose card has no weights."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plugin_versions(model: LatentDecoder) -> dict[str, str]:
    """{plugin: "distribution version"} of every plugin that some module of the model comes from."""
    packages = {type(part).__module__.partition(".")[0] for part in model.modules()} - {"torch", "latentlm"}
    versions = {}
    for entry in entry_points(group="latentlm"):
        package = entry.module.partition(".")[0]
        if package in packages and entry.dist is not None:
            versions[entry.name] = f"{entry.dist.name} {entry.dist.version}"
            packages.discard(package)
    return versions | dict.fromkeys(sorted(packages), "registered in this process")


def check_cache(path: Path) -> None:
    """Raise UserError, before any work, unless every database that `--use_cache PATH` would go on with is one of kept answers,
    and a new one can be made."""
    made_folder(path.parent, remedy="give --use_cache another path")
    for file in path.parent.glob(f"{glob.escape(path.name)}_rank*.db"):
        check_replaceable(file, keeps_answers, kind="a database of kept answers")


def keeps_answers(path: Path) -> bool:
    """Whether a file is a database with nothing in it but sqlitedict's one table, or nothing yet."""
    try:
        with closing(sqlite3.connect(f"{resolved(path).as_uri()}?mode=ro", uri=True)) as database:
            objects = set(database.execute("SELECT type, name FROM sqlite_master"))
            columns = [column[1] for column in database.execute("PRAGMA table_info(unnamed)")]
    except (sqlite3.Error, OSError, ValueError):
        return False
    return not objects or (objects <= _KEPT and columns == ["key", "value"])


_KEPT = {("table", "unnamed"), ("index", "sqlite_autoindex_unnamed_1")}


def claim_cache(database: MutableMapping[str, Any], facts: Facts) -> None:
    """Write the fingerprint into an empty `--use_cache` database, or check the one that is there.

    Raises UserError for a database with another model's or another setting's answers."""
    remedy = "Give --use_cache another path, or delete the database."
    file = getattr(database, "filename", None)
    if file is not None and not keeps_answers(Path(file)):
        raise UserError(f"{file} is not a database of kept answers, so nothing is kept in it. Give --use_cache another path.")
    if CACHE_KEY not in database:
        if len(database):
            raise UserError(f"The --use_cache database holds answers that no latentlm model signed. {remedy}")
        database[CACHE_KEY] = json.dumps(facts, sort_keys=True)
        return
    found = json_data(str(database[CACHE_KEY]), source="the fingerprint of the --use_cache database")
    if not isinstance(found, dict):
        raise UserError(f"The --use_cache database has a fingerprint that is none. {remedy}")
    changed = [name for name in sorted({*found, *facts}) if found.get(name) != facts.get(name)]
    if changed:
        listed = "; ".join(f"{name} was {found.get(name)}, is {facts.get(name)}" for name in changed)
        raise UserError(f"The --use_cache database holds answers computed otherwise: {listed}. {remedy}")


def _in_order(card: dict[str, Any]) -> dict[str, Any]:
    """A card whose latents are a list, since their order is part of the model and a hash sorts keys."""
    latents = card["model"].get("latents")
    return card if latents is None else {**card, "model": {**card["model"], "latents": list(latents.items())}}


def _hash(data: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
