"""Two revisions side by side: a checkout of the other one, and a Python that sees one tree and nothing of the other.

Plugins and the command are found in the metadata of the installed distribution, and what is installed (an editable install, as
a rule) tells of one checkout only. So a child gets, first on its path, a folder with `latentlm-0.dist-info` made from its own
tree's pyproject.toml; importlib.metadata takes the first distribution of a name. The child checks that it did.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELVES = ("", "plugins", "zoo", "evals")
RECIPES, CARDS = "zoo/latentlm_zoo/recipes", "zoo/latentlm_zoo/cards"


class RevisionError(Exception):
    """A revision that cannot be had; the message says why."""


@dataclass(frozen=True)
class Tree:
    """A revision in a folder."""

    label: str
    root: Path

    def recipes(self, pattern: str) -> dict[str, Path]:
        """Shipped recipes by name, but those for GPUs."""
        every = {path.stem: path for path in sorted((self.root / RECIPES).glob("*.yaml"))}
        found = {name: path for name, path in every.items() if "device: cuda" not in path.read_text(encoding="utf-8")}
        return {name: path for name, path in found.items() if fnmatchcase(name, pattern)}

    def cards(self, pattern: str) -> dict[str, Path]:
        """Shipped cards that have weights, by name."""
        found = {path.parent.name: path for path in sorted((self.root / CARDS).glob("*/card.yaml"))}
        return {name: path for name, path in found.items() if fnmatchcase(name, pattern)}

    def entry_points(self) -> dict[str, dict[str, str]]:
        """Group -> name -> value, as the tree's pyproject.toml has them; scripts are a group."""
        project = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return {"console_scripts": project["scripts"], **project["entry-points"]}

    def environment(self, metadata: Path, home: Path) -> dict[str, str]:
        """Variables of a child that sees this tree: one thread, no GPU, nothing of the user's. Writes the metadata."""
        write_metadata(metadata, self.entry_points())
        paths = [metadata, *(self.root / shelf for shelf in SHELVES)]
        mine = {name: value for name, value in os.environ.items() if not name.startswith("LATENTLM_")}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        return mine | threads | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONHASHSEED": "0",
            "PYTHONSAFEPATH": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "XDG_DATA_HOME": str(home),  # the user's own shelf of cards
        }  # fmt: skip


def write_metadata(folder: Path, entry_points: dict[str, dict[str, str]]) -> Path:
    """A latentlm-0.dist-info with these entry points, in `folder`; returns it."""
    made = folder / "latentlm-0.dist-info"
    made.mkdir(parents=True)
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in entry_points.items()
    ]
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: latentlm\nVersion: 0\n", encoding="utf-8")
    (made / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    return made


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[tuple[Tree, str]]:
    """The revision in a git worktree at `folder`, and its commit; the worktree is gone afterwards, whatever happened."""
    unknown = f'"{revision}" is no revision of {ROOT}'
    commit = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", complaint=unknown)
    try:
        _git("worktree", "add", "--detach", str(folder), commit, complaint=f"{revision} cannot be checked out")
        yield Tree(revision, folder), commit
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(folder)], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _git(*arguments: str, complaint: str) -> str:
    """What git says. Raises RevisionError."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise RevisionError(f"{complaint}: git cannot be run ({error}).") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["git finds none of that name"])[-1]
        raise RevisionError(f"{complaint}: {reason}.")
    return done.stdout.strip()
