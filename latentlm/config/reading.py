"""Reading small files of others: text, YAML and JSON, each refused by one message where it is not what it should be.

    read_text(path)      a plain file in UTF-8; never a pipe, a device or a folder, never more than memory should bear
    read_yaml(path)      a mapping: no key twice, no tags, no loops, no aliases that multiply
    read_json(path)      any JSON value: no key twice, no nesting without end

YAML is read as version 1.2 means it where 1.1 surprises: yes, no, on and off are texts, and so are dates; a number that 1.1
reads to another base (0100, 1:30) is refused.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from latentlm.errors import UserError, short

MOST_BYTES = 2**26
"""Of a text of settings. (A tokenizer with a million symbols takes a third of it.)"""
MOST_YAML = 2**20
"""Of a YAML file: people write them, and reading one takes a second for each."""
MOST_WHOLE = 2**29
"""Of a text, or a record, that is read whole."""
MOST_LINE = 2**28
"""Bytes of a line or text of a file of rows; a small file that is packed may hold one that no memory does."""
MOST_NODES = 10**5
"""Of a YAML text, with its aliases written out."""
MOST_NESTED = 100


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """The text of a file. Raises UserError."""
    try:
        with open_plain(path) as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise UserError(why_not(path, error)) from None
    if len(data) > most:
        raise UserError(f"{path} is larger than {most // 2**20} MiB, too large for a file of its kind.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not readable: it is no text in UTF-8 (byte {error.start:,}). Save it as UTF-8.") from None


def read_bytes(path: Path, *, remedy: str = "", most: int = MOST_WHOLE) -> bytes:
    """The bytes of a file, or of a pipe that somebody writes to. Raises UserError, which ends with the remedy."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "no plain file")
            os.set_blocking(file.fileno(), True)  # from here on: of a pipe without a writer nothing is read
            data = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
    except (OSError, ValueError) as error:
        raise UserError(f"{why_not(path, error)} {remedy}".rstrip()) from None
    if data is None or len(data) > most:
        raise UserError(f"{path} is larger than {most // 2**20} MiB, too large to be read whole. Give a part of it.")
    return data


def lines_of(file: Any, path: Path, *, most: int = MOST_LINE) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes) of each line that is not blank of a file opened for reading bytes, one at a time. Raises UserError
    for one that is too long for a text."""
    for number, line in enumerate(iter(lambda: file.readline(most + 1), b""), 1):
        if len(line) > most:
            raise UserError(f"{path}, line {number}, is longer than {most // 2**20} MiB, too long for a text.")
        if line.strip():
            yield number, line


def open_plain(path: Path, *, links: bool = True) -> Any:
    """A file opened for reading bytes, without waiting for anyone; without `links`, no link is followed. Raises OSError, with
    errno EINVAL for what is no file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "no plain file")
    return os.fdopen(descriptor, "rb")


def why_not(path: Path | str, error: OSError | ValueError) -> str:
    """What to say of a path that could not be opened for reading."""
    if not isinstance(error, OSError):
        return f"{str(path)!r} is no path: {error}."
    said = {
        errno.ENOENT: "does not exist.",
        errno.ENOTDIR: "does not exist: a file stands where a folder is needed.",
        errno.EISDIR: "is a folder, not a file.",
        errno.EINVAL: "is no plain file but a pipe, a device or a socket.",
        errno.ENXIO: "is no plain file but a pipe, a device or a socket.",
        errno.ELOOP: "is a link that leads in a circle.",
        errno.EACCES: "cannot be read: no permission. Change its permissions.",
        errno.ENAMETOOLONG: "does not exist: no path is that long.",
    }.get(error.errno or 0, f"cannot be read: {error.strerror or error}.")
    return f"{short(str(path))} {said}"


def no_file(path: Path) -> str:
    """What to say of a path at which no plain file lies."""
    try:
        mode = path.stat().st_mode
        return why_not(path, OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "no plain file"))
    except (OSError, ValueError) as error:
        return why_not(path, error)


