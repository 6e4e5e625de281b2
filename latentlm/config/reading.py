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
"""Bytes of a YAML file: people write them, and to read one takes a second for each."""
MOST_NODES = 20_000
"""Of a YAML text with its aliases written out."""
MOST_NESTED = 100
MOST_TEXT = 2**28
"""Of a text for a model: what training data may have in one."""
MOST_LINE = 2**26
"""Bytes of a line of a file that is read by lines."""


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """The text of a file. Raises UserError."""
    try:
        with open_plain(path) as file:
            too_large = os.fstat(file.fileno()).st_size > most  # said without reading it
            data = b"" if too_large else file.read(most + 1)
    except (OSError, ValueError) as error:
        raise UserError(why_not(path, error)) from None
    if too_large or len(data) > most:
        raise UserError(_too_large(path, most))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not readable: it is no text in UTF-8 (byte {error.start:,}). Save it as UTF-8.") from None


def read_bytes(path: Path, *, most: int = MOST_TEXT, remedy: str = "") -> bytes:
    """The bytes of a file, or of a pipe that somebody writes to. Raises UserError, which ends with the remedy; of a file that
    is larger than `most` nothing is read."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "no plain file")
            os.set_blocking(file.fileno(), True)  # from here on: of a pipe without a writer nothing is read
            too_large = os.fstat(file.fileno()).st_size > most
            data: bytes = b"" if too_large else file.read(most + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{why_not(path, error)} {remedy}".rstrip()) from None
    if too_large or len(data) > most:
        raise UserError(f"{_too_large(path, most)} {remedy}".rstrip())
    return data


def lines_of(file: Any, *, source: Path, most: int = MOST_LINE) -> Iterator[bytes]:
    """The lines of a file that is open for reading bytes. Raises UserError for one that is longer than `most`: a line that
    never ends would be read whole."""
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most:
            raise UserError(f"{source}, line {number}, is longer than {most // 2**20} MiB, too long for a line of its kind.")
        yield line


def _too_large(path: Path, most: int) -> str:
    return f"{path} is larger than {most // 2**20} MiB, too large for a file of its kind."


def open_plain(path: Path) -> Any:
    """A file opened for reading bytes, without waiting for anyone. Raises OSError, with errno EINVAL for what is no file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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
    _depth = 0
    _nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, not too deep, and not one too many: a tree of them takes a hundred times the memory of its text."""
        self._depth += 1
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise yaml.MarkedYAMLError(problem=_TOO_MANY, problem_mark=self.peek_event().start_mark)
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
_TOO_MANY = f"it stands for more than {MOST_NODES:,} values"
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
        raise yaml.MarkedYAMLError(problem=_TOO_MANY, problem_mark=node.start_mark)
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


def json_data(text: str, *, source: str) -> Any:
    """What a JSON text says, no key twice. Raises UserError that names `source`."""
    try:
        return json.loads(text, object_pairs_hook=_no_key_twice)
    except RecursionError:
        reason = "it is nested too deep"
    except ValueError as error:
        reason = short(str(error))
    raise UserError(f"{source} is not readable as JSON: {reason}.")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{short(twice)}" is there twice')
    return found
