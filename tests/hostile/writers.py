"""Nothing is destroyed: a command that writes replaces its own kind, and follows no link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.base import recipe
from hostile.harness import Case

_GENERATE = ("generate", "run", "The", "--max-tokens", "2", "--save-latents")


def _link(name: str, target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return make


def _device(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        try:
            os.mknod(folder / name, 0o20666, os.makedev(1, 3))
        except PermissionError:  # no root: a socket's name is as little a file
            os.mkfifo(folder / name)

    return make


def _pipe(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / name)

    return make


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
    yield Case("latents over a device", (*_GENERATE, "null"), prepare=_device("null"))
    yield Case("latents over a pipe", (*_GENERATE, "pipe"), prepare=_pipe("pipe"))
    for path in ("/proc/x", "/sys/x"):  # whose folders say to root that it may write there
        yield Case(f"latents in {path}", (*_GENERATE, path), says="nothing can be made there|permission")
    yield Case("latents through a link", (*_GENERATE, "link"), prepare=_link("link", "notes.txt"))
    yield Case("latents through a link to nothing", (*_GENERATE, "link"), prepare=_link("link", "texts/new"))

    add = ("zoo", "add", "run", "--to", ".")
    for name in ("texts", "llama", "notes.txt", "run"):
        yield Case(f"card over {name}", (*add, "--name", name, "--replace"))
    yield Case("card over a folder of notes", (*add, "--name", "mine", "--replace"), files={"mine/notes.txt": "mine"})
    yield Case("card over a link to a folder", (*add, "--name", "mine", "--replace"), prepare=_link("mine", "texts"))
    yield Case(
        "card over a card with notes beside",
        (*add, "--name", "mine", "--replace"),
        may_change=("mine/card.yaml",),
        files={
            "mine/card.yaml": "card_version: 1\nname: mine\nstatus: architecture\nmodel: {decoder: vanilla}\n",
            "mine/notes.txt": "x",
        },
    )
    yield from _claimed()
    yield Case("card on a shelf beside", ("zoo", "add", "run", "--to", "shelf"), good=True)

    train = ("train", "my.yaml", "-q", "--out", "new")
    for hidden in (".notes.part", ".tokenizer.json.part", ".model.safetensors.part", ".recipe.yaml.part"):
        yield Case(f"run beside {hidden}", train, files={f"new/{hidden}": "mine"}, good=True)
    yield from _runs(train)
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
    )
    yield from _folders()
    yield from _studies()
    yield from _names()
    yield from _permissions()


def _claimed() -> Iterator[Case]:
    """A card that says of files of others that they are its own, and a lock that says it of a folder."""
    card = "card_version: 1\nname: mine\nstatus: architecture\nmodel: {decoder: vanilla}\n"
    weights = "weights: {uri: thesis.pdf, size: 1, sha256: " + "a" * 64 + "}\n"
    for what, more in {
        "tokenizer": "tokenizer: thesis.pdf\n",
        "tokenizer, by a path": "tokenizer: ./thesis.pdf\n",
        "weights": weights,
    }.items():
        said = (card.replace("architecture", "trained") if what == "weights" else card) + more
        yield Case(
            f"card over a card that claims notes as its {what}",
            ("zoo", "add", "run", "--to", "shelf", "--name", "mine", "--replace"),
            files={"shelf/mine/card.yaml": said, "shelf/mine/thesis.pdf": "mine"},
            says="is not a card's folder|thesis.pdf",
        )
    begun = {"manifest.json": "mine", "metrics.jsonl": "notes", "tokenizer.json": "mine", "recipe.yaml": recipe() + "# mine\n"}
    for what, names in {**{name: (name,) for name in begun}, "all of them": tuple(begun)}.items():
        files: dict[str, str] = {f"new/{name}": begun[name] for name in names}
        for lock in ("", "locked"):
            here = {**files, "new/.lock": ""} if lock else files
            for option in ((), ("--resume",)):
                yield Case(
                    f"run over another's {what} {lock} {' '.join(option)}".rstrip(),
                    ("train", "my.yaml", "-q", "--out", "new", *option),
                    files=here,
                    says="is not empty and no run",
                )
    for option in ((), ("--resume",)):
        yield Case(
            f"run of a recipe in its own folder {' '.join(option)}".rstrip(),
            ("train", "new/recipe.yaml", "-q", "--out", "new", *option),
            files={"new/recipe.yaml": recipe() + "# mine\n", "new/.lock": ""},
            says="is not empty and no run",
        )
    yield Case(
        "run beside another program's lock",
        ("train", "my.yaml", "-q", "--out", "new"),
        files={"new/.lock": "4711\n"},
        says="is not the lock of a run",
    )


_KEPT_STILL = "stays as it is|is there and not of this command|is not |cannot write"
"""What is said of what is not written over."""


def _runs(train: tuple[str, ...]) -> Iterator[Case]:
    """Links and pipes where a run writes: before it is begun, and in one that is resumed."""
    makers = {"link": _link, "pipe": lambda name, target: _pipe(name)}
    for kind, make in makers.items():
        for name in (".model.safetensors.part", ".card.yaml.part"):
            yield Case(f"run beside the {kind} {name}", train, prepare=make(f"new/{name}", "../notes.txt"), good=True)
        yield Case(f"run locked by the {kind}", train, prepare=make("new/.lock", "../notes.txt"), says="stays as it is")
        for name in (*_WRITTEN, "checkpoints"):
            target = "../texts" if name == "checkpoints" else "../notes.txt"
            yield Case(f"run through the {kind} {name}", train, prepare=make(f"new/{name}", target), says="choose|Choose")
        for name in (*_WRITTEN, ".lock", *(("checkpoints", "tensorboard") if kind == "pipe" else ())):
            yield Case(
                f"resumed run through the {kind} {name}",
                ("train", "half", "-q", "--resume"),
                prepare=_half(name, make(name, "../notes.txt")),
                # A link to notes is read as what it stands for; a card there is one of a finished run.
                says="" if name in ("recipe.yaml", "card.yaml") else "stays as it is",
            )
    own = "half/checkpoints/step-00000000/notes.txt"
    yield Case(
        "resumed run beside a folder called like a checkpoint",
        ("train", "half", "-q", "--resume", "train.keep=1"),
        prepare=_half("", lambda half: _mine(half / "checkpoints" / "step-00000000")),
        good=True,
        may_change=("half/[!.]*", "half/checkpoints/step-0000000[12]*", "half/checkpoints/step-0000000[12]*/*"),
    )
    yield Case(
        "run into a folder with checkpoints of others",
        ("train", "my.yaml", "-q", "--out", "half"),
        files={own: "mine", "half/.lock": ""},
        says="is not empty and no run",
    )
    yield Case("run in a folder that is a link", (*train[:-1], "link/new"), good=True, prepare=_link("link", "texts"))


_WRITTEN = (
    "tokenizer.json",
    "tokenizer_config.json",
    "recipe.yaml",
    "manifest.json",
    "metrics.jsonl",
    "model.safetensors",
    "card.yaml",
)
"""The files that a run writes."""


def _mine(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


def _half(name: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A run that was stopped at step 1 of 2, one of its files put away, and something done to it."""

    def make(folder: Path) -> None:
        half = folder / "half"
        shutil.copytree(folder / "run", half)
        for done in ("card.yaml", "model.safetensors"):
            (half / done).unlink()
        shutil.rmtree(sorted((half / "checkpoints").iterdir())[-1])
        if name and (half / name).exists():
            (half / name).rename(folder / "away")
        change(half)

    return make


