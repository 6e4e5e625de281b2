"""Shelves: where cards are found. Those of the installed plugins, of LATENTLM_ZOO_PATH, and the user's own.

    find("free-tiny"), find("runs/mine"), find("runs/mine/card.yaml")      a card and where it lies
    add_run(Path("runs/mine"), name="mine")                                a finished run becomes a card on a shelf

On a shelf a card is NAME.yaml, or card.yaml in a folder of its own with its files beside it. A card that cannot be read costs
a warning and is left out; two cards of one name are an error when that name is asked for.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentlm import plugins
from latentlm.config import Card, as_yaml, parse, read_yaml
from latentlm.config.reading import no_file
from latentlm.config.writing import atomic_folder
from latentlm.errors import CheckpointError, UserError, resolved, typed_path, unknown_name
from latentlm.zoo.unfinished import RECIPE, newest_of

CARD = "card.yaml"
ZOO_PATH = "LATENTLM_ZOO_PATH"
_BESIDE = ("tokenizer_config.json", "chat_template.jinja", "recipe.yaml")
"""What a card on a shelf keeps of its run, beside the weights and the tokenizer."""


class CardWarning(UserWarning):
    """A card on a shelf cannot be read; the others work."""


@dataclass(frozen=True)
class Entry:
    """A card and the file it was read from."""

    card: Card
    path: Path
    checkpoint: Path | None = None
    """Of a run that goes on, and has no card file: where its weights lie."""

    @property
    def folder(self) -> Path:
        """Where the card's files lie."""
        return self.path.parent


# --------------------------------------------------------------------------------------------------------- looking


def shelves() -> list[Path]:
    """Folders of cards beyond the plugins': those of LATENTLM_ZOO_PATH, then the user's own."""
    folders = [typed_path(folder) for folder in os.environ.get(ZOO_PATH, "").split(os.pathsep) if folder]
    return [*folders, user_shelf()]


def user_shelf() -> Path:
    """Where `latentlm zoo add` puts models: $XDG_DATA_HOME/latentlm/zoo."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "latentlm" / "zoo"


def is_known(shelf: Path) -> bool:
    """Whether cards on this shelf are found by name."""
    of_plugins = [path.parent.parent if path.name == CARD else path.parent for path in plugins.cards()]
    return resolved(shelf) in {resolved(folder) for folder in (*shelves(), *of_plugins)}


def read_card(path: Path) -> Card:
    """A card file, checked. Raises UserError."""
    return parse(Card, read_yaml(path), source=f"card {path}")


def entries() -> dict[str, list[Entry]]:
    """Every readable card by name; more than one where files claim one name. Warns of cards that cannot be read."""
    found: dict[str, list[Entry]] = {}
    for path in _card_files():
        try:
            card = read_card(path)
        except (UserError, OSError) as error:
            warnings.warn(f"left out of the zoo: {error}", CardWarning, stacklevel=2)
            continue
        found.setdefault(card.name, []).append(Entry(card, path))
    return found


def only(claims: Sequence[Entry]) -> Entry:
    """The one card of a name. Raises UserError that names the files where there are more."""
    if len(claims) > 1:
        files = " and ".join(str(entry.path) for entry in claims)
        raise UserError(f'{len(claims)} cards are called "{claims[0].card.name}": {files}. Rename or remove one.')
    return claims[0]


def find(name_or_path: str | Path) -> Entry:
    """The card of a name, of a folder with a card.yaml (or of a run that has none yet), or of a card file. A name goes before a
    folder of that name (which `./name` or a Path means). Raises UserError with the nearest names."""
    from latentlm.zoo import weights as _weights  # imports torch

    path = typed_path(name_or_path)
    bare = _is_bare(name_or_path)
    known = entries() if bare else {}
    if path.name in known:
        return only(known[path.name])
    if (path / CARD).is_file():
        return Entry(read_card(path / CARD), path / CARD)
    if (newest := newest_of(path)) is not None:
        card, checkpoint = newest
        return Entry(card, path / RECIPE, checkpoint)
    if path.is_file():
        return _of_file(path)
    if path.is_dir():
        raise UserError(_no_model(path))
    if not bare:
        raise UserError(f"{no_file(path)} Give the folder of a run, a card file, or a name (see `latentlm zoo list`).")
    _weights.refuse_pickle(path)
    if path.name in zoo_recipes():
        raise UserError(_a_recipe(path))
    raise unknown_name("model", path.name, known, remedy="A model of your own is given by its folder.")


def zoo_recipes() -> dict[str, Path]:
    """Recipes by name, from the folders `recipes` beside the zoo's cards."""
    folders: dict[Path, None] = {}
    for card in plugins.cards():
        for folder in (card.parent / "recipes", card.parent.parent / "recipes"):
            folders.setdefault(folder)
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def is_name(name_or_path: str | Path) -> bool:
    """Whether it is a card's name, which goes before a folder of that name."""
    return _is_bare(name_or_path) and str(name_or_path) in entries()


