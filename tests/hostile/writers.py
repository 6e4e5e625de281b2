"""Nothing is destroyed: a command that writes replaces its own kind, and follows no link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hostile.base import recipe
from hostile.harness import Case

_GENERATE = ("generate", "run", "The", "--max-tokens", "2", "--save-latents")


def _link(name: str, target: str) -> object:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return make


def _device(name: str) -> object:
    def make(folder: Path) -> None:
        try:
            os.mknod(folder / name, 0o20666, os.makedev(1, 3))
        except PermissionError:  # no root: a socket's name is as little a file
            os.mkfifo(folder / name)

    return make


def _fifo(name: str) -> object:
    return lambda folder: os.mkfifo(folder / name)


def cases() -> Iterator[Case]:
    """Of every writer."""
    for target in (
        "notes.txt",
        "run/model.safetensors",
        "run/card.yaml",
        "my.yaml",
        "texts/0.txt",
        "texts",
        "llama/model.safetensors",
    ):
        yield Case(f"latents over {target}", (*_GENERATE, target))
    yield Case("latents over latents", (*_GENERATE, "z.safetensors"), good=True, may_change=("z.safetensors",))
    yield Case("latents over a device", (*_GENERATE, "null"), prepare=_device("null"))  # type: ignore[arg-type]
    yield Case("latents over a pipe", (*_GENERATE, "pipe"), prepare=_fifo("pipe"))  # type: ignore[arg-type]
    yield Case("latents through a link", (*_GENERATE, "link"), prepare=_link("link", "notes.txt"))  # type: ignore[arg-type]
    yield Case("latents through a link to nothing", (*_GENERATE, "link"), prepare=_link("link", "texts/new"))  # type: ignore[arg-type]

    add = ("zoo", "add", "run", "--to", ".")
    for name in ("texts", "llama", "notes.txt", "run"):
        yield Case(f"card over {name}", (*add, "--name", name, "--replace"))
    yield Case("card over a folder of notes", (*add, "--name", "mine", "--replace"), files={"mine/notes.txt": "mine"})
    yield Case("card over a link to a folder", (*add, "--name", "mine", "--replace"), prepare=_link("mine", "texts"))  # type: ignore[arg-type]
    yield Case(
        "card over a card with notes beside",
        (*add, "--name", "mine", "--replace"),
        may_change=("mine/card.yaml",),
        files={
            "mine/card.yaml": "card_version: 1\nname: mine\nstatus: architecture\nmodel: {decoder: vanilla}\n",
            "mine/notes.txt": "x",
        },
    )
    yield Case("card on a shelf beside", ("zoo", "add", "run", "--to", "shelf"), good=True)

    train = ("train", "my.yaml", "-q", "--out", "new")
    for hidden in (".notes.part", ".tokenizer.json.part", ".model.safetensors.part", ".recipe.yaml.part"):
        yield Case(f"run beside {hidden}", train, files={f"new/{hidden}": "mine"}, good=True)
    for name in (
        "tokenizer.json",
        "tokenizer.json.part",
        "recipe.yaml",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "card.yaml",
        ".lock",
        "checkpoints",
        ".model.safetensors.part",
        ".card.yaml.part",
        "tokenizer_config.json",
    ):
        target = "../texts" if name == "checkpoints" else "../notes.txt"
        # refused or done, the file that the link leads to stays as it is
        yield Case(
            f"run through the link {name}", train, prepare=_link(f"new/{name}", target), good=None, may_change=("new/*",)
        )  # type: ignore[arg-type]
    for name in ("notes.txt", "texts", "llama", "my.yaml", "z.safetensors"):
        yield Case(f"run into {name}", ("train", "my.yaml", "-q", "--out", name))
    yield Case("run over a run", ("train", "my.yaml", "-q", "--out", "run"))
    yield Case("plugin over texts", ("new-plugin", "mine", "--out", "texts"))
    yield Case(
        "plugin over a folder", ("new-plugin", "mine"), files={"mine/notes.txt": "mine", "latentlm-mine/notes.txt": "mine"}
    )
    for name in ("notes.txt", "z.safetensors", "texts", "run/model.safetensors", "run/card.yaml"):
        yield Case(
            f"evaluation over {name}",
            ("eval", "run", "--tasks", "latentlm_copy", "--limit", "1", "--samples", "1", "--output", name),
        )
    yield Case(
        "evaluation over a device",
        ("eval", "run", "--tasks", "latentlm_copy", "--limit", "1", "--samples", "1", "--output", "null"),
        prepare=_device("null"),
    )  # type: ignore[arg-type]
    compare = ("compare", "run", "--tasks", "none", "--documents", "2", "--document-bytes", "16", "--samples", "2", "--out")
    for name in ("notes.txt", "my.yaml"):
        yield Case(f"comparison over {name}", (*compare, name))
    yield Case("comparison into a folder of others", (*compare, "mine"), files={"mine/report.html": "my own report"})
    yield Case(
        "figure into a folder of others", ("reproduce", "synthetic", "--out", "mine"), files={"mine/synthetic.json": "my own"}
    )
    yield Case(
        "lines of a study over notes",
        ("study", "study.yaml", "--results", "notes.txt", "--table"),
        files={"study.yaml": "name: s\nbase: my.yaml\narms: {a: {}}\n"},
    )
    yield Case(
        "a run through a folder that is a link",
        ("train", "my.yaml", "-q", "--out", "link/new"),
        good=True,
        prepare=_link("link", "texts"),
        files={"my.yaml": recipe(data__path="run/recipe.yaml")} if False else {},
    )  # type: ignore[arg-type]