_OUTPUTS = {
    "comparison": (
        ("compare", "run", "--tasks", "none", "--documents", "2", "--document-bytes", "16", "--samples", "2"),
        "report.html",
    ),
    "figure": (("reproduce", "synthetic"), "synthetic.json"),
    "probe": (("probe", "run", "--attribute", "synthetic:reviews", "--texts", "400", "--max-tokens", "4"), "probe.json"),
    "diversity": (("diversity", "run", "--task", "synthetic:sums,shown=6"), "diversity.json"),
    "plot": (("schedules", "plot", "--steps", "2"), "schedules.json"),
    "revival": (("schedules", "revive", "--steps", "2"), "revive.json"),
}


def _folders() -> Iterator[Case]:
    """Commands that write several files into a folder."""
    for what, (command, file) in _OUTPUTS.items():
        out = (*command, "--out")
        yield Case(f"{what} over a file", (*out, "notes.txt"), says=_KEPT_STILL)
        yield Case(f"{what} below a file", (*out, "notes.txt/new"), says=_KEPT_STILL)
        yield Case(f"{what} over a pipe", (*out, "pipe"), prepare=_pipe("pipe"), says=_KEPT_STILL)
        yield Case(f"{what} into a folder of others", (*out, "mine"), files={f"mine/{file}": "my own"}, says=_KEPT_STILL)
        yield Case(f"{what} through a link", (*out, "mine"), prepare=_link(f"mine/{file}", "../notes.txt"), says=_KEPT_STILL)
        yield Case(f"{what} through a pipe", (*out, "mine"), prepare=_pipe(f"mine/{file}"), says=_KEPT_STILL)
    tasks = ("compare", "run", "--tasks", "latentlm_copy", "--limit", "1", "--documents", "2", "--out", "mine")
    for name, target in (("mine/evaluations", "../texts"), ("mine/evaluations/run", "../../texts")):
        for what, make in {"a link": _link(name, target), "a pipe": _pipe(name)}.items():
            yield Case(f"evaluations of a comparison: {name} is {what}", tasks, prepare=make, says="stays as it is")
        yield Case(f"evaluations of a comparison: {name} is a file", tasks, files={name: "mine"}, says="stays as it is")
    for what in ("plot", "revival"):
        command = (*_OUTPUTS[what][0], "--schedules", "constant", "--out", "mine")
        yield Case(f"{what} over a text of others", command, files={"mine/topics.jsonl": "my own"}, says=_KEPT_STILL)
        yield Case(
            f"{what} through a link of a text", command, prepare=_link("mine/topics.jsonl", "../notes.txt"), says=_KEPT_STILL
        )
    for image in ("notes.svg", "notes.txt/new.svg"):
        command = ("schedules", "plot", "--schedules", "constant", "--steps", "2", "--out", "new", "--image", image)
        yield Case(f"plot with the image {image}", command, files={"notes.svg": "mine"}, says=_KEPT_STILL)
    shipped = ("reproduce", "synthetic", "--train", "--only", "vanilla*", "train.steps=2", "--runs")
    yield Case("figure's runs over notes", (*shipped, "notes.txt"), says="cannot write to notes.txt")
    yield Case("figure's lines over notes", (*shipped, "new", "--results", "notes.txt"), says="notes.txt, line 1, is no line")


