"""One bad file, plugin or line harms itself alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile.harness import Case
from hostile.readers import _YAML, odd_files

_ARCHITECTURE = "card_version: 1\nname: {0}\nstatus: architecture\nmodel: {{decoder: vanilla}}\n"
_HOOKS = "from latentlm.plugins.hookspecs import hookimpl\nlatentlm_contract = 2\n@hookimpl\n"
_BROKEN = {
    "raises": "raise RuntimeError('broken')",
    "raises a BaseException": "class Odd(BaseException): pass\nraise Odd('odd')",
    "skips": "import pytest\npytest.importorskip('a_module_that_is_not_there')",
    "exits": "import sys\nsys.exit(3)",
    "has a generator exit": "raise GeneratorExit",
    "raises what cannot be shown": "class Odd(Exception):\n    def __str__(self): raise ValueError('no text')\n"
    "    __repr__ = __str__\nraise Odd",
    "raises control characters": "raise ValueError('\\x1b[31m\\x07red')",
    "raises a long text": "raise ValueError('x' * 10_000_000)",
    "raises many lines": "raise ValueError('x\\n' * 10_000)",
    "makes warnings errors": "import warnings\nwarnings.simplefilter('error')\nraise ValueError('broken')",
    "makes warnings errors and lives": "import warnings\nwarnings.simplefilter('error')\nlatentlm_contract = 1",
    "is no Python": "def (:",
    "recurses": "def f(): return f()\nf()",
    "is not there": None,
    "has no hooks": "x = 1",
    "prints": "print('noise on standard output')\nraise ValueError('broken')",
    "closes standard error": "import sys\nsys.stderr.write('x\\n')\nraise ValueError('broken')",
    "returns no parts": _HOOKS + "def latentlm_parts(): return 5",
    "returns odd cards": _HOOKS + "def latentlm_cards(): return [5, None]",
    "returns odd names": _HOOKS + "def latentlm_parts(): return {'encoder': {5: int}}",
    "loops over cards": _HOOKS + "def latentlm_cards(): raise SystemExit(4)",
    "states an odd contract": "latentlm_contract = object()",
    "interrupts": "raise KeyboardInterrupt",
    "raises what exits when shown": "class Odd(Exception):\n    def __str__(self): raise SystemExit(3)\nraise Odd",
    "fails to import what exits when shown": "class Odd(ImportError):\n    def __str__(self): raise SystemExit(3)\n"
    "raise Odd(name='latentlm.noise')",
    "interrupts in its hook": _HOOKS + "def latentlm_parts(): raise KeyboardInterrupt",
    "raises when asked": "def __getattr__(name): raise RuntimeError(name)",
}


def _plugin(module: str, source: str | None, *, group: str = "latentlm", name: str = "odd", also: str = "") -> dict[str, str]:
    """A distribution with one entry point."""
    made = {
        f"site/{module}-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n",
        f"site/{module}-1.dist-info/entry_points.txt": f"[{group}]\n{name} = {module}{also}\n",
    }
    return made if source is None else {**made, f"site/{module}.py": source + "\n"}


def cases() -> Iterator[Case]:
    """Of shelves, runs and plugins."""
    yield from _shelves()
    yield from _runs()
    yield from _plugins()


def _shelves() -> Iterator[Case]:
    beside = {"shelf/fine.yaml": _ARCHITECTURE.format("fine")}
    shelf = {"LATENTLM_ZOO_PATH": "shelf"}
    asks = {
        "zoo list": ("zoo", "list"),
        "describe": ("zoo", "describe", "fine"),
        "generate": ("generate", "vanilla-tiny", "x", "--max-tokens", "1"),
        "recipe": ("train", "vanilla-tiny", "--dry-run"),
    }
    for what, text in _YAML.items():
        for place in ("shelf/bad.yaml", "shelf/bad/card.yaml"):
            for ask, command in asks.items():
                if ask in ("recipe", "generate") and place != "shelf/bad.yaml":
                    continue
                yield Case(
                    f"shelf: {what}: {ask}, {place}", command, files={**beside, place: text}, environment=shelf, good=True
                )
    for what, make in {"odd files": odd_files, "odd cards": _odd_cards}.items():
        for ask, command in asks.items():
            yield Case(
                f"shelf: {what}: {ask}",
                command,
                files=beside,
                environment={"LATENTLM_ZOO_PATH": "shelf:.:missing:notes.txt"},
                prepare=make,
                good=True,
            )
    twice = {**beside, "shelf/a.yaml": _ARCHITECTURE.format("twice"), "shelf/b.yaml": _ARCHITECTURE.format("twice")}
    for ask, command in asks.items():
        yield Case(f"shelf: a name twice: {ask}", command, files=twice, environment=shelf, good=True)
    yield Case("shelf: a name twice, asked for", ("zoo", "describe", "twice"), files=twice, environment=shelf)
    taken = {**beside, "shelf/a.yaml": _ARCHITECTURE.format("vanilla-tiny")}
    yield Case("shelf: a shipped model's name", ("zoo", "describe", "fine"), files=taken, environment=shelf, good=True)
    yield Case(
        "shelf: beyond a loop",
        ("zoo", "list"),
        environment={"LATENTLM_ZOO_PATH": "loop/x:~nobody-at-all/x:\x01"},
        prepare=odd_files,
        good=True,
    )


def _odd_cards(folder: Path) -> None:
    shelf = folder / "shelf"
    (shelf / "folder.yaml").mkdir(parents=True)
    (shelf / "loop.yaml").symlink_to("loop.yaml")
    (shelf / "dangling.yaml").symlink_to("nowhere")
    os.mkfifo(shelf / "pipe.yaml")
    (shelf / "piped").mkdir()
    os.mkfifo(shelf / "piped" / "card.yaml")
    (shelf / "zero.yaml").symlink_to("/dev/zero")
    (shelf / "deep").mkdir()
    (shelf / "deep" / "card.yaml").symlink_to("/proc/self/mem")
    with (shelf / "huge.yaml").open("wb") as file:
        file.truncate(2**34)


def _unfinished(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """A run that was stopped at step 1 of 2, and something done to it."""

    def make(folder: Path) -> None:
        shutil.copytree(folder / "run", folder / "half")
        for name in ("card.yaml", "model.safetensors"):
            (folder / "half" / name).unlink()
        shutil.rmtree(sorted((folder / "half" / "checkpoints").iterdir())[-1])
        change(folder / "half")

    return make


def _runs() -> Iterator[Case]:
    damages: dict[str, bytes] = {
        "empty": b"",
        "cut": b'{"split": "tr',
        "no text": b"\xff\xfe\n",
        "lists": b"[]\n[]\n",
        "numbers": b"5\n6\n",
        "nulls": b"null\n",
        "no step": b"{}\n",
        "a step that is text": b'{"split": "train", "step": "x"}\n',
        "no split": b'{"step": 1}\n',
        "NUL": b"\0" * 100,
        "nested": b"[" * 100_000 + b"\n",
        "a long number": b'{"step": ' + b"9" * 5000 + b"}\n",
        "a long line": b"x" * 1_000_000 + b"\n",
    }
    may = ("half/*", "half/checkpoints/*", "half/checkpoints/*/*")
    for what, content in damages.items():
        for name in ("metrics.jsonl", "manifest.json", "tokenizer.json", "tokenizer_config.json"):

            def change(half: Path, name: str = name, content: bytes = content) -> None:
                (half / name).write_bytes(content)

            good = True if name in ("metrics.jsonl", "manifest.json") else None
            yield Case(
                f"resumed: {name} is {what}",
                ("train", "half", "-q", "--resume"),
                prepare=_unfinished(change),
                may_change=may,
                good=good,
            )  # type: ignore[arg-type]
            yield Case(
                f"generate: {name} is {what}",
                ("generate", "run", "x", "--max-tokens", "1"),
                files={f"run/{name}": content},
                good=True if name in ("metrics.jsonl", "manifest.json") else None,
            )  # type: ignore[arg-type]
        yield Case(
            f"added: manifest.json is {what}",
            ("zoo", "add", "run", "--to", "shelf"),
            files={"run/manifest.json": content},
            good=True,
        )
    changes: dict[str, Callable[[Path], object]] = {
        "metrics.jsonl is a folder": lambda half: ((half / "metrics.jsonl").unlink(), (half / "metrics.jsonl").mkdir()),
        "metrics.jsonl is a pipe": lambda half: ((half / "metrics.jsonl").unlink(), os.mkfifo(half / "metrics.jsonl")),
        "metrics.jsonl is gone": lambda half: (half / "metrics.jsonl").unlink(),
        "manifest.json is gone": lambda half: (half / "manifest.json").unlink(),
        "manifest.json has odd resumes": lambda half: (half / "manifest.json").write_text(
            json.dumps({"resumed": 5, "device": []})
        ),
        "a checkpoint is a file": lambda half: (half / "checkpoints" / "step-00000009").write_text("x"),
        "a checkpoint is empty": lambda half: (half / "checkpoints" / "step-00000009").mkdir(),
        "a checkpoint has a huge number": lambda half: (half / "checkpoints" / f"step-{'9' * 200}").mkdir(),
        "a checkpoint has another alphabet's number": lambda half: (half / "checkpoints" / "step-٣").mkdir(),
        "a checkpoint is a link": lambda half: (half / "checkpoints" / "step-00000009").symlink_to("nowhere"),
        "a file of the user's": lambda half: (half / ".mine.part").write_text("mine"),
    }
    for what, one in changes.items():
        good = None if "folder" in what or "pipe" in what else True
        yield Case(
            f"resumed: {what}",
            ("train", "half", "-q", "--resume"),
            prepare=_unfinished(one),  # type: ignore[arg-type]
            may_change=("half/[!.]*", "half/checkpoints/*", "half/checkpoints/*/*"),
            good=good,
        )  # type: ignore[arg-type]
    yield from _states()
    yield Case(
        "a run that diverged before its first checkpoint does not block its folder",
        python=_DIVERGES,
        good=True,
        says="DivergedError",
    )


_STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "empty": lambda state: state.clear(),
    "a tally of another kind": lambda state: state["tally"].update(nope=1),
    "a tally of fewer than no steps": lambda state: state["tally"].update(steps=-1),
    "a tally of steps without end": lambda state: state["tally"].update(steps=10**400),
    "tokens without end": lambda state: state.update(tokens=10**400),
    "a batch that is none": lambda state: state.update(next_batch=-1),
    "a watch of fewer than none": lambda state: state["watch"].update(poor=-5),
    "a tally that is a list": lambda state: state.update(tally=[1]),
    "a tally of texts": lambda state: state["tally"].update(kl_of={"z": "x"}),
    "a watch of texts": lambda state: state["watch"].update(poor="x"),
    "tokens that are a text": lambda state: state.update(tokens="x"),
    "tokens that are true": lambda state: state.update(tokens=True),
    "tokens below nought": lambda state: state.update(tokens=-5),
    "no seconds": lambda state: state.pop("seconds"),
    "a schedule that is a list": lambda state: state.update(schedule=[]),
    "a schedule of another": lambda state: state.update(schedule={"beta": "x"}),
    "data that are a number": lambda state: state.update(data=5),
}


def _states() -> Iterator[Case]:
    """A newest checkpoint with right hashes and wrong values, and a good one before it; or no other."""
    for what, change in _STATES.items():

        def make(folder: Path, change: Callable[[dict[str, Any]], object] = change) -> None:
            for name in ("card.yaml", "model.safetensors"):
                (folder / "run" / name).unlink()
            path = sorted((folder / "run" / "checkpoints").iterdir())[-1] / "state.json"
            record = json.loads(path.read_text())
            del record["sha256"]
            change(record["state"])
            digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
            path.write_text(json.dumps({**record, "sha256": digest}))

        may = ("run/*", "run/checkpoints/*", "run/checkpoints/*/*")
        resume = ("train", "run", "-q", "--resume")
        yield Case(f"resumed: a state with {what}", resume, prepare=make, good=True, may_change=may, says="one before it")

        def alone(folder: Path, make: Callable[[Path], None] = make) -> None:
            make(folder)
            shutil.rmtree(sorted((folder / "run" / "checkpoints").iterdir())[0])

        yield Case(f"resumed: no state but one with {what}", resume, prepare=alone, says="no other checkpoint")


def _plugins() -> Iterator[Case]:
    here = {"PYTHONPATH": "site"}
    asks = {
        "plugins": ("plugins",),
        "parts": ("parts",),
        "zoo list": ("zoo", "list"),
        "generate": ("generate", "run", "x", "--max-tokens", "1"),
        "train": ("train", "my.yaml", "--dry-run"),
        "plugins --json": ("plugins", "--json"),
    }
    for what, source in _BROKEN.items():
        for ask, command in asks.items():
            yield Case(f"plugin {what}: {ask}", command, files=_plugin("odd_plugin", source), environment=here, good=True)
        yield Case(
            f"plugin {what}, strict",
            ("train", "my.yaml", "--dry-run"),
            files=_plugin("odd_plugin", source),
            environment={**here, "LATENTLM_STRICT_PLUGINS": "1"},
        )
    for name in ("train", "generate", "zoo", "eval", "plugins"):
        files = _plugin(
            "odd_plugin",
            "import typer\napp = typer.Typer()\n@app.command()\ndef f(): print('TAKEN OVER')\n",
            group="latentlm.commands",
            name=name,
            also=":app",
        )
        yield Case(
            f"a plugin's command {name}", (name, "--help"), files=files, environment=here, good=True, says="^(?!.*TAKEN)"
        )
        yield Case(
            f"a plugin's command {name}: what it does", (name,), files=files, environment=here, good=None, says="^(?!.*TAKEN)"
        )  # type: ignore[arg-type]
    for what, source in (
        ("raises", "raise RuntimeError('broken')"),
        ("is a number", "app = 5"),
        ("exits", "import sys\nsys.exit(3)"),
        ("interrupts", "raise KeyboardInterrupt"),
        ("raises what exits when shown", _BROKEN["raises what exits when shown"]),
        ("raises a BaseException", _BROKEN["raises a BaseException"]),
        ("is not there", None),
    ):
        files = _plugin("odd_plugin", source, group="latentlm.commands", name="odd", also=":app")
        yield Case(f"a command that {what}", ("odd",), files=files, environment=here, says="of odd_plugin")
        yield Case(f"beside a command that {what}", ("--help",), files=files, environment=here, good=True)
    source = "import typer\napp = typer.Typer()\n@app.command()\ndef f(): print('{0}')\n"
    group = {"group": "latentlm.commands", "name": "odd", "also": ":app"}
    offered = [_plugin(f"odd_{name}", source.format(name), **group) for name in ("a", "b", "c")]
    for count in (2, 3):
        yield Case(
            f"a command of {count} distributions",
            ("odd",),
            files={name: text for files in offered[:count] for name, text in files.items()},
            environment=here,
            says="odd_a and odd_b" + " and odd_c" * (count - 2),
        )
    for what, name in {"a lock of an editor": ".#x.py", "no text": "\udcff.py", "a folder": "x.py", "a pipe": "y.py"}.items():
        yield Case(
            f"a plugin beside {what}",
            ("train", "my.yaml", "-q", "--out", "new", "plugins=[odd]"),
            files={
                "site/odd_package-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: odd_package\nVersion: 1\n",
                "site/odd_package-1.dist-info/entry_points.txt": "[latentlm]\nodd = odd_package\n",
                "site/odd_package/__init__.py": _PART.format("x"),
            },
            prepare=lambda folder, name=name, what=what: _beside(folder / "site" / "odd_package" / name, what),
            environment=here,
            good=True,
        )
    both = {**_plugin("odd_one", _PART.format("One"), name="same"), **_plugin("odd_two", _PART.format("Two"), name="same")}
    for ask, command in asks.items():
        yield Case(f"two plugins of one name: {ask}", command, files=both, environment=here, good=True)
    yield Case(
        "two plugins of one name, one part asked for",
        ("parts", "describe", "mine-one"),
        files=both,
        environment=here,
        good=None,
    )  # type: ignore[arg-type]
    broken = {"site/odd-1.dist-info/METADATA": "\xff\xfe", "site/odd-1.dist-info/entry_points.txt": "[latentlm\nx"}
    yield Case("metadata that are damaged", ("plugins",), files=broken, environment=here, good=True)
    yield Case(
        "an entry point that is damaged",
        ("plugins",),
        environment=here,
        good=True,
        files={
            "site/odd-1.dist-info/METADATA": "Name: odd\nVersion: 1\n",
            "site/odd-1.dist-info/entry_points.txt": "[latentlm]\nx = : :\ny = a b c\n",
        },
    )


def _beside(path: Path, what: str) -> None:
    """What an editor or a user leaves in a package."""
    make: dict[str, Callable[[], object]] = {
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "no text": lambda: path.write_text("x = 1"),
    }
    make.get(what, lambda: path.symlink_to("user@host.4711"))()


_PART = """from latentlm.plugins.hookspecs import hookimpl
from latentlm.interface import KLSchedule
latentlm_contract = 2
@hookimpl
def latentlm_parts(): return {{}}
name = "{0}"
"""
_DIVERGES = """from pathlib import Path
from latentlm.training import train
from latentlm.training.recipes import load_recipe
try:
    bad = ["train.learning_rate=1e30", "train.steps=50", "train.save_every=50"]
    train(load_recipe("my.yaml", bad), out=Path("new"), progress=False)
except Exception as error:
    print(type(error).__name__)
train(load_recipe("my.yaml"), out=Path("new"), progress=False)
"""
