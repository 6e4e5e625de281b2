"""Make the data of the shipped tasks: held-out text of Python's standard library, and generated problems.

    python -m latentlm_evals.make_tasks              # rewrite tasks/*.jsonl (the shipped files were made on Python 3.11.7)

The text comes from the modules of `tasks/sources.txt`, which the `stdlib` training corpus always holds out; a passage that
occurs in any other file of the library is dropped. Everything is short (`LONGEST` bytes for a context with its continuation),
so that byte models with 256 tokens of context see whole items. The choice is by a fixed seed.

* next_line.jsonl  multiple choice: which of four lines follows this code? Wrong options are lines of *other* held-out files,
  with the same indentation and about the same length.
* heldout.jsonl    passages for rolling likelihood.
* copy.jsonl       generated: an assignment whose value is a name seen a line before.
* brackets.jsonl   generated: close what was opened, in the right order.
"""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latentlm_evals.suites import task_path

SEED = 0
LONGEST = 170
"""Bytes of a context with its longest continuation."""
ITEMS = {"next_line": 128, "heldout": 160, "copy": 120, "brackets": 120}
OPTIONS = 4
PASSAGE = 240
"""Bytes of a passage for rolling likelihood, at most: one window of a 256-token byte model, so that every decoder is scored
with the same context, whatever its windows are."""
WORDS = (
    "anchor", "battery", "cable", "delta", "engine", "filter", "gravity", "handle", "index", "jacket", "kernel",
    "ladder", "margin", "needle", "offset", "panel", "quota", "ribbon", "sample", "target", "uplink", "vector",
    "window", "yield", "zone", "bridge", "cursor", "domain", "envelope", "folder",
)


@dataclass(frozen=True)
class Line:
    """A line of a source file and where it stands."""

    source: str
    number: int
    text: str

    @property
    def indent(self) -> int:
        """Spaces before the first word."""
        return len(self.text) - len(self.text.lstrip())


def read_sources() -> dict[str, list[str]]:
    """Lines of each held-out module of the running Python, ASCII only."""
    library = Path(sysconfig.get_path("stdlib"))
    lines = (task_path() / "sources.txt").read_text(encoding="utf-8").split("\n")
    names = [name for name in lines if name and not name.startswith("#")]
    texts = {name: (library / name).read_text(encoding="utf-8") for name in names}
    return {name: text.split("\n") for name, text in texts.items() if text.isascii()}


def read_rest(held_out: Iterable[str]) -> str:
    """All other modules of the library in one string, to look for passages that are not really held out."""
    library = Path(sysconfig.get_path("stdlib"))
    skip = set(held_out)
    files = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    rest = (path for path in files if path.relative_to(library).as_posix() not in skip)
    return "\0".join(path.read_text(encoding="utf-8", errors="replace") for path in rest)


def next_line(sources: dict[str, list[str]], rest: str, rng: random.Random) -> Iterator[dict[str, object]]:
    """Multiple-choice items: a context, four options that each begin with a line break, the index of the true one."""
    lines = [Line(name, number, text) for name, texts in sources.items() for number, text in enumerate(texts)]
    candidates = [line for line in lines if len(line.text.strip()) >= 16 and len(line.text) <= 64 and line.number >= 4]
    rng.shuffle(candidates)
    for line in candidates:
        context = _context(sources[line.source], line.number, LONGEST - 66)
        if context is None or f"{context}\n{line.text}" in rest:
            continue
        wrong = _distractors(line, candidates, rng)
        if wrong is None:
            continue
        options = [line.text, *wrong]
        rng.shuffle(options)
        choices = [f"\n{option}" for option in options]
        yield {"context": context, "choices": choices, "answer": options.index(line.text), "source": line.source}


def _context(texts: list[str], number: int, longest: int) -> str | None:
    """The lines before `number`, as many as fit, at least two and 48 bytes; not ending in a blank line (lm-eval would move
    the break into the continuation)."""
    start = number
    while start > 0 and sum(len(text) + 1 for text in texts[start - 1 : number]) <= longest:
        start -= 1
    context = "\n".join(texts[start:number]).lstrip("\n")
    return context if number - start >= 2 and len(context) >= 48 and context == context.rstrip() else None


def _distractors(line: Line, candidates: list[Line], rng: random.Random) -> list[str] | None:
    """Three lines of other files, of the same indentation and within a quarter of the length; None where there are too few."""
    length = len(line.text)
    near = {
        other.text
        for other in candidates
        if other.source != line.source and other.indent == line.indent and abs(len(other.text) - length) <= length // 4
    } - {line.text}
    return rng.sample(sorted(near), OPTIONS - 1) if len(near) >= OPTIONS - 1 else None


def heldout(sources: dict[str, list[str]], rest: str, rng: random.Random) -> Iterator[dict[str, object]]:
    """Passages of at most `PASSAGE` bytes that begin and end with a line; none overlaps another."""
    passages: list[dict[str, object]] = []
    for name, texts in sources.items():
        start = 0
        while start < len(texts):
            stop = start
            while stop < len(texts) and sum(len(text) + 1 for text in texts[start : stop + 1]) <= PASSAGE:
                stop += 1
            text = "\n".join(texts[start:stop]).strip("\n")
            if len(text) >= PASSAGE * 0.8 and text not in rest:
                passages.append({"text": text + "\n", "source": name})
            start = max(stop, start + 1)
    rng.shuffle(passages)
    yield from passages


def copy(rng: random.Random) -> Iterator[dict[str, object]]:
    """`self.b = ` after `def __init__(self, a, b)` and `self.a = a`: the answer is the name just written."""
    while True:
        first, second, third = rng.sample(WORDS, 3)
        context = (
            f"class {first.capitalize()}{third.capitalize()}:\n"
            f"    def __init__(self, {first}, {second}, {third}):\n"
            f"        self.{first} = {first}\n"
            f"        self.{second} = {second}\n"
            f"        self.{third} ="
        )
        yield {"context": context, "answer": third}


def brackets(rng: random.Random) -> Iterator[dict[str, object]]:
    """Close what was opened; half of the items nest two deep, half three deep."""
    pairs = {"(": ")", "[": "]", "{": "}"}
    examples = "a = (1)\nb = [(1)]\nc = {[(1)]}\nd = ([1])\n"
    for number in _forever():
        opened = [rng.choice("([{") for _ in range(2 + number % 2)]
        inner = rng.randrange(1, 100)
        context = f"{examples}{rng.choice(WORDS)} = {''.join(opened)}{inner}"
        yield {"context": context, "answer": "".join(pairs[mark] for mark in reversed(opened))}


def _forever() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def write(name: str, items: Iterator[dict[str, object]]) -> None:
    """The first `ITEMS[name]` different items, one JSON object a line."""
    kept: dict[str, None] = {}
    for item in items:
        kept[json.dumps(item)] = None
        if len(kept) == ITEMS[name]:
            break
    (task_path() / f"{name}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")


def main() -> None:
    """Rewrite the data files."""
    sources = read_sources()
    rest = read_rest(sources)
    write("next_line", next_line(sources, rest, random.Random(SEED)))
    write("heldout", heldout(sources, rest, random.Random(SEED)))
    write("copy", copy(random.Random(SEED)))
    write("brackets", brackets(random.Random(SEED)))


if __name__ == "__main__":
    main()
