"""Standard streams that are closed, full or gone, and Ctrl-C in the middle of an import: a message or none, nothing lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hostile.harness import Case

_STUDY = Path(__file__).parents[2] / "studies" / "demo.yaml"
_SMALL = ("--documents", "2", "--document-bytes", "16", "--samples", "2")
COMMANDS: dict[str, tuple[str, ...]] = {
    "help": ("--help",),
    "zoo list": ("zoo", "list"),
    "zoo list as JSON": ("zoo", "list", "--json"),
    "zoo describe": ("zoo", "describe", "run"),
    "zoo add": ("zoo", "add", "run", "--to", "shelf"),
    "plugins": ("plugins",),
    "parts": ("parts",),
    "parts describe": ("parts", "describe", "free"),
    "parts of a recipe": ("parts", "for", "my.yaml", "prior"),
    "new-plugin": ("new-plugin", "mine", "--out", "new"),
    "train, planned": ("train", "my.yaml", "--dry-run"),
    "train": ("train", "my.yaml", "--out", "new"),
    "compare": ("compare", "run", "--tasks", "none", *_SMALL, "--out", "new"),
    "compare, logged": ("compare", "logged/one", "logged/two", "--out", "new"),
    "generate": ("generate", "run", "x", "--max-tokens", "2", "--save-latents", "new.safetensors"),
    "generate as JSON": ("generate", "run", "x", "--max-tokens", "2", "--json", "--save-latents", "new.safetensors"),
    "score": ("score", "run", "notes.txt", "--samples", "2"),
    "score of standard input": ("score", "run", "-", "--samples", "2"),
    "eval": ("eval", "run", "--tasks", "latentlm_copy", "--limit", "2", "--samples", "2", "--output", "new.json"),
    "eval's tasks": ("eval", "--task-path"),
    "reproduce": ("reproduce", "synthetic", "--only", "vanilla-*", "--groups", "2", "--out", "new"),
    "study": ("study", str(_STUDY), "--dry-run"),
    "diversity": ("diversity", "free-tiny", "--task", "automaton", "--dry-run", "--out", "new"),
    "probe": (
        "probe",
        "run",
        "--attribute",
        "synthetic:reviews",
        "--texts",
        "100",
        "--pairs",
        "2",
        "--groups",
        "2",
        "--out",
        "new",
    ),
    "schedules": ("schedules", "list"),
}
"""One or more of every command."""
_MAKES = {
    "zoo add": ("shelf/run/card.yaml",),
    "new-plugin": ("new/pyproject.toml",),
    "train": ("new/card.yaml",),
    "compare": ("new/report.html",),
    "compare, logged": ("new/report.html",),
    "generate": ("new.safetensors",),
    "generate as JSON": ("new.safetensors",),
    "eval": ("new.json",),
    "probe": ("new/probe.json",),
}
"""What is made whether or not it can be told."""
_WAYS: dict[str, dict[int, str]] = {
    "no input": {0: "closed"},
    "no output": {1: "closed"},
    "no errors": {2: "closed"},
    "no streams": {0: "closed", 1: "closed", 2: "closed"},
    "input that cannot be read": {0: "unreadable"},
    "full output": {1: "full"},
    "full errors": {2: "full"},
    "full streams": {1: "full", 2: "full"},
    "no reader": {1: "gone"},
    "no readers": {1: "gone", 2: "gone"},
    "a reader who is late": {1: "stuck", 2: "stuck"},
}
_INTERRUPTED = """
import os, signal, subprocess, sys
lines = '''
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[0]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from latentlm.cli import main
sys.argv = [{module!r}, *{argv!r}]
main()
'''
done = subprocess.run([sys.executable, '-c', lines], capture_output=True, text=True)
assert (done.returncode, done.stderr) == (130, 'stopped.\\n'), (done.returncode, done.stderr)
sys.exit('error: ' + done.stderr)
"""


def cases() -> Iterator[Case]:
    """Of every command, with every stream."""
    for name, argv in COMMANDS.items():
        for way, streams in _WAYS.items():
            yield Case(f"{name}: {way}", argv, streams=streams, stdin=b"a text", good=None, makes=_MAKES.get(name, ()))
    for module in (
        "typer",
        "latentlm.cli._streams",
        "latentlm.cli.commands",
        "latentlm.cli.generate",
        "torch",
        "numpy",
        "latentlm.zoo.loading",
    ):
        lines = _INTERRUPTED.format(module=module, argv=["generate", "run", "x", "--max-tokens", "2"])
        yield Case(f"Ctrl-C while {module} is imported", python=lines)
