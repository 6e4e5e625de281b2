"""JSON files of others, damaged whole and in every place: folders of transformers, checkpoints, tokenizers."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from hostile.harness import Case

TYPES = {
    "null": None,
    "true": True,
    "a text": "x",
    "a list": [1],
    "a mapping": {"a": 1},
    "a fraction": 0.5,
    "minus one": -1,
    "a huge number": 10**30,
    "infinite": float("inf"),
    "no number": float("nan"),
}


def cases() -> Iterator[Case]:
    """Of every such file."""
    texts: dict[str, bytes | str] = {
        "empty": "",
        "cut": '{"a": ',
        "a list": "[]",
        "a number": "5",
        "nested": "[" * 100_000 + "]" * 100_000,
        "no text": b"\xff\xfe\x00",
        "a long number": '{"hidden_size": ' + "9" * 5000 + "}",
        "NaN": '{"hidden_size": NaN}',
        "null": "null",
        "a key twice": '{"model_type": "llama", "model_type": "gpt2"}',
    }
    for name in (
        "config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "generation_config.json",
        "model.safetensors.index.json",
    ):
        for what, text in texts.items():
            yield Case(
                f"{name}: {what}", ("generate", "llama", "def", "--max-tokens", "1"), files={f"llama/{name}": text}, good=None
            )  # type: ignore[arg-type]
    said = {
        "config.json": (
            "model_type",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "rope_parameters",
            "rope_theta",
            "rms_norm_eps",
            "tie_word_embeddings",
            "max_position_embeddings",
            "hidden_act",
            "eos_token_id",
            "head_dim",
            "intermediate_size",
            "torch_dtype",
        ),
        "tokenizer_config.json": (
            "eos_token",
            "bos_token",
            "chat_template",
            "tokenizer_class",
            "add_bos_token",
            "added_tokens_decoder",
        ),
        "generation_config.json": ("eos_token_id", "temperature", "bos_token_id"),
    }
    for name, keys in said.items():
        for key in keys:
            for what, value in TYPES.items():
                yield Case(
                    f"{name}: {key} is {what}",
                    ("generate", "llama", "def", "--max-tokens", "1"),
                    good=None,  # type: ignore[arg-type]
                    prepare=lambda folder, name=name, key=key, value=value: _changed(folder / "llama" / name, key, value),
                )
    yield from _nested()
    yield from _logged(texts)
    yield from _headers()
    yield from _caches()
    index = {
        "a list": [],
        "no map": {},
        "a map of numbers": {"weight_map": {"model.norm.weight": 5}},
        "a map of lists": {"weight_map": {"model.norm.weight": ["x"]}},
        "a map of all kinds": {"weight_map": {"model.norm.weight": "x.safetensors", "model.embed_tokens.weight": 5}},
        "a map out": {"weight_map": {"model.norm.weight": "../run/model.safetensors"}},
        "a map to nothing": {"weight_map": {"model.norm.weight": "x.safetensors"}},
        "a list for a map": {"weight_map": []},
    }
    for what, value in index.items():
        yield Case(
            f"index: {what}",
            ("generate", "llama", "def", "--max-tokens", "1"),
            prepare=lambda folder, value=value: _indexed(folder / "llama", value),  # type: ignore[misc]
        )
    for what, text in texts.items():
        yield Case(
            f"state.json: {what}",
            ("train", "half", "-q", "--resume"),
            prepare=lambda folder, text=text: _half(folder, text),
            good=None,
            may_change=("half/*", "half/checkpoints/*", "half/checkpoints/*/*"),
        )  # type: ignore[arg-type]
        yield Case(f"tokenizer.json of a run: {what}", ("generate", "run", "x"), files={"run/tokenizer.json": text}, good=None)  # type: ignore[arg-type]
        train = ("train", "my.yaml", "-q", "--out", "new", "data.tokenizer=bad.json")
        yield Case(
            f"tokenizer.json of a recipe: {what}", train, files={"bad.json": text}, says="bad.json is not|bad.json has no"
        )


_LOGGED = {
    "samples_*.jsonl": (
        *(
            "doc_id",
            "doc_hash",
            "target_hash",
            "prompt_hash",
            "filter",
            "metrics",
            "metrics.0",
            "acc",
            "target",
            "doc",
            "resps",
        ),
    ),
    "results_*.json": (
        *(
            "results",
            "results.latentlm_copy",
            "results.latentlm_copy.exact_match,strip",
            "configs",
            "configs.latentlm_copy",
            "versions",
        ),
        *("configs.latentlm_copy.metric_list", "configs.latentlm_copy.metric_list.0", "group_subtasks", "group_subtasks.g"),
        *("configs.latentlm_copy.metric_list.0.aggregation", "higher_is_better", "higher_is_better.latentlm_copy", "n-samples"),
    ),
}
"""What evaluations say that lm-eval has logged."""


def _logged(texts: dict[str, bytes | str]) -> Iterator[Case]:
    command = ("compare", "logged/one", "logged/two", "--out", "new")
    for name, keys in _LOGGED.items():
        for what, text in texts.items():
            yield Case(
                f"{name}: {what}",
                command,
                good=None,
                prepare=lambda folder, name=name, text=text: _found(folder, name).write_bytes(  # type: ignore[misc]
                    text.encode() if isinstance(text, str) else text
                ),
            )
        for key in keys:
            for what, value in TYPES.items():
                yield Case(
                    f"{name}: {key} is {what}",
                    command,
                    good=None,
                    prepare=lambda folder, name=name, key=key, value=value: _changed(_found(folder, name), key, value),  # type: ignore[misc]
                )
    yield Case(
        "results_*.json: a group in itself",
        command,
        good=None,
        prepare=lambda folder: _changed(_found(folder, "results_*.json"), "group_subtasks", {"g": ["g"]}),
    )


def _found(folder: Path, name: str) -> Path:
    return next((folder / "logged" / "two").rglob(name))


def _headers() -> Iterator[Case]:
    """What a file of latents says of itself."""
    for key in ("names", "granularity", "format"):
        for what in (
            "",
            "{",
            "5",
            "null",
            '["z"]',
            '["z", 5]',
            "[[]]",
            '{"z": 5}',
            '{"z": []}',
            "[" * 50_000,
            '{"z": "token"}',
        ):
            yield Case(
                f"latents' header: {key} is {what[:20]}",
                ("generate", "run", "x", "--max-tokens", "1", "--load-latents", "bad.safetensors"),
                good=None,
                prepare=lambda folder, key=key, what=what: _header(folder, key, what),  # type: ignore[misc]
            )


def _header(folder: Path, key: str, what: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(folder / "z.safetensors", framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, folder / "bad.safetensors", metadata={**metadata, key: what})


def _caches() -> Iterator[Case]:
    """Answers that lm-eval keeps."""
    command = ("eval", "run", "--tasks", "latentlm_copy", "--limit", "1", "--samples", "1", "--use-cache", "kept")
    says, name = "stays as it is|is not a database of kept answers", "kept_rank0.db"
    for what, content in {"text": b"notes", "cut": b"SQLite format 3\x00" + b"\xff" * 90}.items():
        yield Case(f"kept answers: {what}", command, files={name: content}, says=says)
    yield Case("kept answers: empty", command, files={name: b""}, good=True, may_change=(name,))
    yield Case("kept answers: a folder", command, files={f"{name}/notes.txt": b"notes"}, says=says)
    yield Case("kept answers: a link", command, prepare=lambda folder: (folder / name).symlink_to("notes.txt"), says=says)
    yield Case("kept answers: a link to nothing", command, prepare=lambda folder: (folder / name).symlink_to("x"), says=says)
    yield Case("kept answers: a pipe", command, prepare=lambda folder: os.mkfifo(folder / name), says=says)
    yield Case("kept answers: below a file", (*command[:-1], "notes.txt/kept"), says="cannot write to notes.txt")
    yield Case("kept answers: in a new folder", (*command[:-1], "new/kept"), good=True)
    for what, lines in {
        "another table": "CREATE TABLE mine (a)",
        "another table beside": "CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB); CREATE TABLE mine (a)",
        "other columns": "CREATE TABLE unnamed (a, b)",
        "a column more": "CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB, mine)",
        "a view": "CREATE VIEW unnamed AS SELECT 1 AS key, 2 AS value",
        "a trigger": "CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB); "
        "CREATE TRIGGER mine AFTER INSERT ON unnamed BEGIN DELETE FROM unnamed; END",
    }.items():
        yield Case(f"kept answers: a database with {what}", command, prepare=_database(name, lines), says=says)


def _database(name: str, lines: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with closing(sqlite3.connect(folder / name)) as database:
            database.executescript(lines)

    return make


_INSIDE = {
    "config.json": (
        *(f"rope_parameters.{key}" for key in ("rope_type", "rope_theta", "factor", "original_max_position_embeddings")),
        *("rope_scaling", "architectures", "layer_types", "quantization_config", "sliding_window", "dtype"),
    ),
    "tokenizer_config.json": ("eos_token.content",),
    "generation_config.json": ("num_beams", "stop_strings", "suppress_tokens"),
    "tokenizer.json": (
        *("version", "truncation", "padding", "added_tokens", "added_tokens.0", "normalizer", "pre_tokenizer", "decoder"),
        *(f"added_tokens.0.{key}" for key in ("id", "content", "special", "normalized")),
        *("pre_tokenizer.type", "pre_tokenizer.add_prefix_space", "decoder.type", "post_processor", "post_processor.single"),
        *("post_processor.special_tokens.<s>.ids", "model", "model.type", "model.vocab", "model.vocab.!", "model.vocab.a"),
        *("model.merges", "model.merges.0", "model.merges.0.0", "model.unk_token", "model.dropout", "model.byte_fallback"),
    ),
}
"""What the files of a folder of transformers say further in."""


def _nested() -> Iterator[Case]:
    for name, keys in _INSIDE.items():
        for key in keys:
            for what, value in TYPES.items():
                yield Case(
                    f"{name}: inside, {key} is {what}",
                    ("generate", "llama", "def area", "--max-tokens", "2"),
                    good=None,
                    prepare=lambda folder, name=name, key=key, value=value: _changed(folder / "llama" / name, key, value),  # type: ignore[misc]
                )
    for kind in ("linear", "llama3", "dynamic"):
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "rope_theta"):
            for what, value in TYPES.items():
                rope = {"rope_type": kind, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, key: value}
                yield Case(
                    f"config.json: {kind} positions, {key} is {what}",
                    ("generate", "llama", "def area", "--max-tokens", "1"),
                    good=None,
                    prepare=lambda folder, rope=rope: _changed(folder / "llama/config.json", "rope_parameters", rope),  # type: ignore[misc]
                )


def _changed(path: Path, key: str, value: object) -> None:
    """Change a JSON file, of lines the first, at a path of keys, parted by dots, and of places in lists."""
    text, *rest = path.read_text().splitlines(keepends=True) if path.suffix == ".jsonl" else [_text(path)]
    said = json.loads(text)
    node = said
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(node, dict) and not isinstance(node.get(parent), dict | list):
            node[parent] = {}
        node = node[int(parent) if isinstance(node, list) else parent]
    node[int(last) if isinstance(node, list) else last] = value
    path.write_text(json.dumps(said) + "\n" + "".join(rest))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else "{}"


def _indexed(folder: Path, index: object) -> None:
    """The weights under another name, and an index that should lead to them."""
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _half(folder: Path, state: bytes | str) -> None:
    """A run whose second checkpoint has another state file."""
    import shutil

    shutil.copytree(folder / "run", folder / "half")
    (folder / "half" / "card.yaml").unlink()
    (folder / "half" / "model.safetensors").unlink()
    newest = sorted((folder / "half" / "checkpoints").iterdir())[-1]
    (newest / "state.json").write_bytes(state.encode() if isinstance(state, str) else state)