def _is_bare(name_or_path: str | Path) -> bool:
    """Whether it may be a name: a text without a slash."""
    return isinstance(name_or_path, str) and name_or_path == Path(name_or_path).name


def is_model(name: str) -> bool:
    """Whether a name is a card's, or a folder has a card."""
    return name in entries() or (typed_path(name) / CARD).is_file()


def is_card(data: Mapping[str, object]) -> bool:
    """Whether a YAML file's contents are a card's, and not a recipe's."""
    return bool({"card_version", "status"} & data.keys())


def _card_files() -> list[Path]:
    """Every card file, once: of plugins, and NAME.yaml or a folder's card.yaml on the shelves."""
    files = list(plugins.cards())
    for shelf in shelves():
        if shelf.is_dir():
            folders = [path for path in sorted(shelf.glob(f"*/{CARD}")) if not path.parent.name.startswith(".")]
            files += [*sorted(shelf.glob("*.yaml")), *folders]  # a hidden folder is a copy that was cut off
    return list(dict.fromkeys(resolved(path) for path in files))


def _of_file(path: Path) -> Entry:
    """A card file; any other is an error that says what to give instead."""
    from latentlm.zoo import weights as _weights  # imports torch

    if path.suffix in (".yaml", ".yml"):
        data = read_yaml(path)
        if is_card(data):
            return Entry(read_card(path), path)
        if {"model", "data", "train"} & data.keys():
            raise UserError(_a_recipe(path))
        raise UserError(f"{path} is no card: it says neither card_version nor status.")
    _weights.refuse_pickle(path)
    if path.suffix == ".safetensors":
        raise UserError(f"{path} holds weights alone: give the folder of their card, or a card and weights={path}.")
    raise UserError(f"{path} is no model. Give the folder of a run, a card file, or a name (see `latentlm zoo list`).")


def _a_recipe(name: Path) -> str:
    """What to do with a recipe where a model is wanted."""
    return f'"{name}" is a recipe; train it with `latentlm train {name}`, then give the folder of the run.'


def _no_model(folder: Path) -> str:
    """Why a folder without a card is no model."""
    if (folder / "recipe.yaml").is_file():
        return f"The run in {folder} is not finished, and has saved no model yet. Go on with `latentlm train ... --resume`."
    if (folder / "config.json").is_file():
        return f"{folder} has no {CARD}: weights of transformers can be loaded, but they are no card of the zoo."
    return f"{folder} is no model: it holds no {CARD} and no Llama weights (config.json with *.safetensors)."


# ---------------------------------------------------------------------------------------------------------- adding


