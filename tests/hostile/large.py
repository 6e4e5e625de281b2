"""Files that are larger than their kind ever is, or that take more than their size: said by name, and not read whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.harness import Case

_LARGE = "(?i)larger than|longer than|does not fit"


def _sparse(name: str, size: int, start: bytes = b"") -> Callable[[Path], None]:
    """A file of which the disk keeps the beginning alone."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    return make


def _logged(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = next((folder / "logged" / "one").rglob(name))
        with path.open("r+b") as file:
            file.truncate(20 * 2**30)

    return make


def cases() -> Iterator[Case]:
    """Of every reader of whole files, of YAML, and of columns of tables."""
    for size in (2**29 + 1, 3 * 2**30, 20 * 2**30):
        what = f"of {size / 2**30:.0f} GiB"
        many: dict[str, tuple[tuple[str, ...], str, bytes]] = {
            "a text to score": (("score", "run", "big.txt"), "big.txt", b""),
            "a text to encode": (("generate", "run", "x", "--latents-from", "big.txt"), "big.txt", b""),
            "an archive": (("reviews", "--archive", "big"), "big", b""),
            "lines of a study": (("study", "study.yaml", "--table", "--results", "big"), "big", b""),
            "a picture": (("compare", "run", "--picture", "big.png", "--out", "new"), "big.png", b"\x89PNG"),
            "a card": (("generate", "big.yaml", "x"), "big.yaml", b"card_version: 1\n"),
            "a recipe": (("train", "big.yaml", "--out", "new"), "big.yaml", b"name: x\n"),
        }
        for kind, (command, name, start) in many.items():
            files = {"study.yaml": "name: s\narms: {a: {recipe: my.yaml}}\n"}
            yield Case(f"{kind} {what}", command, files=files, prepare=_sparse(name, size, start), says=_LARGE)
    for name in ("samples_*.jsonl", "results_*.json"):
        yield Case(f"logged {name} of 20 GiB", ("compare", "logged/one", "logged/two"), prepare=_logged(name), says=_LARGE)
    yield Case(
        "a run whose metrics have 20 GiB",
        ("compare", "run", "--tasks", "none", "--documents", "2", "--samples", "2", "--out", "new"),
        prepare=_sparse("run/metrics.jsonl", 20 * 2**30),
        says=_LARGE,
    )
    yield from _yaml()
    for name in _COLUMNS:
        yield Case(
            f"a column of {name}",
            ("train", "my.yaml", "-q", "--out", "new", "data.path=odd.parquet"),
            prepare=lambda folder, name=name: _table(folder / "odd.parquet", name),
            says="not text",
        )


def _yaml() -> Iterator[Case]:
    """Small for a file, and much for who reads it: on a shelf it must not stop what has another name."""
    texts = {
        "a list": "- a\n" * 3_000_000,
        "a list below a key": "a:\n" + "- a\n" * 200_000,
        "a mapping": "".join(f"k{number}: 1\n" for number in range(500_000)),
        "a flow": "a: [" + "1," * 3_000_000 + "]\n",
        "comments": "#\n" * 5_000_000 + "name: x\n",
        "a long text": 'a: "' + "x " * 5_000_000 + '"\n',
    }
    for what, text in texts.items():
        shelf = {"LATENTLM_ZOO_PATH": "shelf"}
        for command in (("zoo", "list"), ("generate", "vanilla-tiny", "x", "--max-tokens", "1")):
            files = {"shelf/a.yaml": text}
            yield Case(f"a shelf with YAML that is {what}: {command[0]}", command, files=files, environment=shelf, good=True)
        yield Case(f"a recipe that is {what}", ("train", "big.yaml", "--dry-run"), files={"big.yaml": text})


_COLUMNS = (
    "timestamps", "far timestamps", "timestamps of an unknown zone", "far dates", "durations", "decimals", "booleans",
    "structs", "coded numbers",
)  # fmt: skip


def _table(path: Path, name: str) -> None:
    import pyarrow
    from pyarrow import parquet

    made: dict[str, Callable[[], object]] = {
        "timestamps": lambda: pyarrow.array([1, 2], pyarrow.timestamp("us")),
        "far timestamps": lambda: pyarrow.array([2**62, 2], pyarrow.int64()).cast(pyarrow.timestamp("us")),
        "timestamps of an unknown zone": lambda: pyarrow.array([1, 2], pyarrow.timestamp("us", "Not/AZone")),
        "far dates": lambda: pyarrow.array([2**30, 2], pyarrow.int32()).cast(pyarrow.date32()),
        "durations": lambda: pyarrow.array([2**62, 2], pyarrow.duration("us")),
        "decimals": lambda: pyarrow.array([1, 2]).cast(pyarrow.decimal128(38)),
        "booleans": lambda: pyarrow.array([True, False]),
        "structs": lambda: pyarrow.array([{"a": "b"}]),
        "coded numbers": lambda: pyarrow.array([1, 2, 1]).dictionary_encode(),
    }
    parquet.write_table(pyarrow.table({"text": made[name]()}), path)