# ---------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML without surprises, and without what only an attack needs."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name is PyYAML's)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":bool"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _depth = _nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, not too deep, and not one too many."""
        self._depth += 1
        self._nodes += 1
        if self._nodes > MOST_NODES:
            problem = f"it holds more than {MOST_NODES:,} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        if self._depth > MOST_NESTED:
            problem = f"it is nested more than {MOST_NESTED} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """A scalar; a plain number that YAML 1.1 takes to another base is refused."""
        plain = self.peek_event().style is None
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if plain and _OTHER_BASE.fullmatch(node.value):
            problem = f"{short(node.value)} is another number to YAML than to you: write it in tens, or put it in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is read, before `<<` puts another's keys in, which its own may replace. Refuses a key that is there
        twice, of which YAML would keep the second and say nothing."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if key.value in seen:
                    problem = f'the key "{short(key.value)}" is there twice, first in line {seen[key.value]}, then'
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen[key.value] = key.start_mark.line + 1
        return node


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))
_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def yaml_data(text: str, *, source: str, remedy: str = "") -> Any:
    """What a YAML text says, no key twice. Raises UserError, which names `source` and ends with the remedy."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {}, set())
        return loader.construct_document(node)
    except RecursionError:
        problem, where = "it is nested too deep", ""
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or " ".join(str(error).split())
        where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
    except Exception as error:  # a constructor that meets a value of another kind raises whatever its code runs into
        problem, where = f"a value is not what its tag or form says ({short(str(error) or type(error).__name__)})", ""
    raise UserError(f"{source} is not readable as YAML: {short(problem, 400)}{where}. {remedy}".rstrip())


def _check_size(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Nodes below one, aliases written out. Raises YAMLError where they are too many, or where one is below itself."""
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem="an alias leads back to what it is in", problem_mark=node.start_mark)
    if id(node) not in known:
        values = node.value if isinstance(node, yaml.CollectionNode) else ()
        below = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
        known[id(node)] = 1 + sum(_check_size(one, known, above | {id(node)}) for one in below)
    if known[id(node)] > MOST_NODES:
        raise yaml.MarkedYAMLError(problem=f"it stands for more than {MOST_NODES:,} values", problem_mark=node.start_mark)
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping. Raises UserError with file and line."""
    data = yaml_data(read_text(path, most=MOST_YAML), source=str(path))
    if not isinstance(data, dict):
        found = "and is empty" if data is None else f"not {type(data).__name__}"
        raise UserError(f"{path} should hold a mapping (key: value), {found}.")
    if odd := next((key for key in data if not isinstance(key, str)), None):
        raise UserError(f"{path} should hold a mapping of names, but has the key {short(repr(odd))}.")
    return data


def as_yaml(data: BaseModel, *, exclude_none: bool = False) -> str:
    """The text of a YAML file that `read_yaml` and `parse` turn back into `data`."""
    said = data.model_dump(mode="json", exclude_none=exclude_none)
    readable, safe = (yaml.safe_dump(said, sort_keys=False, allow_unicode=as_is) for as_is in (True, False))
    return safe if re.search("[\x85\u2028\u2029]", readable) else readable  # line breaks to YAML, which folds them


# ---------------------------------------------------------------------------------------------------------------- JSON


def read_json(path: Path) -> Any:
    """What a JSON file says. Raises UserError."""
    return json_data(read_text(path), source=str(path))


def json_data(text: str | bytes, *, source: str, remedy: str = "") -> Any:
    """What a JSON text says, no key twice. Raises UserError, which names `source` and ends with the remedy."""
    try:
        return json.loads(text, object_pairs_hook=_no_key_twice)
    except RecursionError:
        reason = "it is nested too deep"
    except ValueError as error:
        reason = short(str(error))
    raise UserError(f"{source} is not readable as JSON: {reason}. {remedy}".rstrip())


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f'the key "{short(twice)}" is there twice')
    return found