def add_run(run: Path, *, name: str | None = None, shelf: Path | None = None, replace: bool = False) -> Entry:
    """Copy a finished run's card, weights and tokenizer onto a shelf (default: the user's own) as NAME/card.yaml.

    With `replace`, a card of that name on the same shelf gives way; what the run's card leaves open (description, baseline,
    paper) is taken from it. Raises UserError where the run is not finished or damaged, the name is taken, or the shelf cannot
    be written to.
    """
    from latentlm.zoo import weights as _weights  # imports torch

    entry = find(Path(run))
    if entry.path.name != CARD or entry.card.weights is None:
        raise UserError(f"{run} is no finished run; give the folder that `latentlm train` wrote.")
    if entry.card.weights.parts:
        raise UserError(f"{entry.path} has its weights in several files, a shelf takes one: give the folder of a finished run.")
    promised, weights = entry.card.weights, _weights.inside(entry.folder, entry.card.weights.uri)
    shelf = typed_path(shelf or user_shelf())
    wanted = name or entry.card.name
    old = _given_way(wanted, shelf, replace=replace)
    changes = {"name": wanted, "weights": entry.card.weights.model_copy(update={"uri": weights.name}).model_dump()}
    card = parse(Card, _merged(entry.card, old) | changes, source=f'card "{wanted}"')
    target = shelf / card.name
    with _weights.hold(weights) as file:
        _weights.verify(file, size=promised.size, digest=promised.sha256)
        _weights.check_finite(file)
        try:
            with atomic_folder(target, ours=_holds_a_card_alone, kind="a card's folder with nothing else in it") as temporary:
                file.copy_to(temporary / weights.name)
                for other in _beside(entry):
                    shutil.copyfile(other, temporary / other.name)
                (temporary / CARD).write_text(as_yaml(card, exclude_none=True), encoding="utf-8")
            if old is not None and old.folder != resolved(target):
                old.path.unlink()
        except (OSError, CheckpointError) as error:
            raise UserError(f"cannot add {card.name} to {shelf}: {error} Another shelf is given with --to.") from None
    return Entry(card, target / CARD)


def _holds_a_card_alone(folder: Path) -> bool:
    """Whether a folder is what `add_run` makes, with nothing else in it that would be lost."""
    try:
        card = read_card(folder / CARD)
    except UserError:
        return False
    # What the card says of its own files counts only where it is what `add_run` would have said: anyone can write a card.
    weights = card.weights.uri if card.weights is not None else ""
    own = {CARD, *_BESIDE, "tokenizer.json", *([weights] if weights.endswith(".safetensors") else [])}
    return all(path.name in own and path.is_file() and not path.is_symlink() for path in folder.iterdir())


def _given_way(name: str, shelf: Path, *, replace: bool) -> Entry | None:
    """The card on this shelf that the new one replaces. Raises UserError where the name is taken."""
    there = [shelf / f"{name}.yaml", shelf / name / CARD]
    known = entries().get(name, []) if is_known(shelf) else []  # elsewhere cards are found by path alone, and clash with none
    claims = known + [Entry(read_card(path), resolved(path)) for path in there if path.is_file()]
    taken = {entry.path: entry for entry in claims}
    here = [entry for entry in taken.values() if resolved(shelf) in (entry.folder, entry.folder.parent)]
    if elsewhere := [str(path) for path, entry in taken.items() if entry not in here]:
        raise UserError(f'There is a model called "{name}" already, in {elsewhere[0]}; choose another with --name.')
    if not replace and (here or (shelf / name).exists()):
        raise UserError(f'There is a model called "{name}" in {shelf} already; choose another with --name, or say --replace.')
    return only(here) if here else None


def _merged(card: Card, old: Entry | None) -> dict[str, object]:
    """The run's card, and what the replaced one knew beyond it."""
    data = card.model_dump(mode="json", exclude_none=True)
    if old is not None:
        before = old.card.model_dump(mode="json", exclude_none=True)
        data |= {key: before[key] for key in ("baseline", "paper", "description", "licence") if before.get(key)}
    return data


def _beside(entry: Entry) -> list[Path]:
    """The files of a run that go with its weights."""
    from latentlm.zoo import weights as _weights  # imports torch

    tokenizer = entry.card.tokenizer
    names = [*_BESIDE, tokenizer] if tokenizer not in (None, "bytes") else ["recipe.yaml"]
    return [path for path in (_weights.inside(entry.folder, str(name)) for name in names) if path.is_file()]
