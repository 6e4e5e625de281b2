"""Terminals, pages and plots: text of others is shown, not obeyed; any encoding will do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hostile.base import recipe
from hostile.harness import Case
from hostile.streams import COMMANDS
from latentlm.errors import shown

_EVIL = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202eback\r"
_SPELT = '"\\e]0;owned\\a\\e[31mred\\x9b2J\\u202eback\\r"'


_TERMINALS: tuple[dict[str, str], ...] = (
    *({"PYTHONIOENCODING": encoding} for encoding in ("ascii", "ascii:surrogateescape", "latin-1", "utf-16", "utf-7")),
    *({"COLUMNS": columns} for columns in ("1", "0", "-1", "1000000", "x")),
    {"LINES": "1", "COLUMNS": "1", "TERM": "dumb"},
    {"NO_COLOR": "1"},
    {"FORCE_COLOR": "1", "TERM": "dumb"},
    {"TERM": ""},
    {"TERM": "nothing", "COLORTERM": "truecolor"},
)


def _arguments() -> Iterator[tuple[str, ...]]:
    yield ("train", _EVIL)
    yield ("train", "my.yaml", "--dry-run", f"{_EVIL}=5")
    yield ("train", "my.yaml", "--dry-run", f"train.steps={_EVIL}")
    yield ("train", "my.yaml", "--dry-run", f"model.decoder={_EVIL}")
    yield ("train", "my.yaml", "--dry-run", f"data.path={_EVIL}")
    yield ("train", "my.yaml", "--dry-run", f"train.{_EVIL}=5")
    yield ("train", "my.yaml", "--out", f"run/card.yaml/{_EVIL}")
    yield (_EVIL,)
    yield ("zoo", _EVIL)
    yield ("zoo", "describe", _EVIL)
    yield ("zoo", "add", _EVIL)
    yield ("zoo", "add", "run", "--name", _EVIL)
    yield ("zoo", "add", "run", "--to", f"notes.txt/{_EVIL}")
    yield ("generate", _EVIL, "x")
    yield ("generate", "run", "x", f"--{_EVIL}")
    yield ("generate", "run", "x", "--max-tokens", _EVIL)
    yield ("generate", "run", "x", "--latents", _EVIL)
    yield ("generate", "run", "x", "--load-latents", _EVIL)
    yield ("generate", "run", "x", "--save-latents", f"notes.txt/{_EVIL}")
    yield ("generate", "run", "x", "--device", _EVIL)
    yield ("score", "run", _EVIL)
    yield ("score", "run", "notes.txt", "--method", _EVIL)
    yield ("score", "run", "notes.txt", "--samples", _EVIL)
    yield ("eval", "run", "--tasks", _EVIL)
    yield ("eval", "run", "--suite", _EVIL)
    yield ("eval", "run", "--include-path", _EVIL)
    yield ("eval", "run", "--tasks", "latentlm_copy", "--score", _EVIL)
    yield ("compare", _EVIL)
    yield ("compare", "run", "--method", _EVIL)
    yield ("compare", "run", "--picture", _EVIL)
    yield ("study", _EVIL)
    yield ("probe", "run", "--attribute", _EVIL)
    yield ("parts", _EVIL)
    yield ("parts", "describe", _EVIL)
    yield ("parts", "list", _EVIL)
    yield ("schedules", _EVIL)
    yield ("new-plugin", _EVIL)
    yield ("reproduce", _EVIL)
    yield ("diversity", _EVIL)


def cases() -> Iterator[Case]:
    """Of arguments, cards, recipes, models, data."""
    for command in _arguments():
        yield Case(f"control characters: {' '.join(command)[:60]!r}", command)
        for encoding in ("ascii", "latin-1", "utf-16"):
            yield Case(
                f"control characters in {encoding}: {' '.join(command)[:60]!r}",
                command,
                environment={"PYTHONIOENCODING": encoding},
            )
    for where in ("name", "description", "paper", "baseline", "license"):
        card = "card_version: 1\nname: mine\nstatus: architecture\nmodel: {decoder: vanilla}\n"
        card = card.replace("name: mine", f"name: {_SPELT}") if where == "name" else card + f"{where}: {_SPELT}\n"
        for command in (
            ("zoo", "list"),
            ("zoo", "describe", "./shelf/mine.yaml"),
            ("zoo", "describe", "mine"),
            ("zoo", "list", "--json"),
        ):
            yield Case(
                f"card's {where}: {' '.join(command)}",
                command,
                files={"shelf/mine.yaml": card},
                good=None,  # type: ignore[arg-type]
                environment={"LATENTLM_ZOO_PATH": "shelf"},
            )
    for where in (
        "name",
        "description",
        "data__path",
        "data__tokenizer",
        "model__decoder",
        "model__encoder",
        "train__device",
        "train__dtype",
    ):
        yield Case(
            f"recipe's {where}", ("train", "bad.yaml", "--dry-run"), files={"bad.yaml": recipe(**{where: _EVIL})}, good=None
        )  # type: ignore[arg-type]
        yield Case(
            f"recipe's {where}, trained",
            ("train", "bad.yaml", "--out", "new"),
            files={"bad.yaml": recipe(**{where: _EVIL})},
            good=None,
        )  # type: ignore[arg-type]
    yield Case("a text", ("score", "run", "evil.txt", "--samples", "1"), files={"evil.txt": _EVIL}, good=True)
    yield Case("a text's name", ("score", "run", _EVIL.replace("/", ""), "--samples", "1"), files={_EVIL: "x y z"}, good=True)
    yield Case("a prompt", ("generate", "run", _EVIL, "--max-tokens", "2"), good=None)  # type: ignore[arg-type]
    yield Case("latents' names", ("generate", "run", "x", "--load-latents", "bad.safetensors"), prepare=_latents)
    yield Case("tensors' names", ("generate", "llama", "x"), prepare=_tensors)
    for text in ("\udcff\udcfe", "a\udc80b", "\ud800"):
        for command in (
            ("generate", "run", text, "--max-tokens", "2"),
            ("generate", "run", "x", "--stop", text, "--max-tokens", "2"),
            ("generate", text, "x"),
            ("score", "run", text),
            ("train", text),
            ("generate", "run", "x", "--save-latents", text, "--max-tokens", "2"),
            ("score", "run", "notes.txt", "--given", text, "--samples", "1"),
            ("train", "my.yaml", "-q", "--out", text),
            ("zoo", "add", "run", "--name", text),
            ("zoo", "add", "run", "--to", text),
            ("generate", "run", text, "--json", "--max-tokens", "2"),
        ):
            yield Case(f"no UTF-8: {ascii(' '.join(command))[:70]}", command, good=None)  # type: ignore[arg-type]
    for encoding in ("ascii", "latin-1", "cp1252", "utf-16", "utf-7", "shift-jis", "ascii:strict"):
        for command in (
            ("zoo", "list"),
            ("zoo", "describe", "run"),
            ("generate", "run", "größer 你好 🙂", "--max-tokens", "4"),
            ("plugins",),
            ("parts",),
            ("schedules", "list"),
            ("generate", "run", "x", "--json", "--max-tokens", "2"),
            ("--help",),
            ("train", "--help"),
            ("train", "my.yaml", "--dry-run"),
            ("score", "run", "notes.txt", "--samples", "2"),
        ):
            yield Case(f"{encoding}: {' '.join(command)}", command, environment={"PYTHONIOENCODING": encoding}, good=True)
    for name, command in COMMANDS.items():
        for environment in _TERMINALS:
            said = " ".join(f"{key}={value}" for key, value in environment.items())
            yield Case(f"{name}: {said}", command, environment=environment, stdin=b"a text", good=True)
    for name in (
        "$x_1$",
        "$",
        "a$b",
        "<b>",
        "&amp;",
        "[red]",
        "%s",
        "{0}",
        "\\",
        "x'y\"z",
        "-x",
        "日本",
        "🙂",
        "a b",
        "a=b",
        "a,b",
        "*",
        "_x",
        "l\udcc3\udca4",
        _EVIL,
    ):
        text = name.isprintable()  # safetensors opens no other path, which is said
        yield Case(f"a run called {shown(name)}", ("train", "my.yaml", "-q", "--out", f"odd/{name}"), good=text or None)
        yield Case(
            f"a comparison of {shown(name)}",
            (
                "compare",
                f"odd/{name}",
                "--tasks",
                "none",
                "--documents",
                "2",
                "--document-bytes",
                "16",
                "--samples",
                "2",
                "--out",
                "new",
            ),
            prepare=lambda folder, name=name: _moved(folder, name),
            good=text or None,
        )


def _moved(folder: Path, name: str) -> None:
    (folder / "odd").mkdir()
    (folder / "run").rename(folder / "odd" / name)


def _latents(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file(
        {f"latent.{_EVIL}.00000000": torch.zeros(3, 4)}, folder / "bad.safetensors", metadata={"format": "latentlm.latents.2"}
    )


def _tensors(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "llama" / "model.safetensors"
    save_file({**load_file(path), _EVIL: torch.zeros(1)}, path)
