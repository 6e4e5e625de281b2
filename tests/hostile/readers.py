"""Readers refuse by one message: YAML, JSON, tables, weights, paths."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from hostile import headers, json_files
from hostile.base import recipe
from hostile.harness import Case
from hostile.json_files import TYPES
from hostile.values import known

_ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(12)
)
_YAML: dict[str, bytes | str] = {
    "empty": "",
    "a list": "- 1\n- 2\n",
    "a text": "hello",
    "a number": "5",
    "a date out of range": "name: 2024-13-45\nmodel: {decoder: free}\n",
    "a time out of range": "name: 2024-01-01 99:99:99\n",
    "a long number": f"train: {{steps: {'9' * 5000}}}\n",
    "a long hexadecimal number": f"train: {{steps: 0x{'f' * 5000}}}\n",
    "an infinite number": "train: {steps: .inf}\n",
    "no number": "train: {learning_rate: .nan}\n",
    "nested lists": "model: " + "[" * 20_000 + "]" * 20_000,
    "nested mappings": "model: " + "{a: " * 20_000 + "}" * 20_000,
    "nested dashes": "model:\n " + "- " * 20_000 + "x\n",
    "nested quotes": "model: " + "? " * 5_000 + "x\n",
    "a tag of Python": "name: !!python/object/apply:os.system ['true']\n",
    "an unknown tag": "name: !mine x\n",
    "a tag that does not fit": "train: {steps: !!int five}\n",
    "binary that is none": "name: !!binary '%%%'\n",
    "a float that is none": "train: {learning_rate: !!float x}\n",
    "a timestamp that is none": "name: !!timestamp x\n",
    "a set": "name: !!set {a, b}\n",
    "ordered pairs": "name: !!omap [1]\n",
    "pairs that are none": "name: !!pairs x\n",
    "an alias of nothing": "name: *x\n",
    "a loop": "model: &a {backbone: *a}\n",
    "a list that holds itself": "model: &a [*a]\n",
    "a key that is a list": "? [1, 2]\n: 3\n",
    "a key that is a mapping": "? {a: 1}\n: 3\n",
    "keys that are numbers": "1: 2\n3: 4\n",
    "a merge of nothing": "<<: 5\nname: x\n",
    "a merge of a loop": "a: &a {<<: *a}\n",
    "aliases that multiply": _ALIASES,
    "aliases that multiply in a list": _ALIASES + "model: *m\n",
    "two documents": "name: a\n---\nname: b\n",
    "a section twice": recipe() + "train: {steps: 1}\n",
    "a key twice": "name: a\nname: b\n",
    "a key twice in other quotes": "name: a\n'name': b\n",
    "a tab": "model:\n\tdecoder: free\n",
    "bytes that are no text": b"name: \xff\xfe\xfa\n",
    "UTF-16": recipe().encode("utf-16"),
    "a NUL": b"name: a\x00b\n",
    "control characters": b"name: \x1b[31mred\n",
    "escaped control characters": 'name: "\\e[31mred\\a"\n',
    "a lone surrogate": 'name: "\\ud800"\n',
    "a byte order mark in the middle": "name: a\ufeffb\nmo\ufeffdel: 5\n",
    "a directive": "%YAML 3.9\n---\nname: x\n",
    "a percent": "%x\n",
    "weights": struct.pack("<Q", 20) + b'{"a":{"dtype":"F32"',
    "a long line": "name: " + "x" * 2_000_000 + "\n",
    "many keys": "".join(f"key{n}: {n}\n" for n in range(50_000)),
    "yes for a name": recipe(name="x").replace("name: x", "name: yes"),
    "off for a decoder": recipe().replace("decoder: free", "decoder: off"),
    "minutes for steps": recipe().replace("steps: 2", "steps: 1:30"),
    "an octal number": recipe().replace("steps: 2", "steps: 0100"),
}
_TEXTS = ("a date out of range", "yes for a name")
"""Texts to YAML 1.2, as which they are read, so that they may name a run."""
_SETTINGS = (
    "name",
    "description",
    "model",
    "model.decoder",
    "model.event_dims",
    "model.backbone",
    "model.backbone.width",
    "model.backbone.heads",
    "model.backbone.context",
    "model.encoder",
    "model.prior",
    "model.injection",
    "model.kl_schedule",
    "model.granularity",
    "model.latents",
    "data",
    "data.path",
    "data.tokenizer",
    "data.seed",
    "train",
    "train.steps",
    "train.batch",
    "train.learning_rate",
    "train.seed",
    "train.device",
    "train.dtype",
    "train.save_every",
    "plugins",
)
_RIGHT = {
    ("description", "a text"),
    ("name", "a text"),
    ("description", "null"),
    ("model.encoder", "null"),
    ("model.prior", "null"),
    ("model.injection", "null"),
    ("model.kl_schedule", "null"),
    ("train.device", "null"),
}
_PATHS = {
    "a folder": "texts",
    "a loop of links": "loop",
    "a link to nothing": "dangling",
    "a pipe": "pipe",
    "nobody's home": "~nobody-at-all/x",
    "nothing": "missing.yaml",
    "the empty text": "",
    "a long name": "x" * 300,
    "a long path": "x/" * 3000,
    "a million letters": "x" * 10**6,
    "a million letters of a folder": "./" + "x" * 10**6 + ".yaml",
    "a million folders": "x/" * 10**6,
    "a socket": "socket",
    "zeros without end": "/dev/zero",
    "a process's memory": "/proc/self/mem",
    "below a file": "notes.txt/x",
    "a terminal": "/dev/tty",
}


def odd_files(folder: Path) -> None:
    """What is no plain file."""
    import socket

    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(folder / "socket"))


def cases() -> Iterator[Case]:
    """Of every reader."""
    for what, text in _YAML.items():
        good = None if what in _TEXTS else False
        yield Case(f"recipe: {what}", ("train", "bad.yaml", "--dry-run"), files={"bad.yaml": text}, good=good)  # type: ignore[arg-type]
        yield Case(f"card: {what}", ("zoo", "describe", "./bad.yaml"), files={"bad.yaml": text})
        yield Case(f"card of a folder: {what}", ("generate", "bad", "x"), files={"bad/card.yaml": text})
        yield Case(f"study: {what}", ("study", "bad.yaml", "--dry-run"), files={"bad.yaml": text})
        if isinstance(text, str) and "\n" not in text.rstrip("\n"):
            yield Case(
                f"override: {what}", ("train", "my.yaml", "--dry-run", f"train={text.strip()}"[:100_000].replace("\0", ""))
            )
    yield from _settings()
    yield from _paths()
    yield from _long_paths()
    yield from json_files.cases()
    yield from _tables()
    yield from _weights()
    yield from headers.cases()


def _settings() -> Iterator[Case]:
    for key in _SETTINGS:
        for what, value in TYPES.items():
            if (key, what) in _RIGHT or (key == "description" and what == "a text"):
                continue
            changed = recipe(**{key.replace(".", "__"): value})
            yield Case(f"recipe: {key} is {what}", ("train", "bad.yaml", "--dry-run"), files={"bad.yaml": changed}, good=None)  # type: ignore[arg-type]


def _paths() -> Iterator[Case]:
    for what, path in _PATHS.items():
        for command in (
            ("train", path, "--dry-run"),
            ("zoo", "describe", path),
            ("generate", path, "x"),
            ("score", "run", path),
            ("generate", "run", "x", "--load-latents", path),
            ("study", path, "--dry-run"),
            ("train", "my.yaml", "--dry-run", f"data.path={path}"),
            ("train", "my.yaml", "--dry-run", f"data.tokenizer={path}"),
            ("probe", "run", "--attribute", path),
            ("compare", path, "--dry-run"),
            ("zoo", "add", path),
            ("eval", "run", "--tasks", "latentlm_copy", "--include-path", path, "--limit", "1"),
            ("parts", "for", path, "prior"),
        ):
            good = None if path == "texts" or command[-1] == "data.tokenizer=" else False
            yield Case(f"path: {what}: {' '.join(command)[:60]}", command, prepare=odd_files, good=good)  # type: ignore[arg-type]

    for what in ("loop", "dangling", "pipe", "socket", "texts"):  # by the ending that a command goes by
        for ending, command in {
            "yaml": ("train", "{0}.yaml", "--dry-run"),
            "jsonl": ("train", "my.yaml", "-q", "--out", "new", "data.path={0}.jsonl"),
            "parquet": ("train", "my.yaml", "-q", "--out", "new", "data.path={0}.parquet"),
            "json": ("train", "my.yaml", "-q", "--out", "new", "data.tokenizer={0}.json"),
            "tsv": ("probe", "run", "--attribute", "{0}.tsv"),
            "safetensors": ("generate", "run", "x", "--load-latents", "{0}.safetensors"),
        }.items():
            if (what, ending) == ("texts", "jsonl") or (what, ending) == ("texts", "parquet"):
                continue  # a folder of texts, whatever its name
            yield Case(
                f"path: {what}.{ending}: {' '.join(command)[:60]}",
                tuple(word.format(what) for word in command),
                prepare=lambda folder, what=what, ending=ending: _called(folder, what, ending),
                says=rf"{what}\.{ending}",
            )


def _called(folder: Path, what: str, ending: str) -> None:
    odd_files(folder)
    (folder / what).rename(folder / f"{what}.{ending}")
    if what == "loop":
        (folder / f"loop.{ending}").unlink()
        (folder / f"loop.{ending}").symlink_to(f"loop.{ending}")


def _long_paths() -> Iterator[Case]:
    """Of what a command writes, and of options that are no path."""
    small = ("--documents", "2", "--document-bytes", "16", "--samples", "2", "--tasks", "none")
    for what in ("a long name", "a long path", "a million letters", "a million folders"):
        path = _PATHS[what]
        for command in (
            ("train", "my.yaml", "-q", "--out", path),
            ("train", "my.yaml", "-q", "--out", "new", f"name={path}"),
            ("train", path, "--resume"),
            ("compare", "run", *small, "--out", path),
            ("compare", "run", *small, "--picture", f"{path}.svg", "--out", "new"),
            ("compare", "logged/one", path, "--out", "new"),
            ("compare", "logged/one", "logged/two", "--out", path),
            ("generate", "run", "x", "--max-tokens", "2", "--save-latents", path),
            ("generate", "run", "x", "--max-tokens", "2", "--stop", path),
            ("generate", "run", "x", "--device", path),
            ("eval", "run", "--tasks", path),
            ("eval", "run", "--tasks", "latentlm_copy", "--limit", "1", "--output", path),
            ("eval", "run", "--tasks", "latentlm_copy", "--limit", "1", "--use-cache", path),
            ("eval", path, "--tasks", "latentlm_copy", "--limit", "1"),
            ("probe", "run", "--attribute", "synthetic:reviews", "--texts", "100", "--pairs", "2", "--out", path),
            ("probe", path, "--attribute", "synthetic:reviews"),
            ("diversity", path, "--task", "automaton"),
            ("diversity", "run", "--task", path),
            ("reproduce", "synthetic", "--out", path),
            ("reproduce", "synthetic", "--shelf", path),
            ("reproduce", path),
            ("reviews", "--archive", path),
            ("zoo", "add", "run", "--to", path),
            ("zoo", "add", "run", "--to", "shelf", "--name", path),
            ("new-plugin", path),
            ("new-plugin", "mine", "--out", path),
            ("parts", "describe", path),
            ("parts", "for", path, "prior"),
            ("schedules", "plot", "--out", path),
            (path,),
        ):
            good = None if "--stop" in command else False
            said = " ".join(word for word in command if word not in small and word != path)
            yield Case(f"{what}: {said[:60]}", command, good=good)


def _tables() -> Iterator[Case]:
    files: dict[str, bytes | str] = {
        "texts.jsonl": '{"text": 5}\n{"text": null}\n',
        "cut.jsonl": '{"text": "a"}\n{"text": ',
        "bytes.jsonl": b'{"text": "\xff\xfe"}\n',
        "list.jsonl": "[1, 2]\n",
        "nested.jsonl": '{"text": ' + "[" * 50_000 + "]" * 50_000 + "}\n",
        "other.jsonl": '{"body": "a"}\n',
        "number.jsonl": '{"text": ' + "9" * 6000 + "}\n",
        "empty.jsonl": "",
        "nul.jsonl": b'{"text": "a\x00"}\n\x00\n',
        "none.parquet": b"PAR1" + b"\x00" * 40 + b"PAR1",
        "text.parquet": "not a table",
        "empty.parquet": b"",
        "packed.jsonl.gz": b"not packed",
        "cut.jsonl.gz": gzip.compress(b'{"text": "abc", "rating": 1}\n' * 1000)[:-9],
        "packed.parquet": gzip.compress(b"PAR1" * 100),
        "bytes.tsv": b"1\t\xff\xfe\xfa\n" * 40,
        "empty.txt": "",
        "nul.txt": b"\x00" * 4000,
    }
    for name, content in files.items():
        odd = name in ("nul.txt", "nul.jsonl")
        yield Case(
            f"data: {name}",
            ("train", "my.yaml", "-q", "--out", "new", f"data.path={name}"),
            files={name: content},
            good=None if odd else False,
        )  # type: ignore[arg-type]
        rated = content.replace('{"text"', '{"rating": 1, "text"') if isinstance(content, str) else content
        yield Case(f"attribute: {name}", ("probe", "run", "--attribute", name), files={name: rated})
        yield Case(f"score: {name}", ("score", "run", name, "--samples", "1"), files={name: content}, good=None)  # type: ignore[arg-type]

    # What a column or a line may hold, and a line that takes more memory than there is.
    odd = {"surrogate.jsonl": "".join(f'{{"text": "\\ud80{number} {number}"}}\n' for number in range(8))}
    train = ("train", "my.yaml", "-q", "--out", "new")
    yield Case("data: surrogate.jsonl", (*train, "data.path=surrogate.jsonl"), files=odd, good=True)
    yield Case("data: bytes.txt", train, files={"texts/bytes.txt": b"\xff\xfe\xfa" * 40}, good=True)
    for name, says in {
        "long.jsonl.gz": "line 1, is longer than",
        "zeros.jsonl": "line 1, is longer than",
        "long.parquet": "are longer than",
        "repeated.parquet": "is longer than",
        "bytes.parquet": "row 1, is no text in UTF-8",
        "numbers.parquet": "holds int64, not text",
        "lists.parquet": "holds list<element: string>, not text",
        "flipped.parquet": "not readable as Parquet",
        "other.parquet": "has no column",
    }.items():
        yield Case(
            f"data: {name}",
            (*train, f"data.path={name}"),
            prepare=lambda folder, name=name: _table(folder / name),
            says=says,
        )


def _table(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, dict[str, list[object]]] = {
        "bytes": {"text": ["AAAA", "BBBB", "CCCC"]},
        "numbers": {"text": [1, 2]},
        "lists": {"text": [["a"], ["b"]]},
        "flipped": {"text": ["The first text", "The second text", "The third text"]},
        "other": {"body": ["a", "b"]},
    }
    if path.name == "zeros.jsonl":
        with path.open("wb") as file:
            file.truncate(2**34)
    elif path.name == "long.parquet":
        parquet.write_table(pyarrow.table({"text": ["x" * (2**28 + 2**20)]}), path, compression="zstd")
    elif path.name == "repeated.parquet":
        parquet.write_table(pyarrow.table({"text": ["x" * (2**28 + 1), *"y" * 63]}), path, compression="zstd")
    elif path.name == "long.jsonl.gz":
        with gzip.open(path, "wb", compresslevel=1) as packed:
            packed.write(b'{"text": "')
            for _ in range(2**9):
                packed.write(b"x" * 2**20)
    else:
        parquet.write_table(pyarrow.table(columns[path.stem]), path, use_dictionary=False, compression="none")
        content = path.read_bytes().replace(b"BBBB", b"\xff\xfe\xfd\xfc")
        if path.stem == "flipped":
            content = content[:4] + bytes(byte ^ 0x55 for byte in content[4:-8]) + content[-8:]
        path.write_bytes(content)


def _weights() -> Iterator[Case]:
    def header(text: bytes, size: int | None = None) -> bytes:
        return struct.pack("<Q", len(text) if size is None else size) + text

    def tensor(name: str, dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> bytes:
        return header(json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()) + b"\0" * 4

    files = {
        "empty": b"",
        "short": b"\0\0",
        "a huge header": header(b"{}", 2**62),
        "a long header": header(b"{}", 2**30),
        "no header": header(b"x" * 40),
        "a header that is a list": header(b"[]"),
        "a nested header": header(b"[" * 50_000),
        "text": b"not weights at all, but text",
        "a pickle": b"\x80\x04\x95\x10\x00",
        "a tensor out of range": tensor("z", offsets=(0, 4000)),
        "a negative shape": tensor("z", shape=(-1,)),
        "a huge shape": tensor("z", shape=(2**40, 2**40)),
        "an unknown type": tensor("z", dtype="F99"),
        "a text for a shape": tensor("z", shape="x"),
        "a name with control characters": tensor("\x1b[31mz"),
        "other tensors": tensor("z"),
    }
    for what, content in files.items():
        for ask, says in {"that the card knows not": "truncated|do not match", "that the card knows": ""}.items():
            yield Case(
                f"weights {ask}: {what}",
                ("generate", "run", "x", "--max-tokens", "2"),
                files={"run/model.safetensors": content},
                prepare=known if not says else None,
                says=says or "(?s)^(?!.*(truncated|do not match))",
            )
        yield Case(f"weights of a Llama: {what}", ("generate", "llama", "x"), files={"llama/model.safetensors": content})
        yield Case(
            f"latents: {what}",
            ("generate", "run", "x", "--load-latents", "bad.safetensors"),
            files={"bad.safetensors": content},
        )