_STUDY = "name: s\narms: {a: {recipe: my.yaml}}\nmeasure: {texts: 2, bytes: 8, max_samples: 32}\n"
_LINE = '{"study": "s", "arm": "a", "seed": 0, "facts": "f"}\n'


def _studies() -> Iterator[Case]:
    """The lines of a study, and the logs of its runs."""
    study = {"study.yaml": _STUDY}
    command = ("study", "study.yaml", "--jobs", "1", "--out", "runs")
    yield Case("study", command, files=study, good=True, says="vs|bits/byte")
    texts = {
        "notes": "my notes\n",
        "numbers": "1\n2\n",
        "lines of others": '{"text": "a", "label": 1}\n',
        "lines of others after its own": _LINE + '{"text": "a", "label": 1}\n',
        "a line with another's keys": '{"study": 1, "arm": null, "seed": "x", "facts": []}\n',
        "bytes": b"\xff\xfe\n",
    }
    for what, text in texts.items():
        for option in ((), ("--table",), ("--dry-run",)):
            yield Case(
                f"lines of a study over {what} {' '.join(option)}".rstrip(),
                (*command, "--results", "lines.jsonl", *option),
                files={**study, "lines.jsonl": text},
                says="is no line of a study|no text in UTF-8",
            )
    begun = _LINE + '{"study": "s", "ar'
    yield Case(
        "lines of a study, one cut short",
        (*command, "--results", "lines.jsonl"),
        files={**study, "lines.jsonl": begun},
        good=True,
        may_change=("lines.jsonl",),
    )
    makers = {
        "a link": _link("lines.jsonl", "kept.jsonl"),
        "a link to nothing": _link("lines.jsonl", "new"),
        "a pipe": _pipe("lines.jsonl"),
    }
    for what, make in makers.items():
        yield Case(
            f"lines of a study over {what}",
            (*command, "--results", "lines.jsonl"),
            files={**study, "kept.jsonl": _LINE},
            prepare=make,
            says="is a link|pipe|does not exist",
        )
    for what, path in {
        "a folder": "texts",
        "a missing folder": "missing/lines.jsonl",
        "below a file": "notes.txt/lines.jsonl",
    }.items():
        yield Case(f"lines of a study: {what}", (*command, "--results", path), files=study, says="is a folder|no folder")
    yield Case("runs of a study over notes", (*command[:-1], "notes.txt"), files=study, says="stands where a folder is needed")
    yield Case("log of a study over notes", command, files={**study, "runs/a-0.log": "mine"}, says="is not a log of latentlm")
    yield Case(
        "log of a study through a link", command, files=study, prepare=_link("runs/a-0.log", "../notes.txt"), says="is a link"
    )


def _names() -> Iterator[Case]:
    """Names that a file system takes, and one that none does."""
    for name in (".mode", "new", "old", "[a]*", "\U0001f642" * 62, "x" * 255):
        yield Case(f"latents called {name[:20]}", (*_GENERATE, name), good=True)
        yield Case(f"a run called {name[:20]}, by --out", ("train", "my.yaml", "-q", "--out", f"runs/{name}"), good=True)
    yield Case("latents with a name too long", (*_GENERATE, "\u4f60" * 200), says="name is too long")
    yield Case("a run with a name too long", ("train", "my.yaml", "-q", "--out", "\u4f60" * 200), says="too long")


def _permissions() -> Iterator[Case]:
    """Folders that may be read alone, or not even that: said before the work, not after."""
    study = {"study.yaml": _STUDY}
    evaluate = ("eval", "run", "--tasks", "latentlm_copy", "--limit", "1", "--samples", "1")
    commands = {
        "latents": (*_GENERATE, "texts/z"),
        "run": ("train", "my.yaml", "-q", "--out", "texts"),
        "run below": ("train", "my.yaml", "-q", "--out", "texts/new"),
        "card": ("zoo", "add", "run", "--to", "texts"),
        "evaluation": (*evaluate, "--output", "texts/new.json"),
        "answers": (*evaluate, "--use-cache", "texts/kept"),
        "lines of a study": ("study", "study.yaml", "--out", "new", "--results", "texts/lines.jsonl"),
        "runs of a study": ("study", "study.yaml", "--out", "texts"),
        "plugin": ("new-plugin", "mine", "--out", "texts/new"),
        **{what: (*command, "--out", "texts/new") for what, (command, _) in _OUTPUTS.items()},
    }
    for mode in (0o555, 0o000):
        for what, command in commands.items():
            yield Case(
                f"{what} in a folder of mode {mode:03o}",
                command,
                files=study,
                prepare=lambda folder, mode=mode: (folder / "texts").chmod(mode),
                plain_user=True,
                says="[Pp]ermission|is not empty and no run|is not writable|is not readable",
            )
    for name, mode in (
        ("", 0o555),
        ("checkpoints", 0o555),
        ("checkpoints/step-00000001", 0o000),
        ("metrics.jsonl", 0o000),
        (".lock", 0o000),
    ):
        yield Case(
            f"resumed run, {name or 'its folder'} of mode {mode:03o}",
            ("train", "half", "-q", "--resume"),
            prepare=_half("", lambda half, name=name, mode=mode: (half / name).chmod(mode)),
            plain_user=True,
            may_change=("half/manifest.json",),
            says="permission",
        )
